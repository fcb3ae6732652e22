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
from s2s_export.runtime.decoding.draws import Draws
from s2s_export.runtime.decoding.rule import Rule
from s2s_export.runtime.decoding.rules import active, modules
from s2s_export.runtime.decoding.rules.min_p import MinP
from s2s_export.runtime.device_search.rules import forms, serialise, with_form

if missing_compiler():
    pytest.skip(str(missing_compiler()), allow_module_level=True)

V = 40
RULES = {**EDITS, "top_k": 5, "top_p": 0.8}
SOFTMAXES = ("top_p", "renormalize_logits")


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
        if set(SOFTMAXES) & set(names):
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


def drawn(scores: np.ndarray, beam_scores: np.ndarray, numbers: Any, seed: int, length: int, n: int, lists: int) -> Any:
    """The arrays after the kernels that draw n continuations of each source, from scores [B, K, V]. lists: slices of a
    source's tokens; 0 draws a token for each row instead."""
    B, K, V = scores.shape
    arrays = {
        "scores": scores,
        "beam_scores": beam_scores.astype(np.float32),
        "seed": np.array([seed], np.uint64),
        "numbers": np.asarray(numbers).astype(np.uint64),
        "position": np.array([length - 1], np.int64),
        "stop": np.zeros(1, np.int32),
        "race": np.zeros((B, K, V), np.float32),
        "race_counts": np.zeros((B, lists), np.int32),
        "race_values": np.zeros((B, lists, n)),
        "race_places": np.zeros((B, lists, n), np.int32),
        "drawn_ids": np.full((B, n if lists else K), -1, np.int64),
        "drawn_beams": np.full((B, n), -1, np.int32),
        "drawn_sums": np.zeros((B, n), np.float32),
    }
    given = fill(structures.DrawParameters, arrays, n_sources=B, beams=K, vocabulary=V, n_drawn=n, lists=lists)
    for launch in loop_launches.draw_beams(given) if lists else [loop_launches.draw_rows(given)]:
        HostDevice().run(launch, given, 0)
    return arrays


@pytest.mark.parametrize("lists", [0, 1, 2, 7, 40])
def test_draws_are_numpys(lists: int) -> None:
    """The same tokens from the same seeds, keys and counters. lists: slices of a source's tokens, a block each; 40 of
    them have two tokens, fewer than are drawn. 0: a token for each row."""
    rng = np.random.default_rng(7)
    for i in range(8 if lists < 2 else 4):
        B, K, seed, length = 2, 2, int(rng.integers(2**63)), int(rng.integers(1, 300))
        numbers = rng.integers(2**40, size=B)
        scores = random_scores(rng, B, K)
        schedule(i)
        arrays = drawn(scores, rng.standard_normal((B, K)), numbers, seed, length, 6, lists)
        draws = Draws(seed, numbers.tolist())
        if lists:
            sums = (scores + arrays["beam_scores"][:, :, None]).reshape(B, -1)
            at = draws.without_replacement(sums, 6, np.arange(B), length)
            np.testing.assert_array_equal(arrays["drawn_beams"] * V + arrays["drawn_ids"], at)
            np.testing.assert_array_equal(arrays["drawn_sums"], np.take_along_axis(sums, at, axis=1))
        else:
            np.testing.assert_array_equal(arrays["drawn_ids"], draws.one_each(scores, np.arange(B), length))


def test_draws_are_exact_where_single_precision_is_not() -> None:
    """The sixth and the seventh of a race are so near each other that float32 can't tell them apart. Double precision
    is asked for such tokens alone; the draws are still the definition's."""
    n, differ = 6, 0
    for seed in range(24):
        rng = np.random.default_rng(seed)
        scores, draws = rng.standard_normal((1, 1, V)).astype(np.float32), Draws(seed, [3])
        uniform = draws.uniform(0, 0, 5, V)
        noise = -np.log(-np.log(uniform))
        order = np.argsort(-(scores[0, 0] + noise), kind="stable")
        last, next_one = order[n - 1], order[n]
        scores[0, 0, next_one] = np.float32(scores[0, 0, last] + noise[last] - noise[next_one])
        at = draws.without_replacement(scores[0], n, np.arange(1), 5)
        rough = scores[0, 0] - np.log(-np.log(uniform.astype(np.float32)))
        differ += set(np.argsort(-rough, kind="stable")[:n]) != set(at[0])
        arrays = drawn(scores, np.zeros((1, 1)), [3], seed, 5, n, lists=1 + seed % 3)
        np.testing.assert_array_equal(arrays["drawn_ids"], at)
    assert differ > 2  # else the cases would show nothing


def test_structures_are_those_of_the_header() -> None:
    sizes = (ctypes.c_int32 * 32)()
    n = _library().s2s_beam_search_sizes(sizes, 32)
    assert list(sizes[:n]) == [ctypes.sizeof(structure) for structure in structures.ALL]
    assert launches.top_lists(58101) == 114
