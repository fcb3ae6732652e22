"""The rules kernel alone: one step on random scores, each rule by itself, against its definition."""

from __future__ import annotations

import ctypes
import random
from typing import Any

import numpy as np
import pytest
from device_helpers import (
    fill,
    launches,
    loop_launches,
    missing_compiler,
    random_sources,
    resolved,
    rules_applied,
    rules_defined,
    schedule,
    structures,
)

from s2s_export.errors import InvalidOption
from s2s_export.measuring.gpu_check import rules_check
from s2s_export.measuring.gpu_check.rules_check import EDITS, FILTERS
from s2s_export.runtime.cuda.emulation import HostDevice, _library
from s2s_export.runtime.decoding.beams import best_of_all
from s2s_export.runtime.decoding.draws import Draws
from s2s_export.runtime.decoding.rule import Rule
from s2s_export.runtime.decoding.rules import active, modules
from s2s_export.runtime.decoding.rules.min_p import MinP
from s2s_export.runtime.device_search.rules import forms, serialise, with_form

if missing_compiler():
    pytest.skip(str(missing_compiler()), allow_module_level=True)

V = 40
RULES = {**EDITS, "top_k": 5, "top_p": 0.8}


def random_scores(rng: np.random.Generator, B: int, K: int) -> np.ndarray:
    scores = rng.standard_normal((B, K, V)) * rng.choice([1, 4])
    kind = rng.integers(4)
    if kind == 1:
        scores = np.round(scores)
    elif kind == 2:
        scores[rng.random(scores.shape) < 0.5] = -np.inf
        scores[..., 11] = 0.5
    return scores.astype(np.float32)


@pytest.mark.parametrize("name", [*RULES, "all"])
def test_rule(name: str) -> None:
    chance, rng = random.Random(name), np.random.default_rng(len(name))
    for i in range(3 if name in ("top_k", "top_p", "all") else 12):
        names = list(RULES) if name == "all" else [name]
        if name == "all":
            names.remove("forced_bos_token_id")
            names.remove("remove_invalid_values")
        chosen = {key: RULES[key] for key in names}
        chosen |= {"num_beams": 1, "decoder_start_token_id": 1, "eos_token_id": [2, 6], "max_length": 9}
        chosen |= {"do_sample": name in ("temperature", "top_k", "top_p", "all")}
        if name != "top_k" and name != "all":
            chosen["top_k"] = 0
        B, K, length = chance.randint(1, 3), chance.randint(1, 3), chance.choice([1, 2, 4, 8])
        history = rng.integers(1, 8, (B, K, length))
        history[..., 0] = 1
        sources = np.full((B, 8), -1)
        for row, source in zip(sources, random_sources(chance, B, 10), strict=True):
            row[: len(source)] = source
        scores = random_scores(rng, B, K)
        if name == "remove_invalid_values":
            scores[..., :3] = np.nan, np.inf, -np.inf
        schedule(i)
        found, expected = (do(chosen, scores, history, sources) for do in (rules_applied, rules_defined))
        np.testing.assert_array_equal(np.isfinite(found), np.isfinite(expected))
        if "top_p" in names:
            np.testing.assert_allclose(found, expected, 2e-6, 2e-6)
        else:
            np.testing.assert_array_equal(found, expected)


