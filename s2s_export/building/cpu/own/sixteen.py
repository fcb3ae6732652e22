"""Numbers of 16 bits, as uint16: IEEE's half precision ("fp16") and the upper half of a float32 ("bf16").

A weight all of whose values one of them holds exactly, as those of a checkpoint that was saved in it, is stored so at
half the bytes: the operators of plugins/cpu widen it in their registers, and compute the same floats bit for bit.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FP16, BF16 = "fp16", "bf16"
STORAGES = (BF16, FP16)  # where both hold a weight the first is taken: its numbers are widened by a shift, everywhere
AT_ONCE = 1 << 20  # values that are looked at together


def narrowed(values: NDArray[np.float32], storage: str) -> NDArray[np.uint16]:
    """The nearest numbers of `storage`, of two equally near ones the even one; infinity beyond the largest."""
    if storage == FP16:
        with np.errstate(over="ignore", invalid="ignore"):  # Arm's conversions tell of NaN
            return values.astype(np.float16).view(np.uint16)
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = ((bits + (0x7FFF + (bits >> 16 & 1))) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def widened(numbers: NDArray[np.uint16], storage: str) -> NDArray[np.float32]:
    if storage == FP16:
        with np.errstate(invalid="ignore"):
            return numbers.view(np.float16).astype(np.float32)
    wide: NDArray[np.float32] = (numbers.astype(np.uint32) << 16).view(np.float32)
    return wide


def exact_storage(weight: NDArray[np.float32]) -> str | None:
    """The type that holds every value of a weight with the same bits, or None. No weight with a NaN has one."""
    flat = np.ascontiguousarray(weight).ravel()
    for storage in STORAGES:
        parts = (flat[i : i + AT_ONCE] for i in range(0, flat.size, AT_ONCE))
        if flat.size and all(_holds(part, storage) for part in parts):
            return storage
    return None


def _holds(part: NDArray[np.float32], storage: str) -> bool:
    same = widened(narrowed(part, storage), storage).view(np.uint32) == part.view(np.uint32)
    return bool(same.all()) and not np.isnan(part).any()


def stores(weight: NDArray[np.float32], precision: str) -> tuple[str, NDArray[np.uint16], bool] | None:
    """How to store a weight in 16 bits: (type, numbers, whether no value changes), or None for one that stays fp32.

    precision: "fp32" changes no value; "fp16" and "bf16" round the values of weights that neither type holds exactly,
    unless one would become infinite.
    """
    storage = exact_storage(weight)
    if storage is not None:
        return storage, narrowed(weight, storage), True
    if precision not in STORAGES:
        return None
    numbers = narrowed(weight, precision)
    return (precision, numbers, False) if np.isfinite(widened(numbers, precision)).all() else None
