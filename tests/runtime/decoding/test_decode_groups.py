"""Diverse beam search, alternatives at a position, patience, coverage, length ratios, stop strings."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from decoding_models import TorchState, tiny_model
from exhaustive import END, START, WORDS, every_output, log_softmax, options_of, random_script
from scripted import ScriptedState

from s2s_export.errors import InvalidOption
from s2s_export.runtime.decoding import Hypothesis, decode, resolve
from s2s_export.runtime.decoding import chain as chain_module
from s2s_export.runtime.decoding.option_values import StopStrings


def found_with(script: Any, n_sources: int = 1, **given: Any) -> list[list[Hypothesis]]:
    options = options_of(**given)
    return decode(ScriptedState(script, n_sources, options.n_rows, WORDS), [[2, 3]] * n_sources, options)


def plain_groups(
    script: Any, source: int, n_groups: int, size: int, penalty: float, n_tokens: int, length_penalty: float
) -> list[tuple[float, list[int]]]:
    """Diverse beam search of one source, in lists. A group that can't improve its pool takes no tokens any more."""
    beams = [[(0.0, [START])] for _ in range(n_groups)]
    pools: list[list[tuple[float, list[int]]]] = [[] for _ in range(n_groups)]
    is_done = [False] * n_groups
    for n in range(1, n_tokens + 1):
        taken: list[int] = []
        for g in range(n_groups):
            candidates = []
            for total, text in beams[g]:
                scores = log_softmax(script(source, tuple(text)))
                candidates += [
                    (total + scores[token] - penalty * taken.count(token), [*text, token]) for token in range(WORDS)
                ]
            candidates = sorted(candidates, key=lambda pair: -pair[0])[: 2 * size]
            pools[g] += [
                (total / n**length_penalty, text)
                for total, text in candidates[:size]
                if text[-1] == END or n == n_tokens
            ]
            pools[g] = sorted(pools[g], key=lambda pair: -pair[0])[:size]
            beams[g] = [pair for pair in candidates if pair[1][-1] != END][:size]
            taken += [] if is_done[g] else [text[-1] for _, text in beams[g]]
            is_done[g] |= len(pools[g]) == size and beams[g][0][0] / n**length_penalty <= pools[g][-1][0]
    return sorted((pair for pool in pools for pair in pool), key=lambda pair: -pair[0])


