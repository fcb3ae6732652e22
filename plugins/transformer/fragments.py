"""Weights as tensor cores read them: [O, I] <-> [O/16, I/16, 32, 8], see fragments.cuh."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

TILE = 16
PLAIN: dict[str, Any] = {"fp16": np.float16, "int8": np.int8}
# [O/16, half of the outputs, 8, I/16, half of the inputs, 4, 2], from and to which fragments are transposed.
_ORDER = (0, 3, 2, 5, 4, 1, 6)
_BACK = tuple(_ORDER.index(axis) for axis in range(7))


def activations(element: str) -> str:
    """The element of activations beside weights of an element."""
    return "fp16" if element == "int8" else element


def dtype(element: str) -> Any:
    """numpy's type of an element. numpy has no bf16, for which ml_dtypes is needed."""
    if element in PLAIN:
        return np.dtype(PLAIN[element])
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16)


def filled(array: NDArray[Any], *sizes: int) -> NDArray[Any]:
    """The array with zeros behind it in each axis, up to these sizes."""
    return np.pad(array, [(0, size - old) for size, old in zip(sizes, array.shape, strict=True)])


def rounded(size: int) -> int:
    """The next multiple of a tile's 16."""
    return -(-size // TILE) * TILE


def pack(weight: NDArray[Any], element: str) -> NDArray[Any]:
    """weight [O, I], both multiples of 16, as fragments of `element`."""
    n_out, n_in = weight.shape
    parts = np.asarray(weight).astype(dtype(element)).reshape(n_out // TILE, 2, 8, n_in // TILE, 2, 4, 2)
    return np.ascontiguousarray(parts.transpose(_ORDER)).reshape(n_out // TILE, n_in // TILE, 32, 8)


def quantized(weight: NDArray[Any]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """weight [O, I] as whole numbers up to 127 and the scale of each output [O]: the nearest to the weight."""
    largest = np.abs(weight).max(axis=1, initial=0.0)
    scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    return np.rint(weight / scale[:, None]).astype(np.int8), scale


def unpack(fragments: NDArray[Any]) -> NDArray[Any]:
    """[O/16, I/16, 32, 8] -> [O, I]."""
    n_out, n_in = fragments.shape[:2]
    parts = fragments.reshape(n_out, n_in, 8, 4, 2, 2, 2).transpose(_BACK)
    return np.ascontiguousarray(parts).reshape(n_out * TILE, n_in * TILE)


def interleaved(gate: NDArray[Any], inner: NDArray[Any]) -> NDArray[Any]:
    """Rows of a gate and of its inner product, 8 and 8 in turn: so that one tile holds both of 8 outputs."""
    both = np.stack([gate.reshape(-1, 8, *gate.shape[1:]), inner.reshape(-1, 8, *inner.shape[1:])], axis=1)
    return both.reshape(-1, *gate.shape[1:])


def parted(both: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The inverse of `interleaved`."""
    parts = both.reshape(-1, 2, 8, *both.shape[1:])
    return parts[:, 0].reshape(-1, *both.shape[1:]), parts[:, 1].reshape(-1, *both.shape[1:])


def by_units(gates: NDArray[Any]) -> NDArray[Any]:
    """gates [G, U, ...] as outputs [O, ...] of a recurrent cell: each tile of 16 has the gates of 16/G units, one gate
    behind the other, and zeros behind them."""
    n_gates, n_units = gates.shape[:2]
    each = TILE // n_gates
    n_tiles = -(-n_units // each)
    whole = filled(gates, n_gates, n_tiles * each, *gates.shape[2:])
    tiles = whole.reshape(n_gates, n_tiles, each, *gates.shape[2:]).swapaxes(0, 1)
    tiles = tiles.reshape(n_tiles, n_gates * each, *gates.shape[2:])
    return filled(tiles, n_tiles, TILE, *gates.shape[2:]).reshape(n_tiles * TILE, *gates.shape[2:])


def of_units(outputs: NDArray[Any], n_gates: int, n_units: int) -> NDArray[Any]:
    """The inverse of `by_units` along the last axis: [..., O] -> [G, ..., U]."""
    each = TILE // n_gates
    tiles = outputs.reshape(*outputs.shape[:-1], -1, TILE)[..., : n_gates * each]
    parts = tiles.reshape(*tiles.shape[:-1], n_gates, each)  # [..., tile, G, unit]
    parts = np.moveaxis(parts, -2, 0)
    return parts.reshape(n_gates, *outputs.shape[:-1], -1)[..., :n_units]
