"""What a decoding rule says of a generation option that is its own. Rules are one file each in `rules/`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from .option_values import Convert

Range = tuple[Callable[[Any], bool], str]  # whether a value lies in it, and what was expected in words


@dataclass(frozen=True)
class Option:
    """A generation option, named as generate() names it.

    convert: what a value may be (option_values.py). default: transformers' own.
    example: a value that switches the rule on, with which it is checked on a GPU; None where it has no device form.
    kind: when the rule is active. "edit": in every search. "sampling": only when sampling. "filter": only when
        sampling, and it keeps a part of the distribution: rounding decides about a token at the very threshold.
    sampling_range: checked only when sampling, since a value outside it is harmless elsewhere, and common.
    token_ids: the token ids in a value, each of which must be in the vocabulary; None for an option without ids.
    reads_source: whether the rule reads the token ids of the source, which only some models have.
    """

    convert: Convert
    default: Any = None
    example: Any = None
    kind: Literal["edit", "sampling", "filter"] = "edit"
    sampling_range: Range | None = None
    token_ids: Callable[[Any], Iterable[int]] | None = None
    reads_source: bool = False


FROM_0_TO_1: Range = (lambda v: 0.0 <= v <= 1.0, "a number from 0 to 1")
ABOVE_0_TO_1: Range = (lambda v: 0.0 < v <= 1.0, "a number above 0 and at most 1")
