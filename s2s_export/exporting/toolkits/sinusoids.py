"""Tables of sinusoidal positions (1706.03762, section 3.5), sines in the first half and cosines in the second."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch

from ...errors import CheckpointError

POSITIONS = 1024  # that a computed table has; more by a family's `stretch`


def sinusoids(positions: int, width: int, first: int, path: Path) -> torch.Tensor:
    """[P, E] of at least POSITIONS positions, from `first` on. Raises CheckpointError for an odd width."""
    if width < 4 or width % 2:
        raise CheckpointError(f"{path}: has width {width}, for which there are no sinusoids; expected an even number")
    half = width // 2
    rates = np.exp(np.arange(half, dtype=np.float32) * np.float32(-math.log(10000.0) / (half - 1)))
    count = max(positions, POSITIONS)
    angles = np.arange(first, count + first, dtype=np.float32)[:, None] * rates[None]
    return torch.from_numpy(np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32))
