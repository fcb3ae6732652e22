"""`resolve` ends up with the values that generate() ends up with, and says what it can't use."""

from __future__ import annotations

import contextlib
import itertools
import warnings
from typing import Any

import pytest
import torch
from decoding_models import TorchState, padded, tiny_model
from transformers.generation.configuration_utils import GenerationConfig

from s2s_export.errors import InvalidOption, UnknownOption, UsageError
from s2s_export.runtime.decoding import GenerationOptions, decode, resolve

START = {"decoder_start_token_id": 1, "eos_token_id": 2, "pad_token_id": 1}


def resolved(defaults: dict[str, Any] | None = None, limit: int | None = 64, **overrides: Any) -> GenerationOptions:
    return resolve({**START, **(defaults or {})}, overrides, vocabulary_size=31, max_target_length=limit)


class Stop(Exception):
    pass


def settled_by_generate(defaults: dict[str, Any], overrides: dict[str, Any]) -> GenerationConfig:
    """The configuration that generate() hands to its decoding method."""
    model = tiny_model("marian", 31, 0)
    kept = model.generation_config
    seen = {}

    def decoding_method(self: Any, input_ids: Any, generation_config: Any, **given: Any) -> None:
        seen["config"], seen["prompt"] = generation_config, input_ids
        raise Stop

    ids, mask = padded([[5, 6, 2]], 1)
    given = dict(overrides)
    if given.get("decoder_input_ids") is not None:
        given["decoder_input_ids"] = torch.tensor([given["decoder_input_ids"]])
    methods = {name: getattr(type(model), name) for name in ("_sample", "_beam_search")}
    try:
        model.generation_config = GenerationConfig.from_dict({**START, **defaults})
        for name in methods:
            setattr(type(model), name, decoding_method)
        with warnings.catch_warnings(), pytest.raises(Stop):
            warnings.simplefilter("ignore")
            model.generate(input_ids=ids, attention_mask=mask, **given)
    finally:
        model.generation_config = kept
        for name, method in methods.items():
            setattr(type(model), name, method)
    seen["config"].prompt = tuple(seen["prompt"][0].tolist())
    return seen["config"]


LENGTHS: list[dict[str, Any]] = [
    {}, {"max_length": 9}, {"max_new_tokens": 7}, {"max_length": 9, "max_new_tokens": 3}, {"min_length": 4},
    {"min_new_tokens": 2}, {"min_new_tokens": 2, "min_length": 6, "max_length": 30},
]  # fmt: skip
PROMPTS: list[dict[str, Any]] = [{}, {"decoder_input_ids": [7, 8]}, {"decoder_input_ids": [1, 8, 9]}]


@pytest.mark.parametrize("defaults", LENGTHS)
def test_lengths_and_prompts_are_those_of_generate(defaults: dict[str, Any]) -> None:
    for length, prompt in itertools.product(LENGTHS, PROMPTS):
        overrides = {**length, **prompt}
        wanted = settled_by_generate(defaults, overrides)
        options = resolved(defaults, **overrides)
        assert (options.max_length, options.min_length) == (wanted.max_length, wanted.min_length), (defaults, overrides)
        assert options.prompt == wanted.prompt


def test_values_come_from_the_user_then_the_checkpoint_then_transformers() -> None:
    defaults = {"num_beams": 4, "length_penalty": 0.5, "top_k": None, "bad_words_ids": [[3]], "do_sample": True}
    overrides = {"num_beams": 2, "bad_words_ids": None, "early_stopping": True}
    wanted = settled_by_generate(defaults, overrides)
    options = resolved(defaults, **overrides)
    for name, ours in options.values().items():
        if name in ("seed", "decoder_input_ids") or not hasattr(wanted, name):
            continue
        theirs = getattr(wanted, name)
        if name == "eos_token_id":
            theirs = (theirs,)
        assert ours == theirs, name


