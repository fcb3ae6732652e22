"""The launch of the kernel that keeps a step's cross-attention (alignment.cuh), and what it computes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from s2s_export.errors import BuildError

from ..common.nodes import ELEMENTS, Launch
from .structures import AlignmentParameters

ALIGNMENT_THREADS = 128


def record(element: str, given: AlignmentParameters) -> Launch:
    if element not in ELEMENTS:
        raise BuildError(f"no kernel for attention in '{element}'; expected one of {', '.join(ELEMENTS)}; cast it")
    blocks = given.layers * given.heads if given.keeps_heads else 1  # of a row
    return Launch(f"record_attention_{element}", (given.rows, blocks, 1), ALIGNMENT_THREADS)


def reference(attention: NDArray) -> NDArray:
    """The mean over the last layer's heads [B, K, S] of attention [B, K, L, H, S], as `decoding` takes it."""
    mean: NDArray = attention.astype(np.float32)[:, :, -1].mean(axis=2)
    return mean
