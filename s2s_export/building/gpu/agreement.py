"""How far the lowered graphs are from the fp32 ones, fed the same tokens, both on ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .running import Trace


def compare(expected: Sequence[Trace], found: Sequence[Trace]) -> dict[str, Any]:
    """What engine.json records, over all rows whose text had not ended.

    best_token: share of rows with the same best token. among_clear: the same where fp32's best leads by more than 1 %
    of its largest logit. max_error: the largest difference of two logits, relative: divided by the largest logit.
    mean_kl: mean Kullback-Leibler divergence of the distributions, in nats.
    """
    reference = np.concatenate([e.logits[e.is_open] for e in expected])
    lowered = np.concatenate([f.logits[e.is_open] for e, f in zip(expected, found, strict=True)])
    finite = bool(np.isfinite(lowered).all())
    if not finite:
        return {"finite": False, "rows": len(reference), "best_token": 0.0}
    largest = float(np.abs(reference).max())
    error = float(np.abs(reference - lowered).max())
    same = reference.argmax(-1) == lowered.argmax(-1)
    top = np.partition(reference, -2, axis=-1)[:, -2:]
    clear = top[:, 1] - top[:, 0] > 0.01 * largest
    p, q = _log_softmax(reference), _log_softmax(lowered)
    return {
        "finite": True,
        "rows": len(reference),
        "best_token": float(same.mean()),
        "among_clear": float(same[clear].mean()) if clear.any() else None,
        "max_error": error,
        "relative_error": error / max(largest, 1e-30),
        "mean_kl": float((np.exp(p) * (p - q)).sum(-1).mean()),
    }


def _log_softmax(logits: Any) -> Any:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def line(precision: str, agreement: dict[str, Any]) -> str:
    """One sentence for people."""
    if not agreement["finite"]:
        return f"{precision} against fp32: logits are not finite"
    return (
        f"{precision} against fp32 on a CPU: best token equal in {agreement['best_token']:.1%} of "
        f"{agreement['rows']} rows, logits within {agreement['relative_error']:.1e} of the largest, "
        f"KL {agreement['mean_kl']:.1e} nats"
    )