def test_transformers_own_defaults_are_ours() -> None:
    theirs = GenerationConfig._get_default_generation_params()
    for name, ours in resolve({}, {"bos_token_id": 0, "eos_token_id": None}, vocabulary_size=31).values().items():
        if name in theirs and name not in ("max_length", "max_new_tokens"):
            assert ours == theirs[name], name
    assert theirs["max_length"] == 20


def test_every_option_of_transformers_is_known() -> None:
    for name in vars(GenerationConfig()):
        if not name.startswith("_"):
            with contextlib.suppress(InvalidOption):  # Some may not be None.
                resolved(**{name: None})


def test_an_unknown_option_names_its_neighbour() -> None:
    with pytest.raises(UnknownOption, match="'nun_beams'; did you mean 'num_beams'"):
        resolved(nun_beams=3)


def test_a_key_that_transformers_does_not_read_is_passed_over_in_a_checkpoint() -> None:
    assert resolved({"transformers_version": "5.0", "_from_model_config": True, "lang_to_id": {"a": 1}}).num_beams == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("penalty_alpha", 0.6), ("guidance_scale", 2.0), ("constraints", [object()]), ("max_time", 1.0),
        ("watermarking_config", {}), ("dola_layers", "low"), ("assistant_model", 1), ("token_healing", True),
        ("streamer", 1),
        ("cache_implementation", "quantized"), ("use_mtp", True),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(InvalidOption, match=f"{name}=.* is not supported"):
        resolved(**{name: value})
    with pytest.raises(InvalidOption, match=f"{name}=.* is not supported.*generation_config.json"):
        resolved({name: value})


