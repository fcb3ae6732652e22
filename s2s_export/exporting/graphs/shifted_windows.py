"""Swin Transformer (2103.14030): attention within windows of a picture, shifted by half a window in every other layer.

Between stages two by two patches become one. The whole encoder is a stem: what it computes are the encoder's states.
Letters beside the usual ones: h, w rows and columns of patches, W windows, N = size * size patches of a window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ...runtime.sources.pixels import PIXEL_VALUES
from .builder import GraphBuilder
from .layers import feed_forward, joint, normed
from .stems import Patches
from .structure import Attention, FeedForward, Linear, Norm, Stem, Tensor

OTHER_REGION = -100.0  # added to the scores of patches that only the shift has brought together, as published


@dataclass(frozen=True)
class WindowLayer:
    """bias: [H, N, N], added to the scores of each window. shift: by how many patches windows are moved; 0 for none."""

    attention: Attention
    bias: Tensor
    norm: Norm
    feed_forward: FeedForward
    feed_forward_norm: Norm
    shift: int


@dataclass(frozen=True)
class Stage:
    """Layers on one grid, then norm and projection [2C, 4C] of each two by two patches, None in the last stage."""

    layers: tuple[WindowLayer, ...]
    merging_norm: Norm | None
    merging: Linear | None


@dataclass(frozen=True)
class ShiftedWindows(Stem):
    """window: patches along a side of a window. positions: [h*w, C] added to the normed patches, or None."""

    patches: Patches
    norm: Norm
    positions: Tensor | None
    window: int
    stages: tuple[Stage, ...]
    input: ClassVar[str] = PIXEL_VALUES

    @property
    def shape(self) -> tuple[int, ...]:
        return self.patches.shape

    @property
    def width(self) -> int:
        return int(self.stages[-1].layers[0].norm.weight.shape[0])

    @property
    def n_positions(self) -> int:
        """S"""
        rows, columns = self.patches.grid
        for stage in self.stages:
            if stage.merging is not None:
                rows, columns = (rows + 1) // 2, (columns + 1) // 2
        return rows * columns

    def emit(self, g: GraphBuilder, x: str) -> str:
        rows, columns = self.patches.grid
        x = self.patches.emit(g, x)
        with g.scope("patches"):
            x = normed(g, x, self.norm)
            if self.positions is not None:
                x = g.op("Add", [x, g.weight("positions", self.positions)])
        x = g.reshape(x, [-1, self.patches.width])
        for i, stage in enumerate(self.stages):
            with g.scope(f"stage{i}"):
                for j, layer in enumerate(stage.layers):
                    with g.scope(f"layer{j}"):
                        x = _layer(g, x, layer, (rows, columns), self.window)
                if stage.merging is not None and stage.merging_norm is not None:
                    x = _merge(g, x, stage.merging_norm, stage.merging, (rows, columns))
                    rows, columns = (rows + 1) // 2, (columns + 1) // 2
        return g.reshape(x, [-1, rows * columns, self.width])


def _layer(g: GraphBuilder, x: str, layer: WindowLayer, grid: tuple[int, int], window: int) -> str:
    """x [B*h*w, C] -> the same"""
    x = g.op("Add", [x, _attention(g, normed(g, x, layer.norm), layer, grid, window)])
    return g.op("Add", [x, feed_forward(g, normed(g, x, layer.feed_forward_norm), layer.feed_forward)])


def _attention(g: GraphBuilder, x: str, layer: WindowLayer, grid: tuple[int, int], size: int) -> str:
    attention, width = layer.attention, layer.attention.query.weight.shape[1]
    rows, columns = grid
    down, across = -(-rows // size), -(-columns // size)  # windows
    n = size * size
    x = _filled(g, g.reshape(x, [-1, rows, columns, width]), (down * size - rows, across * size - columns))
    x = _rolled(g, x, layer.shift)
    x = g.transpose(g.reshape(x, [-1, down, size, across, size, width]), [0, 1, 3, 2, 4, 5])
    x = g.reshape(x, [-1, width])
    parts = joint(g, x, [attention.query, attention.key, attention.value], "query_key_value")
    heads = [g.reshape(part, [-1, down * across, n, attention.n_heads, attention.head_size]) for part in parts]
    query, value = (g.transpose(part, [0, 1, 3, 2, 4]) for part in (heads[0], heads[2]))  # [B,W,H,N,D]
    key = g.transpose(heads[1], [0, 1, 3, 4, 2])
    scores = g.op("MatMul", [g.op("Mul", [query, g.constant(attention.scale, np.float32)]), key])
    scores = g.op("Add", [scores, g.weight("relative_bias", layer.bias)])
    if layer.shift:
        scores = g.op("Add", [scores, _region_mask(g, (down, across), size, layer.shift)])
    x = g.op("MatMul", [g.op("Softmax", [scores], axis=-1), value])
    x = g.reshape(g.transpose(x, [0, 1, 3, 2, 4]), [-1, attention.n_heads * attention.head_size])
    x = g.linear(x, attention.output.weight, attention.output.bias, "output")
    x = g.transpose(g.reshape(x, [-1, down, across, size, size, width]), [0, 1, 3, 2, 4, 5])
    x = _rolled(g, g.reshape(x, [-1, down * size, across * size, width]), -layer.shift)
    if (down * size, across * size) != grid:
        x = g.op("Slice", [x, g.constant([0, 0]), g.constant([rows, columns]), g.constant([1, 2])])
    return g.reshape(x, [-1, width])


def _region_mask(g: GraphBuilder, windows: tuple[int, int], size: int, shift: int) -> str:
    """[W,1,N,N]: OTHER_REGION where a border of the picture, which a shift moves inside, is between two patches."""
    sides = []
    for n in windows:
        place = np.arange(n * size)
        sides.append((place >= (n - 1) * size).astype(np.int64) + (place >= n * size - shift))
    (down, across), n = windows, size * size
    rows = g.constant(3 * sides[0].reshape(down, 1, size, 1))
    region = g.op("Add", [rows, g.constant(sides[1].reshape(1, across, 1, size))])  # [down,across,size,size]
    queries, keys = (g.reshape(region, [down * across, 1, *shape]) for shape in ((n, 1), (1, n)))
    same = g.op("Equal", [queries, keys])
    return g.op("Where", [same, g.constant(0.0, np.float32), g.constant(OTHER_REGION, np.float32)])


def _filled(g: GraphBuilder, x: str, missing: tuple[int, int]) -> str:
    """x [B,h,w,C] with zero rows below and zero columns at the right."""
    if missing == (0, 0):
        return x
    return g.op("Pad", [x, g.constant([0, 0, 0, 0, 0, *missing, 0]), g.constant(0.0, np.float32)])


def _rolled(g: GraphBuilder, x: str, shift: int) -> str:
    """x [B,h,w,C] moved by `shift` up and to the left; what goes out there comes in again at the other side."""
    if shift == 0:
        return x
    for axis in (1, 2):
        middle, far = g.constant([shift]), g.constant([np.iinfo(np.int64).max])
        first = g.op("Slice", [x, middle, far, g.constant([axis])])
        x = g.op("Concat", [first, g.op("Slice", [x, g.constant([0]), middle, g.constant([axis])])], axis=axis)
    return x


def _merge(g: GraphBuilder, x: str, norm: Norm, projection: Linear, grid: tuple[int, int]) -> str:
    """x [B*h*w, C] -> [B*h/2*w/2, 2C]"""
    with g.scope("merging"):
        rows, columns = grid
        width = projection.weight.shape[1] // 4
        x = _filled(g, g.reshape(x, [-1, rows, columns, width]), (rows % 2, columns % 2))
        shape = [-1, (rows + 1) // 2, 2, (columns + 1) // 2, 2, width]
        # Of the four patches those of the left column come first.
        x = g.reshape(g.transpose(g.reshape(x, shape), [0, 1, 3, 4, 2, 5]), [-1, 4 * width])
        return g.linear(normed(g, x, norm), projection.weight, projection.bias, "projection")
