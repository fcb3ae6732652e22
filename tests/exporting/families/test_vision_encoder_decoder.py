"""Pictures to text: every encoder and decoder, and each switch of their configurations, against transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_pictures
import torch
from tiny_pictures import PADDING, picture

import s2s_export
from s2s_export.errors import CheckpointError, UnsupportedModel
from s2s_export.exporting import pictures
from s2s_export.exporting.families import vision_encoder_decoder

PAIRS = [
    ("vit", "trocr"), ("vit", "gpt2"), ("vit", "bert"), ("vit-wide", "trocr-computed"), ("deit", "roberta"),
    ("beit", "mbart"), ("beit-shared", "bert-wide"), ("beit-both", "bart"), ("swin", "gpt2"), ("swin-odd", "trocr"),
    ("swin-absolute", "bert"), ("swin-one-window", "bert-wide"), ("donut-swin", "mbart"),
    ("donut-swin-odd", "mbart-scaled"),
]  # fmt: skip
OPTIONS: tuple[dict[str, Any], ...] = (
    {}, {"num_beams": 3}, {"num_beams": 4, "length_penalty": 0.3, "no_repeat_ngram_size": 2, "num_return_sequences": 2},
)  # fmt: skip
pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' own


@pytest.mark.parametrize(("encoder", "decoder"), PAIRS, ids=[f"{e}-{d}" for e, d in PAIRS])
def test_tokens_and_scores_are_those_of_generate(tmp_path: Path, encoder: str, decoder: str) -> None:
    checkpoint = tiny_pictures.save(tmp_path / "checkpoint", encoder, decoder)
    report = s2s_export.export(checkpoint, tmp_path / "bundle")
    assert max(error.relative for error in report.parity) < 1e-5
    session, model = s2s_export.load(tmp_path / "bundle"), tiny_pictures.make(encoder, decoder)
    assert session.bundle.manifest["sizes"]["encoder_layers"] > 0
    sources = [picture(seed) for seed in range(3)]
    pixels = torch.from_numpy(
        session.kind.prepare([session.check_source(source) for source in sources])["pixel_values"]
    )
    assert session.kind.length(sources[0]) == model.encoder(pixel_values=pixels)[0].shape[1]
    lengths = set()
    for options in OPTIONS:
        found = [hypothesis for of_one in session.generate(sources, **options) for hypothesis in of_one]
        with torch.no_grad():
            wanted = model.generate(pixel_values=pixels, return_dict_in_generate=True, output_scores=True, **options)
        for i, (hypothesis, tokens) in enumerate(zip(found, wanted.sequences.tolist(), strict=True)):
            n = len(hypothesis.token_ids)
            assert hypothesis.token_ids == tokens[:n] and set(tokens[n:]) <= {PADDING}
            if "num_beams" in options:
                assert abs(hypothesis.score - float(wanted.sequences_scores[i])) < 1e-4
            lengths.add(tuple(tokens))
    assert len(lengths) > 1  # different pictures give different texts


def test_a_transformer_of_text_takes_the_same_decoders(tmp_path: Path) -> None:
    import transformers

    torch.manual_seed(0)
    options: dict[str, Any] = dict(vocab_size=61, pad_token_id=1, bos_token_id=0, eos_token_id=2)
    source = transformers.BertConfig(**tiny_pictures.BERT, **options)
    target = transformers.MBartConfig(**tiny_pictures.BART, is_decoder=True, add_cross_attention=True, **options)
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(source, target)
    config.update({"decoder_start_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "bos_token_id": 0})
    model = transformers.EncoderDecoderModel(config).eval()
    model.generation_config.update(decoder_start_token_id=0, pad_token_id=1, eos_token_id=2, max_length=16)
    model.save_pretrained(tmp_path / "checkpoint")
    s2s_export.export(tmp_path / "checkpoint", tmp_path / "bundle")
    ids = [5, 9, 30, 2]
    [[found]] = s2s_export.load(tmp_path / "bundle").generate([ids], num_beams=3)
    wanted = model.generate(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, 4), num_beams=3)
    assert found.token_ids == wanted[0].tolist()


def test_what_can_not_be_exported_is_said(tmp_path: Path) -> None:
    model = tiny_pictures.make()
    for side, name in (("encoder", "resnet"), ("decoder", "llama")):
        part = getattr(model, side)
        before, part.config.model_type = part.config.model_type, name
        with pytest.raises(UnsupportedModel, match=f"the {side} is of type '{name}'; expected one of "):
            vision_encoder_decoder.describe(model)
        part.config.model_type = before
    swin = tiny_pictures.make("swin", "bert")
    swin.encoder.config.window_size = 13
    with pytest.raises(UnsupportedModel, match="a stage has 12 x 16 patches, fewer than a window of 13"):
        vision_encoder_decoder.describe(swin)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_processor_type": "LevitImageProcessor"}, "prepared by a 'LevitImageProcessor'; expected ViTImage"),
        ({"image_processor_type": "ViTImageProcessor", "size": 24}, "makes pictures of 24 x 24 pixels, but the model"),
        ({"image_processor_type": "ViTImageProcessor", "size": "a"}, "size is 'a'; expected height and width"),
        ({"image_processor_type": "ViTImageProcessor", "size": 16, "resample": 9}, "resample is 9; expected a filter"),
        (
            {"image_processor_type": "ViTImageProcessor", "size": 16, "image_mean": [1]},
            "image_mean is a list; expected 3",
        ),
        ({"image_processor_type": "ViTImageProcessor", "size": 16, "do_pad": True}, "do_pad is set"),
    ],
    ids=range(6),
)
def test_settings_that_can_not_be_followed(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises((CheckpointError, UnsupportedModel), match=message):
        pictures.preprocessing_of(tmp_path, (3, 16, 16))


def test_damaged_settings(tmp_path: Path) -> None:
    assert pictures.preprocessing_of(tmp_path, (3, 16, 16)) is None
    file = tmp_path / "preprocessor_config.json"
    for content, message in (("{", "not readable as JSON"), ("[]", "holds no JSON object")):
        file.write_text(content)
        with pytest.raises(CheckpointError, match=message):
            pictures.preprocessing_of(tmp_path, (3, 16, 16))
    file.unlink()
    nested = {"image_processor": {"image_processor_type": "ViTImageProcessor", "size": 16}}
    (tmp_path / "processor_config.json").write_text(json.dumps(nested))
    found = pictures.preprocessing_of(tmp_path, (3, 16, 16))
    assert found is not None and found["steps"] == [{"name": "resize", "height": 16, "width": 16, "resample": 2}]


def test_arrays_of_pixel_values_need_no_settings(tmp_path: Path) -> None:
    checkpoint = tiny_pictures.save(tmp_path / "checkpoint")
    (checkpoint / "preprocessor_config.json").unlink()
    s2s_export.export(checkpoint, tmp_path / "bundle")
    session = s2s_export.load(tmp_path / "bundle")
    assert session.generate([np.zeros((3, 16, 16), np.float32)])[0][0].token_ids
    with pytest.raises(s2s_export.errors.InputError, match="had no preprocessor_config.json"):
        session.generate([picture(0)])


def test_a_checkpoint_may_lack_the_pooler_as_those_of_trocr_do(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    checkpoint = tiny_pictures.save(tmp_path / "checkpoint")
    weights = load_file(checkpoint / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith("encoder.pooler.")}
    assert len(kept) == len(weights) - 2
    save_file(kept, checkpoint / "model.safetensors", {"format": "pt"})
    assert s2s_export.export(checkpoint, tmp_path / "bundle").notices == ()
    del kept["encoder.embeddings.cls_token"]
    save_file(kept, checkpoint / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="the weights lack 'encoder.embeddings.cls_token'"):
        s2s_export.export(checkpoint, tmp_path / "bundle", force=True)