@pytest.mark.parametrize("is_dense", [False, True])
@pytest.mark.parametrize("n_groups,size,penalty", [(2, 2, 0.7), (3, 1, 2.0), (2, 3, 0.0), (4, 2, 0.3)])
def test_groups_are_a_plain_diverse_beam_search(
    n_groups: int, size: int, penalty: float, is_dense: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_dense:
        monkeypatch.setattr(chain_module, "MOST_CANDIDATES", 0)
    n_beams = n_groups * size
    for seed in range(6):
        script = random_script(seed)
        # With length_penalty 0 a source is closed only when no beam can improve its pool.
        found = found_with(
            script, 2, num_beams=n_beams, num_beam_groups=n_groups, diversity_penalty=penalty, length_penalty=0.0,
            num_return_sequences=n_beams, max_new_tokens=5,
        )  # fmt: skip
        for source, of_source in enumerate(found):
            wanted = plain_groups(script, source, n_groups, size, penalty, 5, 0.0)
            assert [h.token_ids for h in of_source] == [text for _, text in wanted]
            assert [h.score for h in of_source] == pytest.approx([score for score, _ in wanted], abs=1e-4)
        if penalty == 0.0:  # groups that don't see each other are the same search
            one = found_with(script, 2, num_beams=size, num_return_sequences=size, length_penalty=0.0, max_new_tokens=5)
            for of_source, alone in zip(found, one, strict=True):
                assert [h.token_ids for h in of_source[::n_groups]] == [h.token_ids for h in alone]


def test_a_penalty_makes_groups_differ() -> None:
    texts = []
    for penalty in (0.0, 5.0):
        found = found_with(
            random_script(4), num_beams=4, num_beam_groups=4, diversity_penalty=penalty, num_return_sequences=4,
            max_new_tokens=4,
        )  # fmt: skip
        texts.append({tuple(h.token_ids) for h in found[0]})
    assert len(texts[0]) == 1 and len(texts[1]) >= 3


@pytest.mark.parametrize("n_beams", [1, 3])
@pytest.mark.parametrize("seed", range(4))
def test_alternatives_begin_with_the_best_first_tokens(seed: int, n_beams: int) -> None:
    """Each goes on as a search does whose prompt ends with that token."""
    script = random_script(seed)
    given = {"num_beams": n_beams, "max_new_tokens": 6, "length_penalty": 0.0}
    found = found_with(script, 2, return_alternatives=True, num_return_sequences=4, **given)
    for source, of_source in enumerate(found):
        order = np.argsort(-script(source, (START,)), kind="stable")[:4]
        assert [h.token_ids[1] for h in of_source] == order.tolist()
        for hypothesis in of_source:
            first = hypothesis.token_ids[1]
            if first == END:
                assert len(hypothesis.token_ids) == 2
                continue
            rest = {**given, "max_new_tokens": 5, "decoder_input_ids": [START, first]}
            options = options_of(**rest)
            alone = decode(ScriptedState(script, 2, n_beams, WORDS), [[2, 3]] * 2, options)[source][0]
            assert hypothesis.token_ids == alone.token_ids


def test_unlikely_alternatives_are_not_expanded() -> None:
    def script(source: int, text: tuple[int, ...]) -> np.ndarray:
        shares = [0.01, 0.04, 0.5, 0.3, 0.15] if len(text) == 1 else [0.01, 0.95, 0.02, 0.01, 0.01]
        return np.log(np.array(shares))

    for least, wanted in [(0.0, [2, 3, 4, 1]), (0.1, [2, 3, 4]), (0.4, [2]), (0.9, [2])]:
        for n_beams in (1, 2):
            found = found_with(
                script, 3, return_alternatives=True, num_return_sequences=4, max_new_tokens=4, num_beams=n_beams,
                min_alternative_expansion_prob=least,
            )  # fmt: skip
            assert [[h.token_ids[1] for h in of_source] for of_source in found] == [wanted] * 3


@pytest.mark.parametrize("seed", range(6))
def test_patience_finishes_that_many_outputs(seed: int) -> None:
    """With early_stopping the search ends when the pool is full, so that more patience never finds worse."""
    script = random_script(seed, scale=1.0)
    best = []
    for patience in (0.5, 1.0, 2.0, 4.0):
        given = {"num_beams": 4, "max_new_tokens": 8, "early_stopping": True, "length_penalty": 1.0}
        best.append(found_with(script, patience=patience, **given)[0][0].score)
    assert best == sorted(best)
    assert found_with(script, patience=1.0, **given)[0][0].token_ids == found_with(script, **given)[0][0].token_ids


def test_a_long_patience_is_exhaustive() -> None:
    script = random_script(1)
    found = found_with(script, num_beams=64, patience=12.0, max_new_tokens=4, num_return_sequences=9)
    wanted = every_output(script, 0, 4, 1.0)[:9]
    assert [h.token_ids for h in found[0]] == [text for _, text in wanted]


@pytest.mark.parametrize("architecture", ["bart", "t5"])
def test_the_coverage_penalty_is_gnmts(architecture: str) -> None:
    """The score of each output is its plain one plus beta times the sum of log(min(attention, 1))."""
    model = tiny_model(architecture, 31, 1)
    sources = [[5, 6, 7, 8, 2], [9, 10, 2]]
    beta = 0.3
    given = {"num_beams": 4, "num_return_sequences": 4, "max_new_tokens": 7, "coverage_penalty": beta}
    options = resolve(model.generation_config.to_dict(), given, vocabulary_size=31)
    found = decode(TorchState(model, sources, 4), sources, options, alignments=True)
    for source, hypotheses in zip(sources, found, strict=True):
        for hypothesis in hypotheses:
            attention = hypothesis.alignment
            assert attention is not None and attention.shape[1] == len(source)
            penalty = sum(math.log(min(share, 1.0)) for share in attention.sum(axis=0).tolist())
            plain = sum(hypothesis.token_scores) / len(hypothesis.token_scores)
            assert hypothesis.score == pytest.approx(plain + beta * penalty, abs=1e-3)
        scores = [hypothesis.score for hypothesis in hypotheses]
        assert scores == sorted(scores, reverse=True)
    alone = [decode(TorchState(model, [source], 4), [source], options)[0] for source in sources]
    assert [[h.token_ids for h in of] for of in alone] == [[h.token_ids for h in of] for of in found]


@pytest.mark.parametrize("n_beams", [1, 3])
def test_lengths_are_relative_to_the_source(n_beams: int) -> None:
    def script(source: int, text: tuple[int, ...]) -> np.ndarray:
        logits = np.random.default_rng([source, *text]).normal(0, 1, WORDS)
        logits[END] = 4.0 if source == 0 else -20.0
        return logits

    options = options_of(num_beams=n_beams, max_new_tokens=20, max_length_ratio=1.5, min_length_ratio=1.0)
    sources = [[2] * 4, [2] * 5, [2] * 2]
    found = decode(ScriptedState(script, 3, n_beams, WORDS), sources, options)
    # The first ends as soon as it may, with its end token as the fifth; the others have room for 1.5 * S, rounded up.
    assert [len(of_source[0].token_scores) for of_source in found] == [5, 8, 3]


@pytest.mark.parametrize("n_beams", [1, 3])
def test_stop_strings_end_an_output(n_beams: int) -> None:
    stops = StopStrings(["cb", "d"])
    stops.decode = lambda ids: "".join("-.bcd"[i] for i in ids)
    n_stopped = 0
    for seed in range(12):
        found = found_with(random_script(seed), 2, num_beams=n_beams, max_new_tokens=9, stop_strings=stops)
        for of_source in found:
            text = stops.decode(of_source[0].token_ids[1:])
            n_stopped += text.endswith(("cb", "d"))
            assert "cb" not in text[:-1] and "d" not in text[:-1]
    assert n_stopped > 6


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_beams": 4, "num_beam_groups": 3}, "expected a divisor of num_beams, 4"),
        ({"num_beams": 4, "diversity_penalty": 0.5}, "expected num_beam_groups above 1"),
        ({"num_beams": 4, "num_beam_groups": 2, "do_sample": True}, "can't be used when sampling"),
        ({"num_beams": 4, "num_beam_groups": 2, "return_alternatives": True}, "can't be combined"),
        ({"patience": 2.0}, "expected num_beams above 1"),
        ({"num_beams": 4, "patience": 0.4, "num_return_sequences": 3}, "finishes 2 outputs"),
        ({"coverage_penalty": 0.2}, "expected num_beams above 1"),
        ({"coverage_penalty": -0.2, "num_beams": 2}, "expected a number of at least 0"),
        ({"min_alternative_expansion_prob": 0.2}, "needs return_alternatives"),
        ({"stop_strings": [""]}, "none of them empty"),
        ({"max_length_ratio": 0}, "expected a number above 0"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "penalty_alpha=0.6 is not supported"),
    ],
    ids=str,
)
def test_contradictions_are_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        options_of(**given)


def test_more_alternatives_than_tokens_are_all_tokens() -> None:
    for n_beams in (1, 2):
        found = found_with(
            random_script(2), return_alternatives=True, num_return_sequences=9, max_new_tokens=3, num_beams=n_beams
        )
        assert sorted(h.token_ids[1] for h in found[0]) == list(range(WORDS))
