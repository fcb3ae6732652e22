"""Configurations of known families that can't be exact are refused by name; what a family limits, it says."""

from __future__ import annotations

import pytest
import tiny_models
import torch
import transformers

import s2s_export
from s2s_export.errors import InputError, UnsupportedModel
from s2s_export.exporting import families


def made(name, **changes):
    """A tiny model whose configuration differs in `changes`."""
    config = tiny_models.CONFIGS[name]()
    for option, value in changes.items():
        setattr(config, option, value)
    torch.manual_seed(0)
    return transformers.AutoModelForSeq2SeqLM.from_config(config)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("longt5-global", {"global_block_size": 6}, "longt5: global_block_size is 6; expected a power of two"),
        ("switch_transformers", {"router_dtype": "bfloat16"}, "router_dtype is 'bfloat16'; only 'float32' is exact"),
        ("mvp", {"use_prompt": True}, "mvp: use_prompt is true; expected false"),
        ("t5", {"dense_act_fn": "mish"}, "t5: activation function 'mish' is not supported; known: gelu, "),
    ],
)
def test_a_configuration_that_is_not_exact_is_refused(name, changes, message):
    model = made(name, **changes)
    with pytest.raises(UnsupportedModel, match=message):
        families.find(model.config.model_type).describe(model)


@pytest.mark.parametrize(
    ("encoder", "decoder", "message"),
    [
        (
            "Electra",
            "Bert",
            "encoder-decoder: the encoder is of type 'electra'; expected one of bert, roberta, xlm-rob",
        ),
        ("Bert", "BertGeneration", "encoder-decoder: the decoder is of type 'bert-generation'; expected one of bert, "),
    ],
)
def test_a_pair_of_other_models_is_refused(encoder, decoder, message):
    config = tiny_models._pair(encoder, decoder)
    with pytest.raises(UnsupportedModel, match=message):
        families.find("encoder-decoder").describe(transformers.EncoderDecoderModel(config))


def test_bigbird_takes_sources_as_long_as_its_attention_is_full(exported):
    """(5 + 2 * 1) * 4 tokens; beyond them transformers draws blocks at random."""
    session = s2s_export.load(exported("bigbird_pegasus")[1])
    assert session.generate([[5] * 28], max_new_tokens=2)
    with pytest.raises(InputError, match="29 tokens"):
        session.generate([[5] * 29], max_new_tokens=2)


@pytest.mark.parametrize("name", ["longt5-global", "led", "t5gemma"])
def test_windows_reach_as_far_as_in_transformers(exported, name):
    """Sources and targets many windows long, in a batch with short ones."""
    checkpoint, bundle = exported(name)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(checkpoint, attn_implementation="eager").eval()
    sources = [[3 + (7 * i) % 50 for i in range(40)], [5, 6, 7], [4 + i for i in range(23)]]
    pad = model.config.pad_token_id or 0
    ids = torch.tensor([source + [pad] * (40 - len(source)) for source in sources])
    mask = (torch.arange(40)[None] < torch.tensor([[len(source)] for source in sources])).long()
    options = {"num_beams": 3, "min_new_tokens": 25, "max_new_tokens": 30}
    with torch.no_grad():
        expected = model.generate(input_ids=ids, attention_mask=mask, **options).tolist()
    found = s2s_export.load(bundle, threads=1).generate(sources, **options)
    for tokens, (best, *_) in zip(expected, found, strict=True):
        assert tokens[: len(best.token_ids)] == list(best.token_ids)
