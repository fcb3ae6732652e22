"""Every rule gives the same on the whole distribution, on the best and the probed tokens, and in transformers."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from decoding_models import seen_through, tiny_model
from transformers.generation.configuration_utils import GenerationConfig
from transformers.generation.logits_process import WhisperTimeStampLogitsProcessor

from s2s_export.runtime.decoding import StepResult, resolve
from s2s_export.runtime.decoding.chain import Chain, Imprecise
from s2s_export.runtime.decoding.guide import Choices
from s2s_export.runtime.decoding.rule import View
from s2s_export.runtime.decoding.rules import active, modules

V = 29
EOS = 2
START = {"decoder_start_token_id": 1, "eos_token_id": EOS, "pad_token_id": 1, "max_length": 9}
SAMPLING = {"do_sample": True, "top_k": None}

# A rule's options, at least one set a file in `rules/`.
CASES: dict[str, list[dict[str, Any]]] = {
    "sequence_bias": [
        {"sequence_bias": {(3,): 2.5, (4,): -1.0, (5, 6): 3.0, (7, 6): 1.0, (8, 9, 6): 2.0, (1, 5): 4.0}},
    ],
    "encoder_repetition_penalty": [{"encoder_repetition_penalty": 1.5}, {"encoder_repetition_penalty": 0.5}],
    "repetition_penalty": [{"repetition_penalty": 1.3}, {"repetition_penalty": 0.6}],
    "no_repeat_ngram": [{"no_repeat_ngram_size": n} for n in (1, 2, 3)],
    "encoder_no_repeat_ngram": [{"encoder_no_repeat_ngram_size": n} for n in (1, 2, 3)],
    "bad_words": [
        {"bad_words_ids": [[EOS], [3], [4, 5], [5, 6], [6, 6], [5, 5, 6], [1, 7], [8]]}, {"bad_words_ids": [[EOS]]},
    ],
    "min_length": [{"min_length": 5}, {"min_new_tokens": 3}, {"min_new_tokens": 3, "eos_token_id": [EOS, 7]}],
    "forced_bos": [{"forced_bos_token_id": 11}],
    "forced_eos": [{"forced_eos_token_id": EOS}, {"forced_eos_token_id": [EOS, 5]}],
    "remove_invalid_values": [{"remove_invalid_values": True, "suppress_tokens": [3], "no_repeat_ngram_size": 2}],
    "exponential_decay": [
        {"exponential_decay_length_penalty": (2, 1.4)},
        {"exponential_decay_length_penalty": (0, 0.7), "eos_token_id": [EOS, 5]},
        {"exponential_decay_length_penalty": (0, 1.3), "min_length": 6},
    ],
    "suppress_tokens": [{"suppress_tokens": [3, 9, 28]}],
    "begin_suppress_tokens": [
        {"begin_suppress_tokens": [3, 9]}, {"begin_suppress_tokens": [3, 9], "forced_bos_token_id": 4},
    ],
    "timestamps": [{"timestamp_begin": 7, "max_initial_timestamp_index": 3}, {"timestamp_begin": 6}],
    "temperature": [{**SAMPLING, "temperature": 0.7}],
    "top_h": [{**SAMPLING, "top_h": share} for share in (0.3, 0.8)],
    "top_k": [{"do_sample": True, "top_k": k} for k in (1, 5, 99)],
    "top_p": [{**SAMPLING, "top_p": p} for p in (0.0, 0.3, 0.9)],
    "min_p": [{**SAMPLING, "min_p": p} for p in (0.02, 0.5)],
    "typical_p": [{**SAMPLING, "typical_p": p} for p in (0.2, 0.9)],
    "epsilon_cutoff": [{**SAMPLING, "epsilon_cutoff": e} for e in (0.01, 0.2)],
    "eta_cutoff": [{**SAMPLING, "eta_cutoff": e} for e in (0.01, 0.3)],
    "prefix_bias": [{"target_prefix_ids": [5, 6, 7], "prefix_bias_beta": beta} for beta in (0.2, 0.9)],
    "presence_penalty": [{"presence_penalty": 1.5}, {"presence_penalty": -0.5}],
    "frequency_penalty": [{"frequency_penalty": 0.7}],
    "min_length_ratio": [{"min_length_ratio": 0.6}],
    "guides": [{"guides": [Choices([[5, 6], [5, 7, 8], [4]])]}],
    "prefix_allowed_tokens": [{"prefix_allowed_tokens_fn": lambda source, ids: [3 + len(ids), 7, EOS]}],
    "renormalize": [
        {"renormalize_logits": True, "suppress_tokens": [3, 4]},
        {"renormalize_logits": True},
        {"renormalize_logits": True, "bad_words_ids": [[3]], "repetition_penalty": 1.3, "no_repeat_ngram_size": 2,
         "sequence_bias": {(6,): 1.0, (5, 7): 2.0}, "forced_bos_token_id": 4, "min_length": 4},
    ],
}  # fmt: skip
OURS = (
    "Timestamps",
    "PrefixBias",
    "PresencePenalty",
    "FrequencyPenalty",
    "MinLengthRatio",
    "Guides",
    "PrefixAllowedTokens",
)
OF_TRANSFORMERS = vars(GenerationConfig())
TOGETHER: list[dict[str, Any]] = [
    {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "bad_words_ids": [[3], [4, 5]], "min_length": 5,
     "suppress_tokens": [8, 9], "sequence_bias": {(6,): 1.0, (5, 7): 2.0},
     "exponential_decay_length_penalty": (1, 1.2)},
    {"forced_bos_token_id": 4, "forced_eos_token_id": [EOS, 6], "suppress_tokens": [6], "repetition_penalty": 1.2,
     "encoder_repetition_penalty": 1.2, "encoder_no_repeat_ngram_size": 2},
    {"do_sample": True, "temperature": 1.5, "top_k": 12, "top_p": 0.9, "min_p": 0.01, "typical_p": 0.95,
     "epsilon_cutoff": 0.001, "eta_cutoff": 0.001, "repetition_penalty": 1.2, "renormalize_logits": True},
    {"do_sample": True, "num_beams": 2, "top_k": 3, "top_p": 0.2, "epsilon_cutoff": 0.3, "eta_cutoff": 0.3,
     "min_p": 0.5},
]  # fmt: skip


def test_every_rule_has_cases() -> None:
    assert set(CASES) == {module.__name__.rpartition(".")[2] for module in modules()}


def test_the_order_is_that_of_transformers() -> None:
    """With an option of every rule set, its processors and our rules come in one order."""
    given = {name: value for cases in CASES.values() for name, value in cases[0].items() if name in OF_TRANSFORMERS}
    given |= {"top_k": 5, "forced_bos_token_id": 12, "min_length": 3}
    model = tiny_model("marian", V, 0)
    processors = processors_of_transformers(model, given, np.array([5, 6, EOS]))
    rules = [type(rule).__name__ for rule in active(resolve(START, given, vocabulary_size=V), V)]
    theirs = [type(processor).__name__ for processor in processors]
    wanted = [
        "SequenceBias", "EncoderRepetitionPenalty", "RepetitionPenalty", "NoRepeatNGram", "EncoderNoRepeatNGram",
        "NoBadWords", "MinLength", "ForcedBOSToken", "ForcedEOSToken", "InfNanRemove", "ExponentialDecay",
        "SuppressTokens", "SuppressTokensAtBegin", "Temperature", "TopH", "TopK", "TopP", "MinP", "Typical", "Epsilon",
        "Eta", "LogitNormalization",
    ]  # fmt: skip
    rules = [rule for rule in rules if rule not in OURS]
    assert len(rules) == len(theirs) == len(wanted) == len(modules()) - len(OURS)
    for name, processor in zip(wanted, theirs, strict=True):
        assert processor.startswith(name), theirs
    same = {
        "NoBadWords": "BadWords",
        "InfNanRemove": "RemoveInvalidValues",
        "SuppressTokensAtBegin": "BeginSuppressTokens",
    }
    for name, rule in zip(wanted, rules, strict=True):
        mine = same.get(name, name.replace("Token", "") if name.startswith("Forced") else name)
        assert rule.lower().startswith(mine.lower()) or (name, rule) == ("LogitNormalization", "Renormalize"), rules


def processors_of_transformers(model: Any, given: dict[str, Any], source: np.ndarray) -> Any:
    config = GenerationConfig(**{**START, "num_beams": 1, **given})
    model._prepare_special_tokens(config, True, device="cpu", batch_size=1)
    if config.min_new_tokens is not None:
        config.min_length = config.min_new_tokens + 1
    return model._get_logits_processor(
        generation_config=config, input_ids_seq_length=1, encoder_input_ids=torch.tensor(source)[None], device="cpu"
    )


def processed_by_transformers(
    given: dict[str, Any], text: np.ndarray, source: np.ndarray, scores: np.ndarray
) -> np.ndarray:
    """scores [K, V] after its processors. text [K, T]. source [S]."""
    if not given.keys() <= OF_TRANSFORMERS.keys():
        return np.stack(
            [defined(given, row.tolist(), source, of_row) for row, of_row in zip(text, scores, strict=True)]
        )
    processors = processors_of_transformers(tiny_model("marian", V, 0), given, source)
    return processors(torch.tensor(text), torch.tensor(scores)).numpy()


def defined(given: dict[str, Any], text: list[int], source: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """scores [V] after a rule that its generate() takes no option for, written out token by token."""
    if "timestamp_begin" in given:  # Whisper's own method sets it up
        first = given.get("max_initial_timestamp_index")
        own = GenerationConfig(
            no_timestamps_token_id=given["timestamp_begin"] - 1, eos_token_id=EOS, bos_token_id=1,
            max_initial_timestamp_index=first,
        )  # fmt: skip
        processor = WhisperTimeStampLogitsProcessor(own, begin_index=1)
        return processor(torch.tensor([text]), torch.from_numpy(scores)[None])[0].numpy()
    out = scores.astype(np.float64)
    written = text[1:]  # without the prompt
    if "prefix_bias_beta" in given:
        prefix, beta = given["target_prefix_ids"], given["prefix_bias_beta"]
        if len(written) < len(prefix) and written == prefix[: len(written)]:
            shares = np.exp(out - out.max())
            shares *= (1 - beta) / shares.sum()
            shares[prefix[len(written)]] += beta
            out = np.log(shares)
    for token in range(V):
        out[token] -= given.get("presence_penalty", 0.0) * (token in written)
        out[token] -= given.get("frequency_penalty", 0.0) * written.count(token)
    if len(written) < given.get("min_length_ratio", 0.0) * len(source):
        out[EOS] = -np.inf
    allowed = set(range(V))
    if "guides" in given:
        (choices,) = (guide.key for guide in given["guides"])
        begun = [choice for choice in choices if list(choice[: len(written)]) == written]
        allowed = {choice[len(written)] if len(choice) > len(written) else EOS for choice in begun}
    if "prefix_allowed_tokens_fn" in given:
        allowed = set(given["prefix_allowed_tokens_fn"](0, np.asarray(text)))
    out[[token for token in range(V) if token not in allowed]] = -np.inf
    return out


def as_dense(ids: np.ndarray | None, scores: np.ndarray) -> np.ndarray:
    """[B, K, V] of the tokens looked at; -inf for one that is impossible or was not looked at."""
    if ids is None:
        return scores
    out = np.full((*ids.shape[:2], V), -np.inf, dtype=np.float32)
    for b, k, w in np.ndindex(ids.shape):
        out[b, k, ids[b, k, w]] = max(out[b, k, ids[b, k, w]], scores[b, k, w])
    return out


def label(given: dict[str, Any]) -> str:
    """repr, without the addresses of objects: each process of a parallel run must give a test the same name."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(given))


