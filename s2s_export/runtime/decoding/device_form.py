"""What the search on a GPU needs to know about a rule: the constants of its edit, and when it is active.

The kernels of plugins/beam_search/rules.cuh and filters.cuh read it. `Rule.device_form` returns it; a rule without one
can't be used in a search on a GPU, which reports that.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

ALWAYS = 2**31 - 1

Edited = Literal["ban", "add", "scale", "grow", "only"]
Rescaled = Literal["temperature", "remove_invalid", "renormalize"]
Filtered = Literal["top_k", "top_p", "top_h", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"]
Ordered = Literal["times"]
Named = Literal["listed", "history", "source", "ngram", "source_ngram", "sequences"]


@dataclass(frozen=True)
class DeviceForm:
    """effect: a kind of `rule.Edit`, or a change of every score by itself, or a filter of the whole distribution, or
    the order of times, which plugins/beam_search/times.cuh explains.
    named: which tokens an edit changes.

    first_length, last_length: the rule is active between these lengths, both included, in tokens with the prompt.
    n: size of an n-gram; the k of top_k; how many tokens top_h considers; how many other filters keep at least.
    ids: the listed tokens.
    sequences: the last token of each is changed if the text ends with the tokens before it.
    amounts: for each mention (add), or for each length from `first_length` on (grow). amount: for scale and
    temperature; for top_p the share that is removed, for other filters the value of their option.
    """

    effect: Edited | Rescaled | Filtered | Ordered
    named: Named = "listed"
    first_length: int = 0
    last_length: int = ALWAYS
    n: int = 0
    ids: tuple[int, ...] = ()
    sequences: tuple[tuple[int, ...], ...] = ()
    amounts: tuple[float, ...] = ()
    amount: float = 0.0


def distinct(ids: Iterable[int]) -> tuple[int, ...]:
    """Each id once, in order: a token that is listed several times is changed once."""
    return tuple(dict.fromkeys(int(i) for i in ids))
