"""Tries a new engine: it decodes the samples that were prepared, and its tokens are compared with the portable graphs'.

Needs numpy and the engine's own library. The samples are one .npz file without pickled objects: source.<i> is what the
model reads, and tokens.<search>.<i> what each of `SEARCHES` gave for it.
"""

from __future__ import annotations

import dataclasses
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..bundle import Bundle
from ..errors import BuildError, S2SError
from ..runtime.backends import Backend
from ..runtime.session import Session
from ..runtime.sources import Source, kind_of

BEAMS = (1, 4)
MAX_NEW_TOKENS = 48
LOW = 0.9  # share of sources with equal tokens below which a build says what that means
MEANING = (
    "that is low: where it differs, the lower precision chose another token and the rest of the text followed it. "
    "Judge the texts, or give samples like your own (--samples), or build another precision"
)


def write(bundle: Bundle, backend: Backend, sources: Sequence[Source], limits: dict[str, int], file: Path) -> int:
    """Decodes with the portable graphs and writes `file`. limits: most beams, source length and target length of the
    engine. Returns the number of sources."""
    kind = kind_of(bundle)
    fitting = [source for source in sources if kind.length(source) <= limits["S"]] or list(sources[:1])
    arrays: dict[str, Any] = {f"source.{i}": np.asarray(source) for i, source in enumerate(fitting)}
    for beams, found in _decode(bundle, backend, fitting, [k for k in BEAMS if k <= limits["K"]], limits["T"]).items():
        arrays |= {f"tokens.{beams}.{i}": np.asarray(ids, np.int64) for i, ids in enumerate(found)}
    np.savez_compressed(file, **arrays)
    return len(fitting)


def run(bundle: Bundle, backend: Backend, file: Path, target_length: int) -> dict[str, Any]:
    """What engine.json records: for each number of beams the share of sources whose tokens are equal.

    Raises BuildError where the engine fails, or gives other tokens for every source.
    """
    sources, expected = _read(bundle, file)
    try:
        found = _decode(bundle, backend, sources, list(expected), target_length)
    except S2SError as error:
        raise BuildError(
            f"the engine was compiled, but fails on the samples ({error}); the older one is untouched; run s2s doctor"
        ) from error
    searches = []
    for beams, wanted in expected.items():
        same = [list(a) == list(b) for a, b in zip(wanted, found[beams], strict=True)]
        searches.append({"num_beams": beams, "equal": float(np.mean(same))})
    if not any(entry["equal"] for entry in searches):
        raise BuildError(
            f"the engine gives other tokens than the portable graphs for all {len(sources)} samples, expected equal "
            "ones for most; it computes something else; the older engine is untouched; build another precision, or "
            "report this with the output of s2s doctor"
        )
    return {"n_sources": len(sources), "searches": searches}


def line(trial: dict[str, Any]) -> str:
    """One sentence for people."""
    shares = ", ".join(f"{entry['equal']:.1%} with {entry['num_beams']} beam(s)" for entry in trial["searches"])
    low = min(entry["equal"] for entry in trial["searches"]) < LOW
    return f"run on this GPU: tokens equal to the portable graphs' for {shares} of {trial['n_sources']} samples" + (
        f"; {MEANING}" if low else ""
    )


def _decode(
    bundle: Bundle, backend: Backend, sources: Sequence[Source], beams: Sequence[int], target_length: int
) -> dict[int, list[Any]]:
    # Ids go in and come out, so that the tokenizers' libraries are not needed.
    bare = dataclasses.replace(bundle, manifest={**bundle.manifest, "tokenizer": None})
    session = Session(bare, backend)
    limit = max(1, min(MAX_NEW_TOKENS, target_length - 1, (bundle.max_target_length or MAX_NEW_TOKENS + 1) - 1))
    found = {}
    for n_beams in beams:
        options = session.options(num_beams=n_beams, do_sample=False, max_new_tokens=limit)
        found[n_beams] = [best[0].token_ids for best in session.decode(sources, options)]
    return found


def _read(bundle: Bundle, file: Path) -> tuple[list[Source], dict[int, list[Any]]]:
    has_ids = kind_of(bundle).has_ids
    try:
        with np.load(file, allow_pickle=False) as arrays:
            n_sources = sum(name.startswith("source.") for name in arrays.files)
            stored = [arrays[f"source.{i}"] for i in range(n_sources)]
            expected = {
                beams: [arrays[f"tokens.{beams}.{i}"].tolist() for i in range(n_sources)]
                for beams in BEAMS
                if f"tokens.{beams}.0" in arrays.files
            }
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise BuildError(f"{file}: not readable as samples ({error}); prepare the target again") from error
    if not n_sources or not expected:
        raise BuildError(f"{file}: holds no samples; prepare the target again")
    return [array.tolist() if has_ids else array for array in stored], expected
