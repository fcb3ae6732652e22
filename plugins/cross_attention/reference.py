"""What cross-attention computes, in numpy. The kernel is tested against this."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MASKED = -8192.0  # at or below this, a mask value means that the position is not part of the source


def cross_attention(
    query: NDArray, key: NDArray, value: NDArray, mask: NDArray, scale: float, bias: NDArray | None = None
) -> NDArray:
    """[B,H,K,D] float64 from query [B,H,K,D], key and value [B,H,S,D], mask [B,1,1,S] and bias [1,H,1,S].

    Positions whose mask is at or below MASKED are left out; other mask values are added to the scores. A source with no
    position left attends equally to all S: what a softmax over equally large negative scores gives.
    """
    mask = mask.astype(np.float64)
    visible = mask > MASKED
    scores = np.einsum("bhkd,bhsd->bhks", query.astype(np.float64), key.astype(np.float64)) * scale
    scores = scores + mask + (0.0 if bias is None else bias.astype(np.float64))
    scores = np.where(visible, scores, -np.inf)
    scores = np.where(visible.any(axis=-1, keepdims=True), scores, 0.0)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("bhks,bhsd->bhkd", weights, value.astype(np.float64))
