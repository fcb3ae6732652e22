"""What a device needs to know of a rule: the constants of its edit, and when it is active.

The kernel that reads it is `apply_rules` in plugins/beam_search/rules.cuh. A rule gives its form with `device_form`;
one that has none does not run on a device, and says so.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

ALWAYS = 2**31 - 1

Edited = Literal["ban", "add", "scale", "grow", "only"]
Rescaled = Literal["temperature", "remove_invalid", "renormalize"]
Filtered = Literal["top_k", "top_p", "top_h", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"]
Named = Literal["listed", "history", "source", "ngram", "source_ngram", "sequences"]


@dataclass(frozen=True)
class DeviceForm:
    """effect: the kinds of `rule.Edit`, what changes every score by itself, and what keeps some tokens of the whole
    distribution. named: which tokens an edit is about.

    first_length, last_length: tokens so far, prompt included, from and up to which the rule is active.
    n: of an n-gram; the k of top_k; how many tokens top_h looks at; how many the other filters keep at least.
    ids: the listed tokens.
    sequences: of each the last token is meant where the others end the text.
    amounts: of each mention (add), or of each length from `first_length` on (grow). amount: of scale, temperature; for
    top_p the share that is removed, for the other filters what their option says.
    """

    effect: Edited | Rescaled | Filtered
    named: Named = "listed"
    first_length: int = 0
    last_length: int = ALWAYS
    n: int = 0
    ids: tuple[int, ...] = ()
    sequences: tuple[tuple[int, ...], ...] = ()
    amounts: tuple[float, ...] = ()
    amount: float = 0.0


def distinct(ids: Iterable[int]) -> tuple[int, ...]:
    """Each id once, in order: a listed token is changed once however often it is named."""
    return tuple(dict.fromkeys(int(i) for i in ids))
