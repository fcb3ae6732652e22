"""What [options] of a GPU target may say, checked in one place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ...errors import InvalidOption, UnknownOption
from ...recipes import Recipe

OVERFLOW_TYPES = ("fp32", "bf16")


@dataclass(frozen=True)
class LoweringOptions:
    """attention: the step gives cross-attention weights as well, for alignments.
    decompose_attention: attention for which the library has no kernel may be taken apart into products.
    overflow: what a node whose values do not fit fp16 computes in.
    margin: how much larger than on the samples a value may become before it no longer fits.
    quantize_head: the output projection is quantised as well (int8, fp8).
    min_agreement: the least share of steps whose best token must equal fp32's on the samples; a build below it fails.
    n_samples, n_steps: sources that are decoded to measure, and how far.
    samples: a file of sources, a line each, what follows a tab left out. Sources like those to be translated give
    better int8 scales than the sentences that are used without it.
    """

    attention: bool = False
    decompose_attention: bool = True
    overflow: str = "fp32"
    margin: float = 4.0
    quantize_head: bool = False
    min_agreement: float = 0.0
    n_samples: int = 16
    n_steps: int = 24
    samples: str = ""


def read(recipe: Recipe) -> LoweringOptions:
    """Raises UnknownOption, InvalidOption with all that is wrong."""
    known = {field.name: field.default for field in fields(LoweringOptions)}
    for name in recipe.options:
        if name not in known:
            raise UnknownOption(name, known, f"option of target '{recipe.name}':")
    if wrong := list(_wrong(recipe.options, known)):
        raise InvalidOption(f"target '{recipe.name}': {'; '.join(wrong)}")
    return LoweringOptions(**recipe.options)


def _wrong(given: Mapping[str, Any], known: Mapping[str, Any]) -> list[str]:
    wrong = []
    for name, value in given.items():
        default = known[name]
        if isinstance(default, bool):
            fits, expected = isinstance(value, bool), "true or false"
        elif name == "samples":
            fits, expected = isinstance(value, str) and (not value or Path(value).is_file()), "the path of a file"
        elif name == "overflow":
            fits, expected = value in OVERFLOW_TYPES, f"one of {', '.join(OVERFLOW_TYPES)}"
        elif isinstance(default, int):
            fits, expected = isinstance(value, int) and not isinstance(value, bool) and value >= 1, "at least 1"
        else:
            low, high = (1.0, 1000.0) if name == "margin" else (0.0, 1.0)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            fits, expected = number and low <= value <= high, f"a number from {low:g} to {high:g}"
        if not fits:
            wrong.append(f"{name} is {value!r}, expected {expected}")
    return wrong
