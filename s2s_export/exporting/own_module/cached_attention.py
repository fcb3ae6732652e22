"""Attention over a cache that grows by one token with every step, for the `step` of a module of one's own."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def cached_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    bias: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention of one token to itself and the T tokens before it.

    query [R,H,D], key and value [R,G,D] of the token; keys and values [R,G,T,D] of those before it: fields of the
    state, or one layer of them. G heads of keys and values serve H heads of the query, H/G each. bias: [H,T+1] or
    [1,T+1], added to the scores, such as one of relative positions. scale: of the scores, the inverse root of D by
    default. Returns the mixed values [R,H,D], and `keys` and `values` [R,G,T+1,D] with the token's own at their end,
    which are to be returned in the state.

    It is plain PyTorch, which gradients go through. An export keeps caches that nothing else reads in place: no step
    copies them, however beams change places (docs/own-module.md).
    """
    keys, values = (torch.cat([past, new.unsqueeze(2)], dim=2) for past, new in ((keys, key), (values, value)))
    mask = None if bias is None else bias[None, :, None]
    is_grouped = query.shape[1] != key.shape[1]
    mixed = F.scaled_dot_product_attention(query.unsqueeze(2), keys, values, mask, scale=scale, enable_gqa=is_grouped)
    return mixed.squeeze(2), keys, values
