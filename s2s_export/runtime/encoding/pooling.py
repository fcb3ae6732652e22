"""From the states of a text's tokens to one vector, as sentence-transformers has it.

Letters: B sources, S source length, E width.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..decoding.state import Floats, Ints

LEAST_LENGTH = 1e-12  # of a vector that is divided by its length
HIDDEN = np.float32(-1e9)  # below any state, for padding where the largest is taken


def _mean(states: Floats, mask: Ints) -> Floats:
    return np.asarray(_sum(states, mask) / _counts(mask), np.float32)


def _mean_sqrt_len(states: Floats, mask: Ints) -> Floats:
    return np.asarray(_sum(states, mask) / np.sqrt(_counts(mask)), np.float32)


def _cls(states: Floats, mask: Ints) -> Floats:
    first: Floats = states[:, 0]
    return first


def _last(states: Floats, mask: Ints) -> Floats:
    last = states.shape[1] - 1 - mask[:, ::-1].argmax(axis=1)
    found: Floats = states[np.arange(len(states)), last]
    return found


def _max(states: Floats, mask: Ints) -> Floats:
    found: Floats = np.where(mask[:, :, None] != 0, states, HIDDEN).max(axis=1)
    return found


def _sum(states: Floats, mask: Ints) -> Floats:
    found: Floats = np.einsum("bse,bs->be", states, mask.astype(np.float32))
    return found


def _counts(mask: Ints) -> Floats:
    found: Floats = mask.sum(axis=1, keepdims=True).astype(np.float32)
    return found


POOLINGS: dict[str, Callable[[Floats, Ints], Floats]] = {
    "mean": _mean,
    "cls": _cls,
    "max": _max,
    "mean_sqrt_len": _mean_sqrt_len,
    "last": _last,
}


def pool(states: Floats, mask: Ints, pooling: str) -> Floats:
    """states [B,S,E] and mask [B,S] -> [B,E]"""
    return np.ascontiguousarray(POOLINGS[pooling](states, mask), dtype=np.float32)


def normalized(vectors: Floats) -> Floats:
    """Each of [B,E] divided by its length."""
    found = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), LEAST_LENGTH)
    return np.ascontiguousarray(found, dtype=np.float32)
