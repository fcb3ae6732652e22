"""Sampling: the right distribution, from a seed and nothing else."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from scripted import ScriptedState

from s2s_export.runtime.decoding import GenerationOptions, decode, resolve
from s2s_export.runtime.decoding.beams import best_of_all
from s2s_export.runtime.decoding.draws import Draws, exponential_numbers

WORDS = 6
START, END = 0, 1
# A chi-square this far out has a probability below 1e-5 for up to 35 degrees of freedom. Seeds are fixed, so a test
# that passes once passes always.
TOO_FAR = 80.0


def options_of(**given: Any) -> GenerationOptions:
    defaults = {"decoder_start_token_id": START, "eos_token_id": END, "pad_token_id": START, "do_sample": True}
    return resolve(defaults, {"top_k": 0, **given}, vocabulary_size=WORDS)


def script(source: int, text: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng([7, *text]).normal(0, 1, WORDS)


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def chi_square(counts: Counter[Any], probabilities: dict[Any, float]) -> float:
    n = sum(counts.values())
    assert set(counts) <= set(probabilities)
    return sum((counts[key] - n * p) ** 2 / (n * p) for key, p in probabilities.items())


def test_rows_are_drawn_from_the_distribution_of_the_model() -> None:
    n_sources, n_rows = 60, 50
    options = options_of(num_return_sequences=n_rows, max_new_tokens=2, seed=3)
    found = decode(ScriptedState(script, n_sources, n_rows, WORDS), [[]] * n_sources, options)
    counts = Counter(tuple(h.token_ids[1:]) for hypotheses in found for h in hypotheses)
    first = softmax(script(0, (START,)))
    wanted: dict[tuple[int, ...], float] = {(END,): first[END]}
    for a, b in itertools.product(range(WORDS), repeat=2):
        if a != END:
            wanted[(a, b)] = first[a] * softmax(script(0, (START, a)))[b]
    assert sum(counts.values()) == n_sources * n_rows
    assert chi_square(counts, wanted) < TOO_FAR


def test_temperature_and_top_k_shape_the_distribution() -> None:
    n_rows = 2000
    options = options_of(num_return_sequences=n_rows, max_new_tokens=1, seed=4, temperature=0.5, top_k=3)
    found = decode(ScriptedState(script, 1, n_rows, WORDS), [[]], options)[0]
    logits = script(0, (START,)) / 0.5
    logits[np.argsort(-logits)[3:]] = -np.inf
    wanted = {(START, t): p for t, p in enumerate(softmax(logits)) if p > 0}
    assert chi_square(Counter(tuple(h.token_ids) for h in found), wanted) < TOO_FAR


def test_draws_without_replacement_have_the_right_distribution() -> None:
    """Pairs (first, second) against p(a) * p(b) / (1 - p(a))."""
    logits = np.log(np.array([0.4, 0.3, 0.2, 0.1, 0.0]) + 1e-45).astype(np.float32)
    logits[4] = -np.inf
    n = 4000
    draws = Draws(5, range(n))
    pairs = best_of_all(draws.race(np.tile(logits, (n, 1)), np.arange(n), 1), 2)
    p = softmax(logits)
    wanted = {(a, b): p[a] * p[b] / (1 - p[a]) for a, b in itertools.permutations(range(4), 2)}
    assert chi_square(Counter(map(tuple, pairs.tolist())), wanted) < TOO_FAR


def test_exponential_numbers_are_logarithms_of_uniform_ones() -> None:
    """Down to the smallest: those are what a race is won with."""
    bits = np.random.default_rng(0).integers(0, 2**64, 1000, np.uint64)
    bits[:4] = 0, 2**63, 2**64 - 1, 2**64 - 2**20
    wanted = []
    for number in bits.tolist():
        k = number >> 11
        wanted.append(-math.log((k + 0.5) / 2**53) if k < 2**52 else -math.log1p(-(2**53 - k - 0.5) / 2**53))
    np.testing.assert_allclose(exponential_numbers(bits), wanted, 3e-7)


def test_what_cannot_be_drawn_from_gives_the_last_token() -> None:
    scores = np.array([[[-np.inf] * 3, [np.nan, 1.0, 2.0], [0.0, np.inf, -1.0], [0.0, 0.0, -np.inf]]], np.float32)
    found = [Draws(seed, [0]).one_each(scores, np.array([0]), 1)[0].tolist() for seed in range(20)]
    assert all(tokens[:3] == [2, 2, 2] for tokens in found) and {tokens[3] for tokens in found} == {0, 1}


def test_impossible_candidates_follow_where_too_few_are_possible() -> None:
    scores = np.array([[-np.inf, 0.0, -np.inf, -1.0]], dtype=np.float32)
    found = best_of_all(Draws(0, [0]).race(scores, np.array([0]), 1), 3)[0].tolist()
    assert set(found[:2]) == {1, 3} and len(set(found)) == 3


@pytest.mark.parametrize("given", [{"num_return_sequences": 3}, {"num_beams": 3, "num_return_sequences": 2}])
def test_a_seed_decides_and_the_batch_does_not(given: dict[str, Any]) -> None:
    def outputs(numbers: list[int], seed: int | None, leave_early: bool = True) -> list[list[list[int]]]:
        options = options_of(max_new_tokens=8, seed=seed, **given)
        state = ScriptedState(lambda source, text: script(0, text), len(numbers), options.n_rows, WORDS)
        sources: list[list[int]] = [[]] * len(numbers)
        found = decode(state, sources, options, source_numbers=numbers, leave_early=leave_early)
        return [[h.token_ids for h in hypotheses] for hypotheses in found]

    together = outputs([0, 1, 2, 3, 4], 11)
    assert together == outputs([0, 1, 2, 3, 4], 11, leave_early=False)
    assert [outputs([n], 11)[0] for n in range(5)] == together
    assert outputs([4, 2], 11) == [together[4], together[2]]
    assert outputs([0, 1, 2, 3, 4], 12) != together
    assert len({str(o) for o in together}) > 1
    assert outputs(list(range(20)), None) != outputs(list(range(20)), None)


def test_a_sampled_output_is_scored_as_a_beam_is() -> None:
    options = options_of(num_return_sequences=4, max_new_tokens=6, seed=1, length_penalty=0.5)
    for hypothesis in decode(ScriptedState(script, 1, 4, WORDS), [[]], options)[0]:
        text = hypothesis.token_ids
        wanted = [np.log(softmax(script(0, tuple(text[:i])))[text[i]]) for i in range(1, len(text))]
        np.testing.assert_allclose(hypothesis.token_scores, wanted, atol=1e-5)
        assert hypothesis.score == pytest.approx(sum(wanted) / len(wanted) ** 0.5, abs=1e-5)


def test_beam_sampling_follows_its_distribution() -> None:
    """The best of two beams after one token: each pair of candidates has a known probability."""
    n = 3000
    options = options_of(num_beams=2, max_new_tokens=1, seed=2, length_penalty=0.0)
    found = decode(ScriptedState(script, n, 2, WORDS), [[]] * n, options)
    # Four candidates are drawn in order, the first two may finish, and the better of them wins.
    p = softmax(script(0, (START,)))
    wanted = dict.fromkeys(((START, t) for t in range(WORDS)), 0.0)
    for a, b in itertools.permutations(range(WORDS), 2):
        wanted[(START, a if p[a] > p[b] else b)] += p[a] * p[b] / (1 - p[a])
    counts = Counter(tuple(hypotheses[0].token_ids) for hypotheses in found)
    assert chi_square(counts, {key: value for key, value in wanted.items() if value > 0}) < TOO_FAR
