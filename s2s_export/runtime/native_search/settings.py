"""What the search in C++ is told about a call, and which calls it doesn't serve."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import plugin_sources
from ...errors import InvalidOption
from ..decoding.generation_options import GenerationOptions
from ..decoding.rule import NO_TOKEN
from ..device_search.rules import DeviceRules, serialise
from ..native_graphs.library import Settings, address

MOST_REMEMBERED = 64
EDITS = ("ban", "add", "scale", "grow", "only")
NORMALISES = "renormalize"
TIMES = "times"


@dataclass(frozen=True)
class Prepared:
    """Everything that is the same for each batch with these options, or the reason why there is nothing.

    whole: whether the search reads the whole distribution, to which then all rules are applied. It always can, and must
    where there is a rule of times. Where it renormalises, its last bits are others than those from a few tokens.
    """

    why_not: str = ""
    whole: bool = False
    rules: DeviceRules | None = None
    prompt: NDArray[np.int64] | None = None
    end_ids: NDArray[np.int64] | None = None
    length_divisor: NDArray[np.float32] | None = None


@lru_cache(maxsize=MOST_REMEMBERED)
def prepare(options: GenerationOptions, vocabulary_size: int, whole: bool = False) -> Prepared:
    """whole: of `Prepared`, for options that leave the choice."""
    if reason := _why_not(options, vocabulary_size):
        return Prepared(reason)
    try:
        rules = serialise(options, vocabulary_size)
    except InvalidOption as error:
        return Prepared(str(error).split(" can't be applied on a device")[0] + ": only numpy's search has it")
    effects = _effects(rules)
    if reason := _why_not_effects(effects):
        return Prepared(reason)
    n_prompt = len(options.prompt)
    try:
        lengths = [1.0, *(float(n) ** options.length_penalty for n in range(1, options.max_length - n_prompt + 1))]
    except OverflowError:
        return Prepared("length_penalty takes lengths out of a float's range")
    with np.errstate(over="ignore", under="ignore"):
        divisor = np.asarray(lengths, dtype=np.float64).astype(np.float32)
    return Prepared(
        whole=whole or TIMES in effects,
        rules=rules,
        prompt=np.asarray(options.prompt, dtype=np.int64),
        end_ids=np.asarray(options.eos_token_id, dtype=np.int64),
        length_divisor=divisor,
    )


def _why_not(options: GenerationOptions, vocabulary_size: int) -> str:
    """The reason why numpy's search is needed, or nothing."""
    if options.do_sample:
        return "do_sample draws from the whole distribution"
    if options.num_beams == 1 and options.n_rows != 1:
        return "several rows of greedy search"
    if not options.prompt:
        return "there is no decoder prompt"
    if options.timestamp_begin is not None and not 0 < options.timestamp_begin < vocabulary_size:
        return "the first token is a time"
    if max(2, 1 + len(options.eos_token_id)) > vocabulary_size:
        return "nearly all tokens are end tokens"
    return ""


def _effects(rules: DeviceRules) -> list[str]:
    structures = plugin_sources.module("beam_search.structures")
    size = ctypes.sizeof(structures.DeviceRule)
    return [
        structures.EFFECTS[structures.DeviceRule.from_buffer_copy(rules.records, at).effect]
        for at in range(0, rules.n_rules * size, size)
    ]


def _why_not_effects(effects: list[str]) -> str:
    before = effects[:-1] if effects and effects[-1] == NORMALISES else effects
    whole = [effect for effect in before if effect not in (*EDITS, TIMES)]
    return f"{', '.join(whole)} changes the whole distribution" if whole else ""


def padded(sources: Sequence[Sequence[int]]) -> NDArray[np.int32]:
    """[B, S], filled up with NO_TOKEN."""
    out = np.full((len(sources), max(map(len, sources), default=0)), NO_TOKEN, dtype=np.int32)
    for row, source in zip(out, sources, strict=True):
        row[: len(source)] = source
    return out


def settings(
    prepared: Prepared,
    options: GenerationOptions,
    sources: Sequence[Sequence[int]],
    vocabulary_size: int,
    *,
    keeps_history: bool,
    leave_early: bool,
) -> tuple[Settings, tuple[Any, ...]]:
    """S2SSettings, and the arrays that it points to."""
    rules = prepared.rules
    if rules is None or prepared.prompt is None or prepared.end_ids is None or prepared.length_divisor is None:
        raise ValueError(f"the search in C++ does not serve these options: {prepared.why_not}")
    of_sources = padded(sources if rules.reads_sources else [()] * len(sources))
    records = rules.records
    arrays = (
        prepared.prompt, prepared.end_ids, prepared.length_divisor, records, rules.ids, rules.amounts, of_sources,
    )  # fmt: skip
    is_beam_search = options.num_beams > 1
    keeps_history = keeps_history or rules.reads_history
    fill = options.pad_token_id if options.pad_token_id is not None else (*options.eos_token_id, 0)[0]
    numbers = (
        len(sources), options.n_rows, vocabulary_size, len(prepared.prompt), len(prepared.end_ids),
        options.max_length, rules.n_rules, len(rules.ids), len(rules.amounts), of_sources.shape[1],
        is_beam_search, options.early_stopping is True,
        options.early_stopping == "never" and options.length_penalty > 0.0,
        not is_beam_search and rules.changes_choice, keeps_history, leave_early, fill,
        prepared.whole,
    )  # fmt: skip
    return Settings(*(address(array) for array in arrays), *map(int, numbers)), arrays
