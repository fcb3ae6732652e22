"""wav2vec 2.0's stem (2006.11477, section 2): convolutions of the waveform, a projection, positions by a convolution.

What lies behind the end of a clip is left out of the norm over frames, and is zero before the last convolution.
Letters: W samples, T frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ...runtime.sources.waveform import INPUT_VALUES, N_FRAMES
from .builder import FLOAT, INT64, GraphBuilder
from .layers import activation, normed
from .structure import Linear, Norm, Stem, Tensor


@dataclass(frozen=True)
class WaveConvolution:
    """weight [out, in, width], bias [out] or None; no padding. norm: over the channels of a frame, or None."""

    weight: Tensor
    bias: Tensor | None
    stride: int
    norm: Norm | None


@dataclass(frozen=True)
class WaveFeatures(Stem):
    """frame_norm: of each channel over a clip's frames, behind the first convolution, or None.

    positions: [E, E / groups, width] and its bias, which sees width // 2 frames before and behind each.
    """

    convolutions: tuple[WaveConvolution, ...]
    frame_norm: Norm | None
    projection_norm: Norm | None
    projection: Linear
    positions: Linear
    n_groups: int
    activation: str
    input: ClassVar[str] = INPUT_VALUES
    is_masked: ClassVar[bool] = True

    @property
    def shape(self) -> tuple[int | str, ...]:
        return ("W",)

    @property
    def width(self) -> int:
        return int(self.projection.weight.shape[0])

    def emit(self, g: GraphBuilder, x: str) -> str:
        n = g.op("Unsqueeze", [g.input(N_FRAMES, INT64, ["B"]), g.constant([1])])  # [B,1]
        x = g.op("Unsqueeze", [x, g.constant([1])])
        for i, layer in enumerate(self.convolutions):
            with g.scope(f"convolution{i}"):
                x = g.op("Conv", _inputs(g, x, layer.weight, layer.bias), strides=[layer.stride])
                if i == 0 and self.frame_norm is not None:
                    x = _normed_over_frames(g, x, self.frame_norm, _seen(g, x, n), n)
                elif i > 0:
                    shrunk = g.op("Sub", [n, g.constant(layer.weight.shape[2])])
                    n = g.op("Add", [g.op("Div", [shrunk, g.constant(layer.stride)]), g.constant(1)])
                if layer.norm is not None:
                    x = g.transpose(normed(g, g.transpose(x, [0, 2, 1]), layer.norm), [0, 2, 1])
                x = activation(g, x, self.activation)
        with g.scope("projection"):
            seen = _seen(g, x, n)
            batch, length, width = g.size(x, 0), g.size(x, 2), self.convolutions[-1].weight.shape[0]
            x = g.reshape(g.transpose(x, [0, 2, 1]), [-1, width])
            if self.projection_norm is not None:
                x = normed(g, x, self.projection_norm)
            x = g.reshape(g.linear(x, self.projection.weight, self.projection.bias), [batch, length, self.width])
            x = g.op("Mul", [g.transpose(x, [0, 2, 1]), seen])
        with g.scope("positions"):
            size = self.positions.weight.shape[2]
            inputs = _inputs(g, x, self.positions.weight, self.positions.bias)
            pads = [size // 2, size // 2 - (1 if size % 2 == 0 else 0)]
            positions = activation(g, g.op("Conv", inputs, group=self.n_groups, pads=pads), self.activation)
        return g.transpose(g.op("Add", [x, positions]), [0, 2, 1])


def _inputs(g: GraphBuilder, x: str, weight: Tensor, bias: Tensor | None) -> list[str]:
    return [x, g.weight("weight", weight), *([] if bias is None else [g.weight("weight_bias", bias)])]


def _seen(g: GraphBuilder, x: str, n: str) -> str:
    """[B,1,T]: 1 for the first n [B,1] frames of x [B,C,T], 0 for what fills up."""
    inside = g.op("Cast", [g.op("Less", [g.range(g.size(x, 2)), n])], to=FLOAT)
    return g.op("Unsqueeze", [inside, g.constant([1])])


def _normed_over_frames(g: GraphBuilder, x: str, norm: Norm, seen: str, n: str) -> str:
    count = g.op("Unsqueeze", [g.op("Cast", [n], to=FLOAT), g.constant([2])])  # [B,1,1]

    def mean(value: str) -> str:
        return g.op("Div", [g.op("ReduceSum", [g.op("Mul", [value, seen]), g.constant([2])], keepdims=1), count])

    centered = g.op("Sub", [x, mean(x)])
    variance = mean(g.op("Mul", [centered, centered]))
    deviation = g.op("Sqrt", [g.op("Add", [variance, g.constant(norm.epsilon, np.float32)])])
    assert norm.bias is not None
    scaled = g.op("Mul", [g.op("Div", [centered, deviation]), g.weight("norm", norm.weight.reshape(-1, 1))])
    return g.op("Add", [scaled, g.weight("norm_bias", norm.bias.reshape(-1, 1))])
