"""How far an engine changes an encoder's output: the engine and the portable graph encode the same texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..bundle import Bundle
from ..runtime.encoding import EncoderSession
from . import samples

N_SOURCES = 16
MOST_LINES = 512  # lines read of a samples file
MEANING = "judge it on your own texts, or build cpu-fp32"
LOW = {"cosine": 0.99, "equal": 0.9}  # below it a build says what to do


def measure(bundle: Bundle, folder: Path, engine: dict[str, Any], samples_path: str = "") -> dict[str, Any]:
    """What engine.json records: the least and mean cosine of the embeddings, or the share of equal best labels."""
    from ..runtime.backends.onnxruntime import OnnxRuntimeBackend

    portable = EncoderSession(bundle, OnnxRuntimeBackend(bundle, 1))
    fast = EncoderSession(bundle, OnnxRuntimeBackend(bundle, 1, engine, folder))
    sources, origin = samples.sources(bundle, MOST_LINES if samples_path else N_SOURCES, samples_path)
    found = {"samples": origin, "n_sources": len(sources)}
    if portable.head.task == "embedding":
        expected, actual = (session.encode(sources, normalize=True, batch_size=8) for session in (portable, fast))
        cosines = (expected * actual).sum(axis=1)
        return {**found, "cosine": float(cosines.mean()), "least_cosine": float(cosines.min())}
    if portable.head.task == "sequence_classification":
        pairs = [
            (a[0].label, b[0].label) for a, b in zip(portable.classify(sources), fast.classify(sources), strict=True)
        ]
    else:
        pairs = [
            (a.label, b.label)
            for one, other in zip(portable.tag(sources), fast.tag(sources), strict=True)
            for a, b in zip(one, other, strict=True)
        ]
    return {**found, "equal": float(np.mean([a == b for a, b in pairs]))}


def line(precision: str, accuracy: dict[str, Any]) -> str:
    """One sentence for people."""
    where = f"{precision} against the portable graph on {accuracy['n_sources']} sources ({accuracy['samples']})"
    if "cosine" in accuracy:
        said = f"cosine of the embeddings {accuracy['cosine']:.5f} on average, {accuracy['least_cosine']:.5f} at least"
    else:
        said = f"best labels equal in {accuracy['equal']:.1%}"
    is_low = any(accuracy.get(name, 1.0) < least for name, least in LOW.items())
    return f"{where}: {said}" + (f"; {MEANING}" if is_low else "")
