"""What a tokenizer puts around two texts that are read together, as manifest.json has it in `source.pair`.

    {"prefix": [101], "middle": [102], "suffix": [102], "second_type": 1}

Read from transformers' tokenizer object, as templates of single texts are (describe.py).
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from . import reference
from .check import SAMPLES
from .write import has_tokenizer, load_original

TRIED = (("a 1", "b 2 c"), (SAMPLES[2], SAMPLES[4]), (SAMPLES[6], SAMPLES[3]), (SAMPLES[0], SAMPLES[2]))


def pair_template(checkpoint: Path) -> dict[str, Any] | None:
    """None for a checkpoint without a tokenizer, or whose tokenizer does something else with two texts."""
    if not has_tokenizer(checkpoint) or reference.is_reference(checkpoint):
        return None
    tokenizer = load_original(checkpoint)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = _template(tokenizer, *TRIED[0])
        if found is None or any(not _follows(tokenizer, found, *pair) for pair in TRIED):
            return None
    return found


def _inner(tokenizer: Any, text: str) -> list[int]:
    found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return found


def _both(tokenizer: Any, first: str, second: str) -> tuple[list[int], list[int]]:
    """Ids and their types, 0 where the tokenizer gives none."""
    out = tokenizer(first, second)
    ids = list(out["input_ids"])
    return ids, list(out.get("token_type_ids") or [0] * len(ids))


def _template(tokenizer: Any, first: str, second: str) -> dict[str, Any] | None:
    ids, types = _both(tokenizer, first, second)
    a, b = _inner(tokenizer, first), _inner(tokenizer, second)
    places = [
        (i, j)
        for i in range(len(ids) - len(a) - len(b) + 1)
        for j in range(i + len(a), len(ids) - len(b) + 1)
        if ids[i : i + len(a)] == a and ids[j : j + len(b)] == b
    ]
    if not a or not b or not places:
        return None
    i, j = places[0]
    return {"prefix": ids[:i], "middle": ids[i + len(a) : j], "suffix": ids[j + len(b) :], "second_type": types[j]}


def _follows(tokenizer: Any, pair: dict[str, Any], first: str, second: str) -> bool:
    before = [*pair["prefix"], *_inner(tokenizer, first), *pair["middle"]]
    after = [*_inner(tokenizer, second), *pair["suffix"]]
    types = [0] * len(before) + [pair["second_type"]] * len(after)
    return pair["second_type"] in (0, 1) and _both(tokenizer, first, second) == (before + after, types)
