"""How far an engine changes decoded tokens: the engine and the portable graphs decode the same sources."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..bundle import Bundle
from ..runtime.session import Session
from ..runtime.sources import Source
from . import samples
from .trial import LOW, MEANING

SEARCHES: tuple[dict[str, Any], ...] = ({"num_beams": 1, "do_sample": False}, {"num_beams": 4, "do_sample": False})
N_SOURCES = 16
MAX_NEW_TOKENS = 48
MOST_LINES = 512  # lines read of a samples file
BATCH_SIZES = (1, 8)  # results may depend on it, as rows of a batch may be quantised together


def measure(bundle: Bundle, folder: Path, engine: dict[str, Any], samples_path: str = "") -> dict[str, Any]:
    """What engine.json records: agreement with the portable graphs by search and batch size, exact match if known."""
    from ..runtime.backends.onnxruntime import OnnxRuntimeBackend

    portable = Session(bundle, OnnxRuntimeBackend(bundle, 1))
    fast = Session(bundle, OnnxRuntimeBackend(bundle, 1, engine, folder))
    sources, targets, origin = _samples(portable, bundle, samples_path)
    limit = min(MAX_NEW_TOKENS, (bundle.max_target_length or MAX_NEW_TOKENS + 1) - 1)
    found = []
    for options in SEARCHES:
        if limit < 1:
            break
        chosen = portable.options(max_new_tokens=limit, **options)
        expected = [best[0] for best in portable.decode(sources, chosen)]
        for batch_size in BATCH_SIZES:
            actual = [best[0] for best in fast.decode(sources, chosen, batch_size=batch_size)]
            entry = {"num_beams": options["num_beams"], "batch_size": batch_size, **_agreement(expected, actual)}
            if targets:
                entry["exact_match"] = _exact(actual, targets)
                entry["exact_match_fp32"] = _exact(expected, targets)
            found.append(entry)
    return {"samples": origin, "n_sources": len(sources), "searches": found}


def _samples(session: Session, bundle: Bundle, path: str) -> tuple[list[Source], list[str], str]:
    if not path:
        sources, origin = samples.sources(bundle, N_SOURCES)
        return sources, [], origin
    lines = samples.columns_of(Path(path))[:MOST_LINES]
    targets = [fields[1] for fields in lines] if all(len(fields) > 1 for fields in lines) else []
    return [session.encode(fields[0], truncate=True) for fields in lines], targets, Path(path).name


def _agreement(expected: Sequence[Any], actual: Sequence[Any]) -> dict[str, Any]:
    """equal: share of sources with the same tokens. tokens: share of tokens before the first that differs.
    score_error: mean difference of the scores where the tokens are equal.
    """
    same = [list(e.token_ids) == list(a.token_ids) for e, a in zip(expected, actual, strict=True)]
    before = [_common(e.token_ids, a.token_ids) for e, a in zip(expected, actual, strict=True)]
    errors = [abs(e.score - a.score) for e, a, is_same in zip(expected, actual, same, strict=True) if is_same]
    return {
        "equal": float(np.mean(same)),
        "tokens": sum(before) / max(1, sum(len(e.token_ids) for e in expected)),
        "score_error": float(np.mean(errors)) if errors else None,
    }


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _exact(actual: Sequence[Any], targets: Sequence[str]) -> float:
    return float(np.mean([best.text == target for best, target in zip(actual, targets, strict=True)]))


def line(precision: str, accuracy: dict[str, Any]) -> str:
    """One sentence for people."""
    parts = []
    for entry in accuracy["searches"]:
        exact = f", exact match {entry['exact_match']:.1%}" if "exact_match" in entry else ""
        exact += f" (fp32 {entry['exact_match_fp32']:.1%})" if exact else ""
        parts.append(
            f"{entry['equal']:.1%} with {entry['num_beams']} beam(s) in batches of {entry['batch_size']}{exact}"
        )
    where = f"{accuracy['n_sources']} sources ({accuracy['samples']})"
    low = any(entry["equal"] < LOW for entry in accuracy["searches"])
    return f"{precision} against the portable graphs on {where}: tokens equal in {'; '.join(parts)}" + (
        f"; {MEANING}" if low else ""
    )
