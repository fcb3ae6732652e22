"""Moonshine's stem (2410.15608, section 3.1): convolutions of the waveform, behind the first a norm over a whole clip.

Letters: W samples, F frames of the first convolution, C its channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx

from ...runtime.sources.waveform import INPUT_VALUES, N_FRAMES
from .builder import FLOAT, INT64, GraphBuilder
from .structure import Norm, Stem, Tensor


@dataclass(frozen=True)
class Filter:
    """weight [out, in, width], bias [out] or None. No padding."""

    weight: Tensor
    bias: Tensor | None
    stride: int
    activation: str  # the operator of ONNX


@dataclass(frozen=True)
class Waveform(Stem):
    """norm: over all channels and frames of a clip (GroupNorm of one group), frames that fill up left out."""

    filters: tuple[Filter, ...]
    norm: Norm
    input: ClassVar[str] = INPUT_VALUES
    is_masked: ClassVar[bool] = True

    @property
    def shape(self) -> tuple[int | str, ...]:
        return ("W",)

    @property
    def width(self) -> int:
        return int(self.filters[-1].weight.shape[0])

    def emit(self, g: GraphBuilder, x: str) -> str:
        n_frames = g.input(N_FRAMES, INT64, ["B"])
        x = g.op("Unsqueeze", [x, g.constant([1])])  # [B,1,W]
        for i, layer in enumerate(self.filters):
            with g.scope(f"convolution{i}"):
                inputs = [x, g.weight("weight", layer.weight)]
                if layer.bias is not None:
                    inputs.append(g.weight("weight_bias", layer.bias))
                x = g.op(layer.activation, [g.op("Conv", inputs, strides=[layer.stride])])
                if i == 0:
                    x = self._normed(g, x, n_frames)
        return g.transpose(x, [0, 2, 1])

    def _normed(self, g: GraphBuilder, x: str, n_frames: str) -> str:
        """[B,C,F] -> the same"""
        channels = int(self.filters[0].weight.shape[0])
        seen = g.op("Less", [g.range(g.size(x, 2)), g.op("Unsqueeze", [n_frames, g.constant([1])])])  # [B,F]
        seen = g.op(
            "Cast",
            [
                g.op("Unsqueeze", [seen, g.constant([1])]),
            ],
            to=onnx.TensorProto.FLOAT,
        )
        count = g.op("Cast", [g.op("Mul", [n_frames, g.constant(channels)])], to=FLOAT)
        count = g.op("Unsqueeze", [count, g.constant([1, 2])])

        def mean(value: str) -> str:
            total = g.op("ReduceSum", [g.op("Mul", [value, seen]), g.constant([1, 2])], keepdims=1)
            return g.op("Div", [total, count])

        centered = g.op("Sub", [x, mean(x)])
        variance = mean(g.op("Mul", [centered, centered]))
        deviation = g.op("Sqrt", [g.op("Add", [variance, g.constant(self.norm.epsilon, np.float32)])])
        weight, bias = self.norm.weight, self.norm.bias
        assert bias is not None
        scaled = g.op("Mul", [g.op("Div", [centered, deviation]), g.weight("norm", weight.reshape(-1, 1))])
        return g.op("Add", [scaled, g.weight("norm_bias", bias.reshape(-1, 1))])
