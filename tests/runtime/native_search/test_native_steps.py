"""The search in C++ gives numpy's results bit for bit, whatever the options and the distributions."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
from random_searches import HashedState, random_options, random_sources

from s2s_export import plugin_sources
from s2s_export.errors import BuildError
from s2s_export.runtime.decoding import Imprecise, decode
from s2s_export.runtime.decoding.watch import Watch
from s2s_export.runtime.native_graphs import library
from s2s_export.runtime.native_search import PYTHON, STEPS, NativeSearches, TooMany

try:
    library.load()
except BuildError as missing:  # pragma: no cover
    pytest.skip(str(missing).splitlines()[0], allow_module_level=True)

KINDS = ("smooth", "ties", "sharp", "broken")


def outcome(seed: int, make: Any) -> Any:
    """What a random search gives: its hypotheses and everything that it told on the way, or that it is imprecise."""
    chance = random.Random(seed)
    size = chance.choice([5, 11, 40, 90])
    options, sources = random_options(chance, size), random_sources(chance, size)
    state = HashedState(chance.choice(KINDS), seed, len(sources), options.n_rows, size)
    watch = Watch(state, 0, chance.randrange(size), is_last=len(options.prompt) == 1)
    alignments = chance.choice([False, False, True, "heads"])
    watches, leaves_at, leave_early = chance.random() < 0.5, chance.choice([99, 99, 2]), chance.random() < 0.8
    told: list[Any] = []

    def wanted(source: int) -> bool:
        return source % 2 == 0 or state.n_steps < leaves_at

    try:
        found = decode(
            chance.choice([state, watch]), sources, options, alignments=alignments, leave_early=leave_early,
            on_prefix=(lambda source, tokens: told.append((source, tokens))) if watches else None,
            wanted=wanted if leaves_at < 99 else None, sparse_sums=chance.random() < 0.7, make=make,
        )  # fmt: skip
    except TooMany:
        raise
    except Imprecise:
        return "imprecise"
    return [[plain(one) for one in of_source] for of_source in found], told, watch.log_probs.tobytes()


def plain(hypothesis: Any) -> tuple[Any, ...]:
    """With the bits of every number, so that NaN equals NaN."""
    heads = hypothesis.alignment_heads
    return (
        hypothesis.token_ids,
        np.float64(hypothesis.score).tobytes(),
        np.asarray(hypothesis.token_scores, np.float64).tobytes(),
        None if hypothesis.alignment is None else hypothesis.alignment.tobytes(),
        None if heads is None else heads.tobytes(),
    )


def compare(seeds: range) -> Counter[str]:
    """Raises AssertionError at the first difference. Returns how many searches each implementation made."""
    native = NativeSearches()
    with np.errstate(all="ignore"):
        for seed in seeds:
            assert outcome(seed, native.make) == outcome(seed, None), f"seed {seed}"
    return native.counts


def test_random_searches_are_equal() -> None:
    counts = compare(range(400))
    assert counts[STEPS] > 300 and counts[PYTHON] > 3


def rule(**fields: int) -> Any:
    return plugin_sources.module("beam_search.structures").DeviceRule(last_length=9, **fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"which": 3, "n": 0}, {"which": 4, "n": -5}, {"which": 6}, {"which": -1}, {"count": 4}, {"count": -1},
        {"first_id": -1, "count": 1}, {"first_id": 2**31 - 1, "count": 2**31 - 1}, {"which": 5, "n": 1, "count": 2},
        {"which": 5, "n": 2, "count": 1, "first_id": 1}, {"effect": 1, "count": 1}, {"effect": 1, "which": 1},
        {"effect": 3, "first_length": 2, "count": 1}, {"effect": 1, "count": 1, "first_amount": -1},
    ],
    ids=str,
)  # fmt: skip
def test_a_rule_that_would_read_beyond_what_it_is_given_is_refused(fields: dict[str, int]) -> None:
    found = library.load()
    prompt, ends, divisors = np.array([2]), np.array([1]), np.ones(9, np.float32)
    ids, given, sources = np.array([1, 3, 4], np.int32), rule(**fields), np.zeros((1, 1), np.int32)
    pointers = [prompt, ends, divisors, np.frombuffer(bytes(given), np.uint8), ids, divisors[:0].copy(), sources]
    numbers = {"n_sources": 1, "n_rows": 1, "vocabulary": 9, "prompt_length": 1, "n_end": 1, "max_length": 9}
    settings = library.Settings(*map(library.address, pointers), **numbers, n_rules=1, n_ids=3, source_width=1)
    assert found.s2s_search_new(settings) is None
    assert "a decoding rule names ids or amounts that were not given" in library.error(found)


def test_a_number_of_more_bits_than_its_field_is_refused() -> None:
    with pytest.raises(OverflowError, match="n is 2147483648, expected at most 32 bits"):
        rule(n=2**31)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_hundred_thousand_random_searches_are_equal() -> None:
    assert compare(range(1000, 101_000))[STEPS] > 80_000
