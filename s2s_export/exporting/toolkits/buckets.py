"""T5's relative positions (1910.10683, section 2.1): distances fall into buckets, each with a bias for every head."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch

from ...errors import CheckpointError
from ..graphs.structure import RelativePositions

FARTHEST = 10_000  # models have 128


def relative_positions(table: torch.Tensor, farthest: int, is_bidirectional: bool, path: Path) -> RelativePositions:
    """table [buckets, H]. The logarithms are computed in fp32, as the toolkits do. Raises CheckpointError."""
    n_buckets = len(table) // (2 if is_bidirectional else 1)
    exact = n_buckets // 2
    if not 0 < exact < farthest <= FARTHEST:
        raise CheckpointError(f"{path}: has {len(table)} buckets of relative positions up to {farthest}; restore it")
    distance = np.arange(-farthest, farthest + 1 if is_bidirectional else 1)
    far = np.abs(distance)
    with np.errstate(divide="ignore"):
        steps = np.log(far.astype(np.float32) / np.float32(exact)) / np.float32(math.log(farthest / exact))
    steps[far < exact] = 0  # not used, and minus infinity at 0
    late = np.minimum(exact + (steps * np.float32(n_buckets - exact)).astype(np.int64), n_buckets - 1)
    bucket = np.where(far < exact, far, late) + np.where(is_bidirectional & (distance > 0), n_buckets, 0)
    return RelativePositions(table[torch.from_numpy(bucket)].T.contiguous(), -farthest)
