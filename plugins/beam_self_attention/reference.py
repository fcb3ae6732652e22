"""What beam self-attention computes, in numpy. The kernel is tested against this."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def beam_self_attention(
    query: NDArray,
    key: NDArray,
    value: NDArray,
    key_cache: NDArray,
    value_cache: NDArray,
    ancestors: NDArray,
    position: int,
    scale: float,
    bias: NDArray | None = None,
) -> tuple[NDArray, NDArray, NDArray]:
    """One step: (output [B,H,K,D] float64, key_cache, value_cache), the caches as copies with this step written.

    query, key, value: [B,H,K,D]. key_cache, value_cache: [B,H,C*K,D], slot t*K + k. ancestors: [B,K,C], the beam whose
    slot holds position t; a number outside 0..K-1 hides position t. At t == position each beam sees its own key,
    whatever the table says. bias: [1,H,1,C], or None. A position outside 0..C-1 writes nothing and gives zeros.
    """
    B, H, K, D = query.shape
    C = ancestors.shape[2]
    key_cache, value_cache = key_cache.copy(), value_cache.copy()
    output = np.zeros((B, H, K, D))
    if not 0 <= position < C:
        return output, key_cache, value_cache
    key_cache[:, :, position * K : (position + 1) * K] = key
    value_cache[:, :, position * K : (position + 1) * K] = value
    for b in range(B):
        for k in range(K):
            table = ancestors[b, k, : position + 1].copy()
            table[position] = k
            t = np.flatnonzero((table >= 0) & (table < K))
            slots = t * K + table[t]
            keys = key_cache[b][:, slots].astype(np.float64)  # [H,T,D]
            values = value_cache[b][:, slots].astype(np.float64)
            scores = np.einsum("hd,htd->ht", query[b, :, k].astype(np.float64), keys) * scale
            if bias is not None:
                scores += bias[0, :, 0, t].astype(np.float64).T
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            weights /= weights.sum(axis=1, keepdims=True)
            output[b, :, k] = np.einsum("ht,htd->hd", weights, values)
    return output, key_cache, value_cache
