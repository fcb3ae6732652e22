"""wav2vec 2.0 and HuBERT with text decoders against transformers: clips of any lengths together, each as if alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_pictures
import torch
import transformers
from command_line import run_here
from tiny_moonshine import clip

import s2s_export
from s2s_export.errors import CheckpointError, UnsupportedModel
from s2s_export.exporting.families import speech_encoder_decoder

CLIPS = [clip(seed, n) for seed, n in enumerate((9000, 6001, 3000, 895))]
SPECIAL = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
STABLE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True, "num_conv_pos_embeddings": 7}
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "wav2vec2-mbart": ("Wav2Vec2", "mbart", {}),
    "wav2vec2-stable-gpt2": ("Wav2Vec2", "gpt2", STABLE),
    "wav2vec2-relu-roberta": ("Wav2Vec2", "roberta", {"hidden_act": "relu", "feat_extract_activation": "relu"}),
    "hubert-bert": ("Hubert", "bert-wide", {}),
    "hubert-bart": ("Hubert", "bart", {"feat_proj_layer_norm": False}),
    "hubert-stable-bert": ("Hubert", "bert", STABLE),
}
pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' own


def make(name: str, **more: Any) -> Any:
    torch.manual_seed(0)
    encoder, decoder, options = MODELS[name]
    sizes: dict[str, Any] = dict(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40, conv_dim=(16, 16, 12),
        conv_kernel=(10, 5, 3), conv_stride=(5, 4, 4), num_feat_extract_layers=3, num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=4, initializer_range=0.3, apply_spec_augment=False,
    )  # fmt: skip
    source = getattr(transformers, f"{encoder}Config")(**sizes | options | more)
    kind, sizes = tiny_pictures.DECODERS[decoder]
    target = getattr(transformers, f"{kind}Config")(
        vocab_size=tiny_pictures.VOCABULARY, is_decoder=True, add_cross_attention=True, **SPECIAL, **sizes
    )
    config = transformers.SpeechEncoderDecoderConfig.from_encoder_decoder_configs(source, target)
    config.update({"decoder_start_token_id": 0, **SPECIAL, "tie_word_embeddings": False})
    model = transformers.SpeechEncoderDecoderModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.2 * torch.randn_like(parameter)
    model.generation_config = transformers.GenerationConfig(max_length=20, decoder_start_token_id=0, **SPECIAL)
    return model


def exported(root: Path, name: str, settings: dict[str, Any] | None = None) -> Any:
    make(name).save_pretrained(root / "checkpoint")
    tiny_pictures.write_tokenizer(root / "checkpoint")
    if settings is not None:
        (root / "checkpoint" / "preprocessor_config.json").write_text(json.dumps(settings))
    report = s2s_export.export(root / "checkpoint", root / "bundle")
    assert max(error.relative for error in report.parity) < 2e-5
    return s2s_export.load(root / "bundle")


@pytest.mark.parametrize("name", sorted(MODELS))
def test_tokens_and_scores_are_those_of_generate(tmp_path: Path, name: str) -> None:
    session, model = exported(tmp_path, name), make(name)
    seen = set()
    for given in ({}, {"num_beams": 3, "no_repeat_ngram_size": 2}):
        for samples, (hypothesis, *_) in zip(CLIPS, session.generate(CLIPS, **given), strict=True):
            values = torch.from_numpy(session.kind.normalized(samples))[None]
            out = model.generate(input_values=values, return_dict_in_generate=True, output_scores=True, **given)
            assert hypothesis.token_ids == out.sequences[0].tolist()
            if given:
                assert abs(hypothesis.score - float(out.sequences_scores[0])) < 1e-4
            seen.add(tuple(hypothesis.token_ids))
    assert len(seen) > 1


@pytest.mark.parametrize("is_normalized", [True, False])
def test_values_are_those_of_transformers(tmp_path: Path, is_normalized: bool) -> None:
    session = exported(tmp_path, "wav2vec2-mbart", {"do_normalize": is_normalized})
    reference = transformers.Wav2Vec2FeatureExtractor(do_normalize=is_normalized)
    for samples in CLIPS:
        wanted = reference(samples, sampling_rate=16000, return_tensors="np")["input_values"][0]
        assert np.abs(session.kind.normalized(samples) - wanted).max() < 1e-6


def test_engines_transcripts_and_verify(tmp_path: Path) -> None:
    session = exported(tmp_path, "hubert-bert")
    portable = [best[0].token_ids for best in session.generate(CLIPS)]
    for target in ("cpu-fp32", "cpu-int8"):
        run_here("build", tmp_path / "bundle", "--target", target, "--quiet")
        found = s2s_export.load(tmp_path / "bundle", target=target).generate(CLIPS)
        assert target == "cpu-int8" or [best[0].token_ids for best in found] == portable
    transcript = session.transcribe(CLIPS[0]).finish()
    assert [list(part.tokens) for part in transcript.segments] == [portable[0]]
    out, _ = run_here("verify", tmp_path / "bundle", "--checkpoint", tmp_path / "checkpoint", "--quiet")
    assert "8 of 8 sources equal" in out


def test_what_can_not_be_exported_is_said(tmp_path: Path) -> None:
    model = make("wav2vec2-mbart")
    model.encoder.config.add_adapter = True
    with pytest.raises(UnsupportedModel, match="the encoder's add_adapter is True; expected False"):
        speech_encoder_decoder.describe(model)
    model.encoder.config.model_type = "wavlm"
    with pytest.raises(UnsupportedModel, match="the encoder is of type 'wavlm'; expected one of wav2vec2, hubert"):
        speech_encoder_decoder.describe(model)
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not readable as JSON"):
        speech_encoder_decoder.prepare_sources(tmp_path, {})
