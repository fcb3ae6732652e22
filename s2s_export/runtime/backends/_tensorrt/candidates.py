"""What a search asks of a step's logits, computed on the host.

Engines give logits [B,K,V]. The search on the host copies them from the GPU at each step, and `look` computes what the
last nodes of the portable graph compute on a CPU. The search on the device needs no such copy.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ...decoding.state import Floats, StepQuery, StepResult


def look(logits: Floats, query: StepQuery, attention: Any = None) -> StepResult:
    """logits [B,K,V] float32 -> what `query` asks for. Among equal logits the smaller id comes first.

    attention [B,K,L,H,S]: put into the result as it is.
    """
    top = logits.max(axis=-1, keepdims=True)
    with np.errstate(under="ignore"):
        normalizer = np.log(np.exp(logits - top).sum(axis=-1, keepdims=True)) + top  # [B,K,1]
    ids = best(logits, query.n_candidates)
    probes = query.probe_ids
    probed = None
    if probes is not None and probes.shape[2]:
        probed = np.take_along_axis(logits, probes, axis=-1) - normalizer
    return StepResult(
        candidate_ids=ids,
        candidate_log_probs=np.take_along_axis(logits, ids, axis=-1) - normalizer,
        log_normalizer=normalizer[..., 0],
        probe_log_probs=probed,
        log_probs=logits - normalizer if query.dense else None,
        attention=attention,
    )


def best(logits: Floats, count: int) -> Any:
    """Ids [B,K,count] of the largest logits, best first."""
    size = logits.shape[-1]
    if count == 1:
        return logits.argmax(axis=-1)[..., None].astype(np.int64)
    if count >= size:
        return np.argsort(-logits, axis=-1, kind="stable")[..., :count].astype(np.int64)
    least = -np.partition(-logits, count - 1, axis=-1)[..., count - 1 : count]
    flat, bounds = logits.reshape(-1, size), least.reshape(-1)
    rows = np.empty((len(flat), count), np.int64)
    for row, (values, bound) in enumerate(zip(flat, bounds, strict=True)):
        above = np.flatnonzero(values >= bound)  # ascending ids; more than `count` where the last ones are equal
        rows[row] = above[np.argsort(-values[above], kind="stable")][:count]
    return rows.reshape(*logits.shape[:-1], count)