def test_what_changes_no_token_is_accepted() -> None:
    given = {
        "num_beam_groups": 1, "diversity_penalty": 0.0, "penalty_alpha": 0.0, "guidance_scale": 1.0, "use_cache": False,
        "return_dict_in_generate": True, "output_scores": True, "cache_implementation": "static", "stop_strings": None,
        "low_memory": True, "prompt_lookup_num_tokens": 3, "return_legacy_cache": False,
    }  # fmt: skip
    assert resolved(**given) == resolved()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"num_beams": 0}, "num_beams is 0, expected an integer of at least 1"),
        ({"num_beams": True}, "num_beams is True"),
        ({"num_beams": 2.0}, "num_beams is 2.0"),
        ({"num_beams": None}, "num_beams is None"),
        ({"length_penalty": "1"}, "length_penalty is '1', expected a number"),
        ({"length_penalty": float("nan")}, "length_penalty is nan"),
        ({"early_stopping": "always"}, "expected True, False or 'never'"),
        ({"do_sample": 1}, "do_sample is 1, expected True or False"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"eos_token_id": 31}, "eos_token_id has 31, expected token ids from 0 to 30"),
        ({"eos_token_id": [2, -1]}, "eos_token_id has -1"),
        ({"suppress_tokens": [3, 40, 50]}, "suppress_tokens has 40, 50"),
        ({"bad_words_ids": [[3, 99]]}, "bad_words_ids has 99"),
        ({"bad_words_ids": [3]}, "bad_words_ids is"),
        ({"bad_words_ids": []}, "expected a non-empty list"),
        ({"bad_words_ids": [[]]}, "expected a non-empty list"),
        ({"sequence_bias": {}}, "sequence_bias is {}"),
        ({"sequence_bias": [[[3], "x"]]}, "sequence_bias is"),
        ({"decoder_input_ids": []}, "decoder_input_ids is"),
        ({"decoder_input_ids": [77]}, "decoder_input_ids has 77"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0, expected a number above 0"),
        ({"exponential_decay_length_penalty": [1]}, "exponential_decay_length_penalty is"),
        ({"num_return_sequences": 2}, "num_return_sequences is 2, expected 1"),
        ({"num_return_sequences": 3, "num_beams": 2}, "expected at most num_beams, 2"),
        ({"forced_bos_token_id": 4, "suppress_tokens": [4]}, "also in suppress_tokens"),
        ({"forced_eos_token_id": [4, 5], "suppress_tokens": [4, 5]}, "also in suppress_tokens"),
        ({"exponential_decay_length_penalty": [1, 1.1], "eos_token_id": None}, "needs eos_token_id"),
        ({"decoder_start_token_id": None}, "expected one of them"),
        ({"do_sample": True, "temperature": 0.0}, "temperature is 0.0"),
        ({"do_sample": True, "top_p": 1.5}, "top_p is 1.5"),
        ({"do_sample": True, "typical_p": 0.0}, "typical_p is 0.0"),
        ({"max_length": 66}, "max_length is 66.*at most 65"),
        ({"max_new_tokens": 65}, "max_new_tokens is 65.*outputs of 66"),
        ({"max_length": 2, "decoder_input_ids": [5]}, "the decoder prompt has 2 tokens"),
        ({"decoder_start_token_id": [1, 1]}, "decoder_start_token_id is"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_a_value_that_can_not_be_used_is_named(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        resolved(**overrides)


def test_everything_wrong_is_reported_at_once() -> None:
    with pytest.raises(InvalidOption) as caught:
        resolved(num_beams="x", length_penalty=None, max_time=3, eos_token_id=99, num_return_sequences=2)
    text = str(caught.value)
    for name in ("num_beams", "length_penalty", "max_time", "eos_token_id"):
        assert name in text
    assert "num_return_sequences" not in text  # It contradicts nothing as long as num_beams is not known.
    assert issubclass(InvalidOption, UsageError)


@pytest.mark.parametrize(
    ("defaults", "overrides"),
    [
        ({"watermarking_config": {"greenlist_ratio": 0.5}}, {"watermarking_config": None}),
        ({"num_beam_groups": 2, "num_beams": 2}, {"num_beam_groups": 1}),
        ({"num_beam_groups": 2, "num_beams": 2}, {"num_beam_groups": None}),
        ({"diversity_penalty": 0.5}, {"diversity_penalty": 0.0}),
        ({"stop_strings": ["a"]}, {"stop_strings": None}),
        ({"max_time": 5.0}, {"max_time": None}),
        ({"guidance_scale": 1.5}, {"guidance_scale": None}),
        ({"penalty_alpha": 0.6, "top_k": 4}, {"num_beams": 2}),
        ({"penalty_alpha": 0.6, "top_k": 4}, {"do_sample": True}),
        ({"penalty_alpha": 0.6, "top_k": 1}, {}),
        ({"dola_layers": "low"}, {"num_beams": 3}),
        ({"num_beams": "four"}, {"num_beams": 2}),
        ({"num_beams": 4.0}, {"num_beams": 2}),
        ({"no_repeat_ngram_size": "3"}, {"no_repeat_ngram_size": 2}),
        ({"max_new_tokens": None, "max_length": "20"}, {"max_new_tokens": 4}),
        ({"length_penalty": "1.0"}, {}),
        ({"length_penalty": "1.0", "num_beams": 2}, {"num_beams": 1}),
        ({"temperature": "0.7", "top_p": "0.9"}, {}),
        ({"top_k": "50"}, {"num_beams": 2}),
    ],
)
def test_what_is_refused_of_a_checkpoint_can_be_overridden(defaults: dict[str, Any], overrides: dict[str, Any]) -> None:
    """And what generate() does not look at is no reason to refuse. It takes all of these itself."""
    settled_by_generate(defaults, overrides)
    assert resolved(defaults, **overrides)


@pytest.mark.parametrize(
    "defaults",
    [
        {"max_new_tokens": 5.0}, {"max_length": 9.0}, {"eos_token_id": 2.0}, {"pad_token_id": 1.0},
        {"eos_token_id": [2.0, 3.0]}, {"decoder_start_token_id": 3.0}, {"suppress_tokens": [3.0]},
        {"begin_suppress_tokens": [3.0]}, {"do_sample": 0}, {"num_beams": 2, "early_stopping": 1},
        {"num_beams": 2, "length_penalty": 1}, {"renormalize_logits": 1}, {"remove_invalid_values": 1},
        {"exponential_decay_length_penalty": [2.0, 1.1]}, {"max_length": "20", "max_new_tokens": 4},
    ],
)  # fmt: skip
def test_other_types_in_a_checkpoint_are_read_as_generate_reads_them(defaults: dict[str, Any]) -> None:
    source, model = [5, 6, 2], tiny_model("marian", 31, 1)
    kept = model.generation_config
    try:
        model.generation_config = GenerationConfig.from_dict({"max_new_tokens": 6, **START, **defaults})
        ids, mask = padded([source], 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wanted = model.generate(input_ids=ids, attention_mask=mask)[0].tolist()
    finally:
        model.generation_config = kept
    options = resolved({"max_new_tokens": 6, **defaults})
    found = decode(TorchState(model, [source], options.n_rows), [source], options)[0][0].token_ids
    assert list(found) == wanted[: len(found)] and len(set(wanted[len(found) :])) <= 1


@pytest.mark.parametrize(
    "defaults",
    [
        {"num_beams": "4"}, {"num_beams": 4.0}, {"no_repeat_ngram_size": 3.0}, {"repetition_penalty": "1.2"},
        {"eos_token_id": "2"}, {"max_new_tokens": "5"}, {"forced_bos_token_id": 5.0}, {"min_length": 3.0},
        {"length_penalty": "1.0", "num_beams": 2}, {"do_sample": True, "temperature": "0.9"},
    ],
)  # fmt: skip
def test_other_types_that_generate_fails_for_are_refused_by_name(defaults: dict[str, Any]) -> None:
    with pytest.raises(InvalidOption, match=f"{next(iter(defaults))} is .* in the checkpoint's|temperature is '0.9'"):
        resolved(defaults)


def test_max_length_none_beside_max_new_tokens() -> None:
    for defaults in ({}, {"max_length": 512}, {"max_new_tokens": 7}):
        overrides = {"max_length": None, **({} if "max_new_tokens" in defaults else {"max_new_tokens": 3})}
        assert resolved(defaults, **overrides).max_length == settled_by_generate(defaults, overrides).max_length
    with pytest.raises(InvalidOption, match="max_length is None, expected a value, or one of max_new_tokens"):
        resolved(max_length=None)


def test_looking_tokens_up_in_the_prompt_changes_none() -> None:
    """So that the option, which saves time in transformers, is taken and has no effect."""
    for seed in range(3):
        model = tiny_model("marian", 31, seed)
        ids, mask = padded([[5, 6, 7, 8, 5, 6, 9, 2]], 1)
        given = {"input_ids": ids, "attention_mask": mask, "max_new_tokens": 12, "do_sample": False}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert model.generate(**given, prompt_lookup_num_tokens=3).tolist() == model.generate(**given).tolist()


def test_sampling_ranges_do_not_matter_without_sampling() -> None:
    assert resolved(temperature=0.0, top_p=7).temperature == 0.0


def test_a_limit_of_the_checkpoint_is_lowered_to_the_bundles() -> None:
    assert resolved({"max_length": 512}).max_length == 65
    assert resolved({"max_new_tokens": 512}).max_length == 65
    assert resolved(limit=9).max_length == 9
    assert resolved({"max_length": 512}, limit=None).max_length == 512


def test_options_can_be_grouped() -> None:
    given = {
        "bad_words_ids": [[3], [4, 5]],
        "sequence_bias": [[[3], 1.0]],
        "eos_token_id": [2, 3],
        "decoder_input_ids": [[5]],
    }
    assert hash(resolved(**given)) == hash(resolved(**given))
    assert resolved(**given) == resolved(**{**given, "sequence_bias": {(3,): 1.0}, "decoder_input_ids": [5]})
