"""Speech2Text's stem (1911.08460): convolutions of filter banks, each behind a gated linear unit.

What lies behind the end of a clip is zero before every convolution, as it is for a clip alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ...runtime.sources.filter_banks import FILTER_BANKS, N_FRAMES
from .builder import FLOAT, INT64, GraphBuilder
from .structure import Stem, Tensor


@dataclass(frozen=True)
class GatedConvolution:
    """weight [2 * out, in, width], bias [2 * out]; width // 2 zeros at both ends."""

    weight: Tensor
    bias: Tensor
    stride: int


@dataclass(frozen=True)
class GatedConvolutions(Stem):
    """scale multiplies what the last of them gives."""

    convolutions: tuple[GatedConvolution, ...]
    scale: float
    input: ClassVar[str] = FILTER_BANKS
    is_masked: ClassVar[bool] = True

    @property
    def shape(self) -> tuple[int | str, ...]:
        return "W", int(self.convolutions[0].weight.shape[1])

    @property
    def width(self) -> int:
        return int(self.convolutions[-1].weight.shape[0]) // 2

    def emit(self, g: GraphBuilder, x: str) -> str:
        n = g.op("Unsqueeze", [g.input(N_FRAMES, INT64, ["B"]), g.constant([1])])  # [B,1]
        x = g.transpose(x, [0, 2, 1])
        for i, layer in enumerate(self.convolutions):
            with g.scope(f"convolution{i}"):
                width, padding = layer.weight.shape[2], layer.weight.shape[2] // 2
                inputs = [x, g.weight("weight", layer.weight), g.weight("weight_bias", layer.bias)]
                both = g.op("Conv", inputs, strides=[layer.stride], pads=[padding, padding])
                value, gate = g.ops("Split", [both], 2, axis=1, num_outputs=2)
                x = g.op("Mul", [value, g.op("Sigmoid", [gate])])
                steps = g.op("Div", [g.op("Add", [n, g.constant(2 * padding - width)]), g.constant(layer.stride)])
                n = g.op("Add", [steps, g.constant(1)])
                seen = g.op("Cast", [g.op("Less", [g.range(g.size(x, 2)), n])], to=FLOAT)  # [B,T]
                x = g.op("Mul", [x, g.op("Unsqueeze", [seen, g.constant([1])])])
        x = g.transpose(x, [0, 2, 1])
        return x if self.scale == 1.0 else g.op("Mul", [x, g.constant(self.scale, np.float32)])