@pytest.mark.parametrize("given", [given for cases in CASES.values() for given in cases] + TOGETHER, ids=label)
def test_sparse_and_dense_are_transformers(given: dict[str, Any]) -> None:
    chance = np.random.default_rng(len(repr(given)))
    options = resolve(START, given, vocabulary_size=V)
    sources = np.array([[5, 6, 7, 5, 8, EOS], [9, 5, 6, 9, 6, EOS]])
    n_compared = n_sparse = 0
    for length in range(1, options.max_length):
        n_beams = 3
        # Few different tokens, so that n-grams repeat and words complete.
        text = np.concatenate([np.full((2, n_beams, 1), 1), chance.integers(4, 9, (2, n_beams, length - 1))], axis=2)
        logits = chance.normal(0, 3, (2, n_beams, V)).astype(np.float32)
        view = View(length, sources, lambda text=text: text)
        n_best = 4
        for dense, sparse_sums in ((False, False), (True, False), (False, True)):
            plan = Chain(options, V, dense=dense, sparse_sums=sparse_sums).plan(view, (2, n_beams), n_best)
            result: StepResult = seen_through(plan.query, torch.from_numpy(logits))
            try:
                read = plan.read(result, logits=True)
            except Imprecise:
                assert sparse_sums and options.renormalize_logits
                continue
            n_sparse += sparse_sums and read.ids is not None
            log_probs = torch.log_softmax(torch.from_numpy(logits), -1).numpy()
            for got, before in ((read.logits, logits), (read.log_probs, log_probs)):
                wanted = np.stack([processed_by_transformers(given, text[b], sources[b], before[b]) for b in range(2)])
                mine = as_dense(read.ids, got)
                looked = mine > -np.inf if read.ids is not None else np.ones_like(mine, dtype=bool)
                np.testing.assert_allclose(mine[looked], wanted[looked], rtol=2e-5, atol=2e-5)
                # What was not looked at is not among the best.
                threshold = -np.sort(-wanted, axis=-1)[..., n_best - 1 : n_best]
                assert looked[(wanted >= threshold) & np.isfinite(wanted)].all()
                n_compared += int(looked.sum())
    if given.get("renormalize_logits") and "do_sample" not in given:
        assert n_sparse >= 2, "it is renormalised by the tokens that rules changed, at least where much is left"
    if "guides" in given:
        return  # which allows few tokens
    assert n_compared >= 8 * 2 * 2 * 6  # Steps, kinds of plan, kinds of score, rows: at least a token of each.


