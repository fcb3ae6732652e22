"""What encoders of sound and of pictures have in place of an embedding: convolutions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...runtime.sources.audio_features import INPUT_FEATURES
from ...runtime.sources.flattened_patches import FLATTENED_PATCHES, N_PLACES
from ...runtime.sources.pixels import PIXEL_VALUES
from .builder import INT64, GraphBuilder
from .structure import Linear, Stem, Tensor


@dataclass(frozen=True)
class Convolution:
    """Along time: weight [out, in, width], bias [out]. Padded by width // 2 zeros at both ends, then GELU."""

    weight: Tensor
    bias: Tensor
    stride: int


@dataclass(frozen=True)
class Frames(Stem):
    """Of sound: convolutions, one behind the other (2212.04356).

    n_frames: T of the features [B, F, T] that it takes, always the same; F is the first convolution's `in`.
    """

    convolutions: tuple[Convolution, ...]
    n_frames: int
    input: ClassVar[str] = INPUT_FEATURES

    @property
    def shape(self) -> tuple[int, ...]:
        return int(self.convolutions[0].weight.shape[1]), self.n_frames

    @property
    def width(self) -> int:
        return int(self.convolutions[-1].weight.shape[0])

    def emit(self, g: GraphBuilder, x: str) -> str:
        for i, layer in enumerate(self.convolutions):
            with g.scope(f"convolution{i}"):
                padding = layer.weight.shape[2] // 2
                inputs = [x, g.weight("weight", layer.weight), g.weight("weight_bias", layer.bias)]
                x = g.op("Gelu", [g.op("Conv", inputs, strides=[layer.stride], pads=[padding, padding])])
        return g.transpose(x, [0, 2, 1])


@dataclass(frozen=True)
class Patches(Stem):
    """Of a picture: it is cut into patches, and each is projected (2010.11929, section 3.1).

    weight [E, channels, height, width] of a patch, bias [E] or None. size: (height, width) of the picture; what is left
    over at its right and bottom is not looked at, or is filled up with zeros if `is_padded`.
    prefix: vectors [n, E] that stand before the patches, or None.
    """

    weight: Tensor
    bias: Tensor | None
    size: tuple[int, int]
    prefix: Tensor | None = None
    is_padded: bool = False
    input: ClassVar[str] = PIXEL_VALUES

    @property
    def shape(self) -> tuple[int, ...]:
        return int(self.weight.shape[1]), *self.size

    @property
    def width(self) -> int:
        return int(self.weight.shape[0])

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        patch = self.weight.shape[2:]
        rows, columns = (
            -(-size // step) if self.is_padded else size // step for size, step in zip(self.size, patch, strict=True)
        )
        return rows, columns

    @property
    def n_positions(self) -> int:
        """S"""
        rows, columns = self.grid
        return rows * columns + (0 if self.prefix is None else len(self.prefix))

    def emit(self, g: GraphBuilder, x: str) -> str:
        with g.scope("patches"):
            patch = list(self.weight.shape[2:])
            missing = [n * step - size for n, step, size in zip(self.grid, patch, self.size, strict=True)]
            inputs = [x, g.weight("weight", self.weight)]
            if self.bias is not None:
                inputs.append(g.weight("weight_bias", self.bias))
            x = g.op("Conv", inputs, strides=patch, pads=[0, 0, *(max(0, n) for n in missing)])  # [B,E,rows,columns]
            rows, columns = self.grid
            x = g.transpose(g.reshape(x, [-1, self.width, rows * columns]), [0, 2, 1])
            if self.prefix is None:
                return x
            n, width = self.prefix.shape
            first = g.weight("prefix", self.prefix.reshape(1, n, width))
            shape = g.op("Concat", [g.size(x, 0), g.constant([n, width])], axis=0)
            return g.op("Concat", [g.op("Expand", [first, shape]), x], axis=1)


@dataclass(frozen=True)
class PlacedPatches(Stem):
    """Of a picture that was cut into patches before: each is projected, and has a learned row and column (2210.03347).

    projection: weight [E, P]. rows, columns: [n, E].
    """

    projection: Linear
    rows: Tensor
    columns: Tensor
    input: ClassVar[str] = FLATTENED_PATCHES
    is_masked: ClassVar[bool] = True

    @property
    def shape(self) -> tuple[int | str, ...]:
        return "S", N_PLACES + self.patch_size

    @property
    def patch_size(self) -> int:
        """P"""
        return int(self.projection.weight.shape[1])

    @property
    def width(self) -> int:
        return int(self.projection.weight.shape[0])

    def emit(self, g: GraphBuilder, x: str) -> str:
        with g.scope("patches"):
            sizes = g.constant([1, 1, self.patch_size])
            batch, length = g.size(x, 0), g.size(x, 1)
            row, column, patch = g.ops("Split", [x, sizes], 3, axis=2)
            rows = g.reshape(patch, [-1, self.patch_size])  # [B*S,P]
            found = g.linear(rows, self.projection.weight, self.projection.bias)
            for name, place, table in (("row", row, self.rows), ("column", column, self.columns)):
                index = g.op("Cast", [g.reshape(place, [-1])], to=INT64)
                found = g.op("Add", [found, g.op("Gather", [g.weight(name, table), index], axis=0)])
            return g.reshape(found, [batch, length, self.width])