def test_the_order_of_times() -> None:
    """Random texts of words and times: the first token, an open pair, a complete one, words behind times and none yet.
    Words and times win about equally often, and a scale that tips the comparison of many times with one word."""
    chance, rng = random.Random(5), np.random.default_rng(5)
    n_words, n_times, n_both = 0, 0, 0
    for i in range(60):
        size = chance.choice([V, 300, 1200])
        begin = chance.choice([8, size // 2, size - 9])
        chosen = {"num_beams": 1, "decoder_start_token_id": 1, "decoder_input_ids": [1, 3], "max_length": 40}
        chosen |= {"eos_token_id": chance.choice([2, begin - 2])}
        chosen |= {"timestamp_begin": begin, "max_initial_timestamp_index": chance.choice([None, 0, 3, 2000])}
        B, K, length = chance.randint(1, 3), chance.randint(1, 3), chance.choice([0, 1, 2, 3, 9])
        texts = np.where(rng.random((B, K, length)) < 0.5, rng.integers(begin, size, (B, K, length)), 4)
        history = np.ascontiguousarray(np.concatenate([np.broadcast_to([1, 3], (B, K, 2)), texts], axis=2))
        scores = rng.standard_normal((B, K, size)).astype(np.float32)
        scores[..., :begin] += np.float32(rng.choice([0, np.log(size - begin)]))
        if i % 4 == 0:
            scores[rng.random(scores.shape) < 0.7] = -np.inf
        schedule(i)
        sources = np.full((B, 1), -1)
        found, expected = (do(chosen, scores, history, sources) for do in (rules_applied, rules_defined))
        np.testing.assert_array_equal(found, expected)
        words, times = (np.isfinite(part).any(axis=-1) for part in np.split(expected, [begin], axis=-1))
        n_words, n_times, n_both = (
            n_words + (words & ~times).sum(),
            n_times + (times & ~words).sum(),
            n_both + (words & times).sum(),
        )
    assert min(n_words, n_times, n_both) > 20


def test_what_is_checked_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(rules_check.agree(HostDevice(), 2, (40, 300))["rules"]) == {*EDITS, *FILTERS}
    assert rules_check.agree(HostDevice(), 2, (40, 300))["wrong"] == []
    monkeypatch.setattr(rules_check, "defined", lambda options, scores, *texts: scores)
    wrong = rules_check.agree(HostDevice(), 2, (40, 300))["wrong"]
    assert {"top_h", "temperature", "suppress_tokens", "remove_invalid_values"} < set(wrong)


def test_every_rule_is_checked() -> None:
    """Each file of decoding/rules has an option in the list of what a GPU is checked with, which switches it on."""
    values = {**EDITS, **FILTERS}
    options_of = {module.__name__.rpartition(".")[2]: module.OPTIONS for module in modules()}
    for module in with_form():
        (name,) = [name for name in options_of[module] if name in values]
        given = {"do_sample": name in (*FILTERS, "temperature"), name: values[name], "decoder_start_token_id": 1}
        options = resolved({**given, "eos_token_id": 2, "max_length": 9}, V)
        assert module in [type(rule).__module__.rpartition(".")[2] for rule in active(options, V)]


def test_every_rule_of_transformers_has_a_form() -> None:
    """Those without one are not generate()'s, but one, which is a function in Python."""
    without = {"prefix_bias", "presence_penalty", "min_length_ratio", "guides"}
    assert {name for name, has_form in forms().items() if not has_form} == {*without, "prefix_allowed_tokens"}
    assert {*with_form(), *without, "prefix_allowed_tokens"} == set(forms())


@pytest.mark.parametrize(
    ("given", "name"),
    [({"patience": 2.0}, "patience"), ({"num_beam_groups": 2, "diversity_penalty": 0.5}, "num_beam_groups"),
     ({"stop_strings": ["x"]}, "stop_strings"), ({"force_words_ids": [[5]]}, "force_words_ids"),
     ({"coverage_penalty": 0.2}, "coverage_penalty"), ({"max_length_ratio": 1.5}, "max_length_ratio"),
     ({"presence_penalty": 0.2}, "presence_penalty"), ({"return_alternatives": True}, "return_alternatives"),
     ({"target_prefix_ids": [5], "prefix_bias_beta": 0.2}, "prefix_bias")],
)  # fmt: skip
def test_what_only_the_hosts_search_has_is_refused_by_name(given: Any, name: str) -> None:
    options = resolved({"num_beams": 2, **given, "decoder_start_token_id": 1, "eos_token_id": 2}, V)
    with pytest.raises(InvalidOption, match=rf"^{name} can't be applied on a device; .*search='host'"):
        serialise(options, V)


def test_a_rule_without_a_form_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MinP, "device_form", Rule.device_form)
    options = resolved({"do_sample": True, "min_p": 0.1, "decoder_start_token_id": 1, "eos_token_id": 2}, V)
    with pytest.raises(InvalidOption, match=r"^min_p can't be applied on a device; expected .*top_k"):
        serialise(options, V)


def drawn(scores: np.ndarray, beam_scores: np.ndarray, numbers: Any, seed: int, length: int, n: int) -> Any:
    """The arrays after the kernels that draw n continuations of each source, from scores [B, K, V]. n = 0: a token for
    each row instead."""
    B, K, V = scores.shape
    lists = loop_launches.draw_lists(K * V if n else V)
    arrays = {
        "scores": scores,
        "beam_scores": beam_scores.astype(np.float32),
        "seed": np.array([seed], np.uint64),
        "numbers": np.asarray(numbers).astype(np.uint64),
        "position": np.array([length - 1], np.int64),
        "stop": np.zeros(1, np.int32),
        "maxima": np.full((B, K, lists), np.nan, np.float32),
        "weights": np.full((B, K, lists), 2**63, np.uint64),
        "race": np.full((B, lists, n), 2**63, np.uint64),
        "arrived": np.zeros((B, K), np.int32),
        "drawn_ids": np.full((B, n or K), -1, np.int64),
        "drawn_beams": np.full((B, n), -1, np.int32),
        "drawn_sums": np.zeros((B, n), np.float32),
    }
    given = fill(structures.DrawParameters, arrays, n_sources=B, beams=K, vocabulary=V, n_drawn=n, lists=lists)
    for launch in loop_launches.draw_beams(given) if n else loop_launches.draw_rows(given):
        HostDevice().run(launch, given, 0)
    assert not arrays["arrived"].any()
    return arrays


def drawable_scores(rng: np.random.Generator, B: int, K: int, size: int) -> np.ndarray:
    """Some of them few, few possible, equal, or so large that the differences of a race are lost in rounding."""
    scores = rng.standard_normal((B, K, size)) * rng.choice([1, 4])
    kind = rng.integers(5)
    if kind == 1:
        scores = np.round(scores)
    elif kind == 2:
        scores[rng.random(scores.shape) < rng.choice([0.5, 0.999])] = -np.inf
        scores[..., 11] = 0.5
    elif kind == 3:
        scores -= 3e5
    elif kind == 4:
        scores[..., rng.integers(size)] += 40
    return scores.astype(np.float32)


@pytest.mark.parametrize("n", [0, 6, 48], ids=["rows", "6 of beams", "48 of beams"])
def test_draws_are_the_definitions(n: int) -> None:
    """The same tokens from the same seeds, keys and counters, bit for bit; in one slice, a full one, one and a token,
    and several."""
    draws_are_the_definitions(n, 10, (40, 1024, 1025, 2048, 2049, 5000))


@pytest.mark.slow
@pytest.mark.parametrize("n", [0, 6, 48])
def test_many_draws_are_the_definitions(n: int) -> None:
    draws_are_the_definitions(n, 60 if n > 6 else 300, (2, 40, 1024, 1025, 2048, 2049, 5000, 58101))


def draws_are_the_definitions(n: int, n_cases: int, sizes: tuple[int, ...]) -> None:
    rng = np.random.default_rng(7)
    for i in range(n_cases):
        B, K, seed, length = 2, int(rng.integers(1, 4)), int(rng.integers(2**63)), int(rng.integers(1, 300))
        size = sizes[i % len(sizes)]
        if n > K * size:
            continue
        numbers = rng.integers(2**40, size=B)
        scores = drawable_scores(rng, B, K, max(size, 12))
        if n == 0 and i % 4 == 0:
            scores[0, 0, rng.integers(size, size=3)] = rng.choice([np.nan, np.inf])
            scores[1, 0] = -np.inf
        schedule(i)
        arrays = drawn(scores, rng.standard_normal((B, K)), numbers, seed, length, n)
        draws = Draws(seed, numbers.tolist())
        if n:
            sums = (scores + arrays["beam_scores"][:, :, None]).reshape(B, -1)
            at = best_of_all(draws.race(sums, np.arange(B), length), n)
            np.testing.assert_array_equal(arrays["drawn_beams"] * scores.shape[2] + arrays["drawn_ids"], at)
            np.testing.assert_array_equal(arrays["drawn_sums"], np.take_along_axis(sums, at, axis=1))
        else:
            with np.errstate(invalid="ignore"):
                np.testing.assert_array_equal(arrays["drawn_ids"], draws.one_each(scores, np.arange(B), length))


@pytest.mark.parametrize("size", [40, 2049])
def test_renormalising_is_the_definitions(size: int) -> None:
    given = {"num_beams": 1, "renormalize_logits": True, "decoder_start_token_id": 1, "eos_token_id": 2}
    rng, options = np.random.default_rng(size), resolved(given, size)
    for i in range(6):
        scores = drawable_scores(rng, 2, 2, size)
        if i % 3 == 2:
            scores[0, 0, 7], scores[0, 1], scores[1, 0, 3] = np.nan, -np.inf, np.inf
        schedule(i)
        texts = np.ones((2, 2, 1), np.int64), np.full((2, 1), -1)
        with np.errstate(invalid="ignore"):
            wanted = rules_check.defined(options, scores, *texts)
        np.testing.assert_array_equal(rules_check.applied(HostDevice(), options, scores, *texts), wanted)


def test_structures_are_those_of_the_header() -> None:
    sizes = (ctypes.c_int32 * 32)()
    n = _library().s2s_beam_search_sizes(sizes, 32)
    assert list(sizes[:n]) == [ctypes.sizeof(structure) for structure in structures.ALL]
    assert launches.top_lists(58101) == 114
