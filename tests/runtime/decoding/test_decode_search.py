"""Beam search against exhaustive search and planted paths; scores, batches that shrink, alignments."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from agreement import Case, decoded, generate, random_case
from decoding_models import ARCHITECTURES, TorchState, tiny_model
from scripted import ScriptedState

from s2s_export.runtime.decoding import GenerationOptions, decode, resolve
from s2s_export.runtime.decoding import chain as chain_module
from s2s_export.runtime.decoding.beams import best_of_all

START, END = 0, 1
WORDS = 5


def options_of(**given: Any) -> GenerationOptions:
    defaults = {"decoder_start_token_id": START, "eos_token_id": END, "pad_token_id": START}
    return resolve(defaults, given, vocabulary_size=WORDS)


def random_script(seed: int) -> Any:
    """Logits that depend on the source and on the whole text."""

    def script(source: int, text: tuple[int, ...]) -> np.ndarray:
        return np.random.default_rng([seed, source, *text]).normal(0, 2, WORDS)

    return script


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()


def every_output(script: Any, source: int, n_tokens: int, length_penalty: float) -> list[tuple[float, list[int]]]:
    """All outputs of at most n_tokens tokens, best first."""
    found = []
    for n in range(1, n_tokens + 1):
        for tokens in itertools.product(range(WORDS), repeat=n):
            ends = tokens[-1] == END
            if END in tokens[:-1] or (not ends and n < n_tokens):
                continue
            total = 0.0
            for i, token in enumerate(tokens):
                total += log_softmax(script(source, (START, *tokens[:i])))[token]
            found.append((total / n**length_penalty, [START, *tokens]))
    return sorted(found, key=lambda pair: -pair[0])


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0, -0.5])
@pytest.mark.parametrize("seed", range(4))
def test_with_as_many_beams_as_texts_the_search_is_exhaustive(seed: int, length_penalty: float) -> None:
    n_beams = 300  # More than the 4**4 texts of four words that have not ended.
    script = random_script(seed)
    options = options_of(
        num_beams=n_beams, num_return_sequences=20, max_new_tokens=4, length_penalty=length_penalty,
        early_stopping="never",
    )  # fmt: skip
    for source, found in enumerate(decode(ScriptedState(script, 2, n_beams, WORDS), [[], []], options)):
        wanted = every_output(script, source, 4, length_penalty)[:20]
        assert [hypothesis.token_ids for hypothesis in found] == [tokens for _, tokens in wanted]
        np.testing.assert_allclose([h.score for h in found], [score for score, _ in wanted], atol=1e-5)


def test_a_planted_path_that_greedy_search_misses_is_found() -> None:
    paths = {(0,): [-9, -9, 1.0, 0.9, -9], (0, 3): [-9, 9.0, 0, 0, 0]}

    def script(source: int, text: tuple[int, ...]) -> np.ndarray:
        return np.array(paths.get(text, [0.0] * WORDS))

    greedy, beams = (
        decode(ScriptedState(script, 1, k, WORDS), [[]], options_of(num_beams=k, max_new_tokens=4))[0][0]
        for k in (1, 2)
    )
    assert greedy.token_ids[:2] == [0, 2]
    assert beams.token_ids == [0, 3, 1]
    assert beams.score > greedy.score


def test_scores_are_made_of_the_token_scores() -> None:
    for seed in range(40):
        case = random_case(seed)
        penalty = case.options.get("length_penalty", 1.0)
        for hypothesis in decoded(case):
            n = len(hypothesis.token_scores)
            if hypothesis.score > -1e8 and n:
                total = sum(hypothesis.token_scores)
                assert hypothesis.score == pytest.approx(total / n**penalty, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_token_scores_are_those_of_transformers(architecture: str) -> None:
    model = tiny_model(architecture, 31, 0)
    for n_beams, more in itertools.product((1, 4), ({}, {"min_length": 5, "bad_words_ids": [[4]]})):
        options = {"num_beams": n_beams, "max_new_tokens": 8, **more}
        case = Case(architecture, 31, 0, [[5, 6, 7, 2], [8, 9, 2]], options)
        reference = generate(case)
        if n_beams == 1:
            # Of the logits before the rules, which here only ban what is not chosen.
            theirs = model.compute_transition_scores(reference.sequences, reference.logits, normalize_logits=True)
        else:
            theirs = model.compute_transition_scores(reference.sequences, reference.scores, reference.beam_indices)
        for hypothesis, wanted in zip(decoded(case), theirs.numpy(), strict=True):
            n = len(hypothesis.token_scores)
            np.testing.assert_allclose(hypothesis.token_scores, wanted[:n], atol=1e-4)


def summary(found: list[Any]) -> list[Any]:
    return [(h.token_ids, round(h.score, 4), np.round(h.token_scores, 3).tolist()) for h in found]


@pytest.mark.parametrize("seed", range(0, 60, 3))
def test_a_batch_that_shrinks_gives_the_same(seed: int) -> None:
    case = random_case(seed)
    assert summary(decoded(case)) == summary(decoded(case, leave_early=False))


@pytest.mark.parametrize("seed", range(1, 40, 3))
def test_a_source_does_not_depend_on_its_batch(seed: int) -> None:
    case = random_case(seed)
    together = decoded(case)
    alone = [
        hypothesis
        for source in case.sources
        for hypothesis in decoded(
            Case(case.architecture, case.vocabulary_size, case.model_seed, [source], case.options)
        )
    ]
    assert summary(together) == summary(alone)


@pytest.mark.parametrize("n_beams", [1, 3])
@pytest.mark.parametrize("early_stopping", [True, False, "never"])
def test_closed_sources_cost_no_more_steps(n_beams: int, early_stopping: bool | str) -> None:
    """Three of four sources end at once; from then on one is decoded."""

    def script(source: int, text: tuple[int, ...]) -> np.ndarray:
        logits = np.random.default_rng([source, *text]).normal(0, 0.1, WORDS)
        logits[END] = -20.0 if source == 2 else 20.0
        return logits

    rows = []
    for leave_early in (True, False):
        options = options_of(num_beams=n_beams, max_new_tokens=30, early_stopping=early_stopping, length_penalty=0.0)
        state = ScriptedState(script, 4, n_beams, WORDS)
        found = decode(state, [[]] * 4, options, leave_early=leave_early)
        assert [len(f[0].token_ids) for f in found] == [2, 2, 31, 2]
        rows.append(state.n_rows_run)
    assert rows[1] == 30 * 4 * n_beams
    assert rows[0] <= (30 + 4 * 3) * n_beams


@pytest.mark.parametrize("seed", range(2, 40, 4))
def test_the_whole_distribution_gives_the_same(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    case = random_case(seed)
    sparse = summary(decoded(case))
    monkeypatch.setattr(chain_module, "MOST_CANDIDATES", 0)
    assert summary(decoded(case)) == sparse


@pytest.mark.parametrize("n_beams", [1, 4])
@pytest.mark.parametrize("prompt", [None, [7, 8]])
def test_alignments_are_the_cross_attention_of_the_output(n_beams: int, prompt: list[int] | None) -> None:
    import torch

    model = tiny_model("bart", 31, 1)
    sources = [[5, 6, 7, 8, 2], [9, 10, 2]]
    given = {"num_beams": n_beams, "num_return_sequences": n_beams, "max_new_tokens": 7, "decoder_input_ids": prompt}
    options = resolve(model.generation_config.to_dict(), given, vocabulary_size=31)
    found = decode(TorchState(model, sources, options.n_rows), sources, options, alignments="heads")
    plain = decode(TorchState(model, sources, options.n_rows), sources, options, alignments=True)
    for source, hypotheses, plains in zip(sources, found, plain, strict=True):
        for hypothesis, other in zip(hypotheses, plains, strict=True):
            ids = torch.tensor([hypothesis.token_ids])
            with torch.no_grad():
                out = model(input_ids=torch.tensor([source]), decoder_input_ids=ids[:, :-1], output_attentions=True)
            wanted = torch.stack(out.cross_attentions)[:, 0].numpy()  # [L, H, T, S]
            wanted = wanted[:, :, len(options.prompt) - 1 :]
            assert hypothesis.alignment_heads is not None and other.alignment is not None
            np.testing.assert_allclose(hypothesis.alignment_heads, wanted, atol=1e-5)
            np.testing.assert_allclose(hypothesis.alignment, wanted[-1].mean(axis=0), atol=1e-5)
            np.testing.assert_allclose(other.alignment, wanted[-1].mean(axis=0), atol=1e-5)
            assert other.alignment_heads is None
            assert len(other.alignment) == len(hypothesis.token_scores)


def test_a_pad_token_that_is_the_end_token_corrupts_nothing() -> None:
    def script(source: int, text: tuple[int, ...]) -> np.ndarray:
        logits = np.zeros(WORDS)
        logits[END if len(text) > 2 + source else 3] = 9.0
        return logits

    for n_beams, pad in itertools.product((1, 2), (END, 0, None)):
        options = resolve(
            {"decoder_start_token_id": START, "eos_token_id": END, "pad_token_id": pad},
            {"num_beams": n_beams, "max_new_tokens": 9}, vocabulary_size=WORDS,
        )  # fmt: skip
        found = decode(ScriptedState(script, 3, n_beams, WORDS), [[]] * 3, options)
        assert [f[0].token_ids for f in found] == [[0, 3, 3, 1], [0, 3, 3, 3, 1], [0, 3, 3, 3, 3, 1]]


def test_without_an_end_token_outputs_are_max_length_long() -> None:
    options = resolve({"decoder_start_token_id": START}, {"num_beams": 2, "max_new_tokens": 5}, vocabulary_size=WORDS)
    found = decode(ScriptedState(random_script(0), 2, 2, WORDS), [[], []], options)
    assert [len(f[0].token_ids) for f in found] == [6, 6]


def test_a_state_of_the_wrong_size_is_refused() -> None:
    with pytest.raises(ValueError, match="holds 2 sources of 2 beams, expected 1 of 3"):
        decode(ScriptedState(random_script(0), 2, 2, WORDS), [[]], options_of(num_beams=3))


def test_the_best_of_all_are_those_of_a_stable_order() -> None:
    draws = np.random.default_rng(0)
    for width, n in ((7, 7), (50, 12), (4096, 10), (9001, 3), (20000, 40)):
        for rounding in (None, 3):
            for share in (0.0, 0.5, 0.9995, 1.0):
                sums = draws.normal(size=(2, width)).astype(np.float32)
                sums = sums if rounding is None else np.round(sums * rounding) / np.float32(rounding)
                sums[:, draws.random(width) < share] = -np.inf
                sums[1, draws.random(width) < 0.2] = np.nan
                known = np.where(np.isnan(sums), -np.inf, sums)
                expected = np.argsort(-known, axis=1, kind="stable")[:, :n]
                assert np.array_equal(best_of_all(sums, n), expected), (width, n, rounding, share)
