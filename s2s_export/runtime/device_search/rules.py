"""The decoding rules of a call as a device reads them: records, ids and amounts.

The rules are those of `decoding.rules`; each gives its own `DeviceForm`. One that has none is refused by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ... import plugin_sources
from ...errors import InvalidOption
from ..decoding import search_options
from ..decoding.device_form import ALWAYS, DeviceForm
from ..decoding.options import GenerationOptions
from ..decoding.rule import Rule
from ..decoding.rules import active, modules

MOST_RULES = 32
EDITS = "edits"
Chain = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class DeviceRules:
    """The rules in order. records: DeviceRule structures as bytes. reads_history, reads_sources: which tables they
    need. changes_choice: logits and log-probabilities have to be edited apart, see `Rule.shift_invariant`. only_bans:
    the rules do nothing but ban tokens, or allow no others. chain: which rules go into one launch, as (effect, first,
    end): EDITS for a run of rules that one launch applies; one that has launches of its own by itself.
    """

    n_rules: int
    records: NDArray[np.uint8]
    ids: NDArray[np.int32]
    amounts: NDArray[np.float32]
    reads_history: bool
    reads_sources: bool
    changes_choice: bool
    only_bans: bool
    chain: Chain


def serialise(options: GenerationOptions, vocabulary_size: int) -> DeviceRules:
    """The rules that these options switch on. Raises InvalidOption for those without a device form, all together, and
    for options of the search that only the host's has."""
    rules = active(options, vocabulary_size)
    forms = [rule.device_form(options.max_length) for rule in rules]
    missing = [_option(rule) for rule, form in zip(rules, forms, strict=True) if form is None]
    missing += search_options.in_use(options)
    if missing:
        raise InvalidOption(
            f"{', '.join(missing)} can't be applied on a device; expected options whose rules have a device form "
            f"({', '.join(with_form())}); leave it out, or load with search='host'"
        )
    structures = plugin_sources.module("beam_search.structures")
    records = bytearray()
    ids: list[int] = []
    amounts: list[float] = []
    for form in forms:
        assert form is not None
        words = _words(form)
        records += bytes(
            structures.DeviceRule(
                effect=structures.EFFECTS.index(form.effect),
                which=structures.NAMED.index(form.named),
                first_length=min(form.first_length, ALWAYS),  # what is beyond that is beyond every text
                last_length=min(form.last_length, ALWAYS),
                n=max(map(len, form.sequences)) if form.sequences else min(form.n, ALWAYS),
                first_id=len(ids),
                count=len(form.sequences) or len(form.ids),
                first_amount=len(amounts),
                amount=form.amount,
            )
        )
        ids += words
        amounts += form.amounts
    with np.errstate(over="ignore"):
        as_floats = np.asarray(amounts, np.float64).astype(np.float32)
    return DeviceRules(
        n_rules=len(forms),
        records=np.frombuffer(bytes(records), np.uint8),
        ids=np.asarray(ids, np.int32),
        amounts=as_floats,
        reads_history=any(rule.reads_history for rule in rules),
        reads_sources=any(form is not None and form.named.startswith("source") for form in forms),
        changes_choice=not all(rule.shift_invariant for rule in rules),
        only_bans=all(form is not None and form.effect in ("ban", "only") for form in forms),
        chain=_chain([form.effect for form in forms if form is not None]),
    )


def _chain(effects: Sequence[str]) -> Chain:
    """Where one launch applies all rules, the chain does not depend on how many there are, so that plans with and
    without one more rule are equal."""
    split = plugin_sources.module("beam_search.loop_launches").SPLIT
    if not set(effects) & set(split):
        return ((EDITS, 0, ALWAYS),) if effects else ()
    links: list[tuple[str, int, int]] = []
    for i, effect in enumerate(effects):
        if effect in split:
            links.append((effect, i, i + 1))
        elif links and links[-1][0] == EDITS:
            links[-1] = (EDITS, links[-1][1], i + 1)
        else:
            links.append((EDITS, i, i + 1))
    return tuple(links)


def _words(form: DeviceForm) -> list[int]:
    """A form's ids; or its sequences as records of equal length: the sequence's length, its tokens, then -1."""
    if not form.sequences:
        return list(form.ids)
    width = max(map(len, form.sequences))
    return [i for word in form.sequences for i in (len(word), *word, *[-1] * (width - len(word)))]


def _option(rule: Rule) -> str:
    return type(rule).__module__.rpartition(".")[2]


def with_form() -> list[str]:
    """Rules that run on a device, by their files' names."""
    return [name for name, has_form in forms().items() if has_form]


def forms() -> dict[str, bool]:
    """By the name of a rule's file: whether the rule has a device form."""
    found = {}
    for module in modules():
        classes = [c for c in vars(module).values() if isinstance(c, type) and c.__module__ == module.__name__]
        rules = [c for c in classes if issubclass(c, Rule)]
        found[module.__name__.rpartition(".")[2]] = any(c.device_form is not Rule.device_form for c in rules)
    return found