@pytest.mark.parametrize("given", TOGETHER[:2], ids=repr)
def test_few_tokens_are_asked_for(given: dict[str, Any]) -> None:
    """Sparse rules never ask for the whole distribution, and for no more tokens than they may change."""
    options = resolve(START, given, vocabulary_size=5000)
    view = View(4, np.array([[5, 6, 7, EOS]]), lambda: np.array([[[1, 4, 5, 4], [1, 6, 7, 6]]]))
    query = Chain(options, 5000).plan(view, (1, 2), 4).query
    assert not query.dense
    assert query.probe_ids is not None
    assert query.n_candidates <= 4 + query.probe_ids.shape[-1] < 40


def test_a_plan_is_kept_while_nothing_changes() -> None:
    options = resolve(START, {"bad_words_ids": [[3]]}, vocabulary_size=V)
    chain = Chain(options, V)
    plans = [chain.plan(View(t, np.zeros((1, 0), np.int64), lambda: np.zeros(0)), (1, 2), 4) for t in (1, 2)]
    assert plans[0] is plans[1]


def test_very_many_tokens_make_it_dense() -> None:
    options = resolve(START, {"suppress_tokens": list(range(600))}, vocabulary_size=5000)
    view = View(4, np.zeros((1, 0), dtype=np.int64), lambda: np.zeros((1, 1, 4), dtype=np.int64))
    assert Chain(options, 5000).plan(view, (1, 1), 1).query.dense
