"""The loop on the emulated device against the definition, `decoding.decode`: same texts, same scores.

Both see the same log-probabilities to the last bit (`KernelState`), so ties fall alike and scores are equal, not close.
Where a rule or a draw takes a softmax of its own, numpy's and the kernel's sums differ in the last place.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
from device_helpers import (
    DTYPES,
    by_definition,
    loop_launches,
    missing_compiler,
    on_device,
    random_options,
    random_script,
    random_sources,
    resolved,
    schedule,
)

from s2s_export.runtime.decoding import Hypothesis
from s2s_export.runtime.device_search.rules import serialise

if missing_compiler():
    pytest.skip(str(missing_compiler()), allow_module_level=True)

MODES = ("while", "replay", "queue")
KINDS = ("plain", "ties", "eager", "masked")
FILTERS = {
    "top_h": [0.3, 0.7],
    "min_p": [0.02, 0.3],
    "typical_p": [0.3, 0.9],
    "epsilon_cutoff": [0.01, 0.2],
    "eta_cutoff": [0.01, 0.2],
}


def compare(seed: int, sizes: tuple[int, ...] = (12, 23, 40), **fixed: Any) -> int:
    """A random call both ways, with its prefixes. sizes: of vocabularies. Returns the number of hypotheses."""
    chance = random.Random(seed)
    vocabulary_size = chance.choice(sizes)
    chosen = random_options(chance, vocabulary_size, **fixed)
    if chosen["do_sample"]:
        chosen |= {"seed": chance.randrange(2**64), "top_k": chance.choice([0, 0, 1, 3, 50])}
        if chance.random() < 0.5:
            chosen["temperature"] = chance.choice([0.5, 1.3, 2.0])
        if chance.random() < 0.5:
            chosen["top_p"] = chance.choice([0.0, 0.3, 0.7, 0.95])
        for name in chance.sample(sorted(FILTERS), chance.choice([0, 1, 1, 2])):
            chosen[name] = chance.choice(FILTERS[name])
        chosen.pop("remove_invalid_values", None)  # the largest float, divided by a temperature, is a numpy warning
    if chosen.get("remove_invalid_values"):
        chosen.pop("exponential_decay_length_penalty", None)  # grows the largest float: infinite minus infinite
    options = resolved(chosen, vocabulary_size)
    sources = random_sources(chance, chance.randint(1, 3), vocabulary_size)
    kind, element = chance.choice(KINDS), chance.choice(list(DTYPES))
    if kind == "ties" and options.num_beams == 1 and serialise(options, vocabulary_size).changes_choice:
        kind = "plain"  # the definition makes logits of log-probabilities, which splits equal ones by rounding
    script = random_script(seed, vocabulary_size, options.eos_token_id, kind, element)
    numbers = [chance.randrange(1000) for _ in sources]
    told: tuple[list[Any], list[Any]] = ([], [])
    given = {"source_numbers": numbers}
    wants_prefixes = chance.random() < 0.3
    schedule(seed)
    expected = by_definition(
        script, sources, options, vocabulary_size, element, **given,
        on_prefix=(lambda *news: told[0].append(news)) if wants_prefixes else None,
    )  # fmt: skip
    found = on_device(
        script, sources, options, vocabulary_size, element, **given, mode=chance.choice(MODES),
        on_prefix=(lambda *news: told[1].append(news)) if wants_prefixes else None,
    )  # fmt: skip
    what = f"seed {seed}: {kind} {element} {chosen}"
    for ours, theirs in zip(found, expected, strict=True):
        for mine, wanted in zip(ours, theirs, strict=True):
            check(mine, wanted, what)
    # Where a text may go on with nothing, what is told of it comes to nothing.
    real = {source for source, of in enumerate(expected) if of[0].score > -1e9}
    ours, theirs = ([(source, tokens) for source, tokens in news if source in real] for news in told[::-1])
    assert joined(ours) == joined(theirs), what
    return sum(map(len, expected))


def check(mine: Hypothesis, wanted: Hypothesis, what: str) -> None:
    assert mine.token_ids == wanted.token_ids, what
    assert (mine.score, mine.token_scores) == (wanted.score, wanted.token_scores), what


def joined(told: list[tuple[int, list[int]]]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for source, tokens in told:
        found.setdefault(source, []).extend(tokens)
    return found


@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(4, 8))])
def test_searches(seed: int) -> None:
    assert sum(compare(1000 * seed + i) for i in range(12)) >= 12


@pytest.mark.parametrize("beams", [1, 2, 3, 5, 7, 11, 16])
def test_numbers_of_beams(beams: int) -> None:
    compare(7000 + 20 * beams, num_beams=beams, max_new_tokens=4, eos_token_id=[2, 5])


@pytest.mark.parametrize("beams", [1, 3])
def test_draws(beams: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(6):
        if i == 4:  # from here on tokens are cut into slices by filters, as those of a real vocabulary are
            monkeypatch.setattr(loop_launches, "FILTER_SLICE", 9)
        options = {"top_k": 9, "top_p": 0.9, "typical_p": 0.8} if i % 2 else {}
        compare(9000 + 100 * beams + i, num_beams=beams, do_sample=True, max_new_tokens=3, **options)


def test_all_but_one_token_end() -> None:
    everything = list(range(1, 12))  # a step looks at one candidate a beam more than there are end tokens
    script = random_script(3, 12, tuple(everything), "ties")
    for beams in (1, 2, 5):
        chosen = {"num_beams": beams, "max_new_tokens": 5, "eos_token_id": everything, "decoder_start_token_id": 1}
        options = resolved(chosen, 12)
        expected = by_definition(script, [[3]], options, 12)
        assert [h.token_ids for h in on_device(script, [[3]], options, 12)[0]] == [h.token_ids for h in expected[0]]


def test_prefixes_come_step_by_step() -> None:
    """With a graph a step, a token is told before the search has ended."""
    options = resolved({"max_new_tokens": 8, "eos_token_id": [2], "decoder_start_token_id": 1}, 23)
    script = random_script(5, 23, (), "plain")
    told: list[list[int]] = []
    found = on_device(script, [[4]], options, 23, mode="replay", on_prefix=lambda _, tokens: told.append(tokens))
    assert [token for tokens in told for token in tokens] == found[0][0].token_ids
    assert len(told) > 3


@pytest.mark.slow
def test_many_searches() -> None:
    for seed in range(100_000, 103_000):
        compare(seed)


@pytest.mark.slow
def test_many_draws() -> None:
    for seed in range(200_000, 200_300):
        compare(seed, do_sample=True, max_new_tokens=4)
    for seed in range(201_000, 201_020):  # drawn from several slices
        compare(seed, sizes=(1100, 2100), do_sample=True, max_new_tokens=3)
