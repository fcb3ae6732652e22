"""Speech2Text against transformers: features, clips of any lengths together, each as it is alone; `s2s transcribe`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from command_line import run_here
from tiny_moonshine import clip

import s2s_export
from s2s_export.errors import CheckpointError, InputError, UnsupportedModel
from s2s_export.exporting.families import speech_to_text
from s2s_export.runtime.audio import filter_banks

CLIPS = [clip(seed, n) for seed, n in enumerate((16000, 9001, 3000, 895))]
BANDS = 20
SPECIAL = {"decoder_start_token_id": 2, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
SWITCHES: dict[str, dict[str, Any]] = {
    "plain": {},
    "one": {"num_conv_layers": 1, "conv_kernel_sizes": (3,), "scale_embedding": False, "activation_function": "gelu"},
}
pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' own


def make(**options: Any) -> Any:
    torch.manual_seed(0)
    sizes: dict[str, Any] = dict(
        vocab_size=61, d_model=24, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=3, encoder_ffn_dim=40, decoder_ffn_dim=36, max_source_positions=60,
        max_target_positions=48, init_std=0.3, conv_channels=16, input_feat_per_channel=BANDS,
    )  # fmt: skip
    model = transformers.Speech2TextForConditionalGeneration(
        transformers.Speech2TextConfig(**sizes | SPECIAL | options)
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.2 * torch.randn_like(parameter)
    model.generation_config = transformers.GenerationConfig(max_length=20, **SPECIAL)
    return model


def exported(root: Path, settings: dict[str, Any] | None = None, **options: Any) -> Any:
    import tiny_pictures

    make(**options).save_pretrained(root / "checkpoint")
    tiny_pictures.write_tokenizer(root / "checkpoint")
    if settings is not None:
        (root / "checkpoint" / "preprocessor_config.json").write_text(json.dumps(settings))
    report = s2s_export.export(root / "checkpoint", root / "bundle")
    assert max(error.relative for error in report.parity) < 1e-5
    return s2s_export.load(root / "bundle")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    root: Path = tmp_path_factory.mktemp("speech_to_text")
    exported(root)
    return root


@pytest.mark.parametrize("settings", [{}, {"normalize_vars": False}, {"do_ceptral_normalize": False}], ids=range(3))
def test_features_are_those_of_transformers(tmp_path: Path, settings: dict[str, Any]) -> None:
    session = exported(tmp_path, settings)
    reference = transformers.Speech2TextFeatureExtractor(feature_size=BANDS, num_mel_bins=BANDS, **settings)
    for samples in CLIPS:
        wanted = reference(samples, sampling_rate=16000, return_tensors="np")["input_features"][0]
        assert np.abs(session.kind.features(samples) - wanted).max() < 1e-5
    wide = transformers.Speech2TextFeatureExtractor()._extract_fbank_features(CLIPS[0])
    assert np.abs(filter_banks.filter_banks(CLIPS[0], 80) - wide).max() < 1e-5


@pytest.mark.parametrize("switch", sorted(SWITCHES))
def test_tokens_and_scores_are_those_of_generate(tmp_path: Path, switch: str) -> None:
    session, model = exported(tmp_path, **SWITCHES[switch]), make(**SWITCHES[switch])
    seen = set()
    for given in ({}, {"num_beams": 3}, {"num_beams": 4, "length_penalty": 0.3, "no_repeat_ngram_size": 2}):
        for samples, (hypothesis, *_) in zip(CLIPS, session.generate(CLIPS, **given), strict=True):
            features = torch.from_numpy(session.kind.features(samples))[None]
            out = model.generate(input_features=features, return_dict_in_generate=True, output_scores=True, **given)
            assert hypothesis.token_ids == out.sequences[0].tolist()
            if given:
                assert abs(hypothesis.score - float(out.sequences_scores[0])) < 1e-4
            seen.add(tuple(hypothesis.token_ids))
    assert len(seen) > 3


def test_engines_transcripts_and_verify(folder: Path) -> None:
    session = s2s_export.load(folder / "bundle", target="portable")
    portable = [best[0].token_ids for best in session.generate(CLIPS)]
    for target in ("cpu-fp32", "cpu-int8"):
        run_here("build", folder / "bundle", "--target", target, "--quiet")
        found = s2s_export.load(folder / "bundle", target=target).generate(CLIPS)
        assert target == "cpu-int8" or [best[0].token_ids for best in found] == portable
    transcript = session.transcribe(CLIPS[0]).finish()
    assert [(part.start, part.end, list(part.tokens)) for part in transcript.segments] == [(0, 1, portable[0])]
    out, _ = run_here("verify", folder / "bundle", "--checkpoint", folder / "checkpoint", "--quiet")
    assert "8 of 8 sources equal" in out


def test_clips_that_are_too_short_too_long_or_silent(folder: Path) -> None:
    session = s2s_export.load(folder / "bundle")
    for samples, message in (
        (CLIPS[0][:559], "the audio has 559 samples at 16 kHz; expected at least 560"),
        (np.zeros(16000, np.float32), "is silent from end to end"),
        (clip(1, 50000), "the audio has 3.1 s, more than the model's 60 positions; cut it"),
    ):
        with pytest.raises(InputError, match=message):
            session.check_source(samples)
    assert session.kind.length(session.check_source(clip(1, 50000), truncate=True)) == 60
    assert session.generate([CLIPS[0][:560]])[0][0].token_ids


def test_what_can_not_be_exported_is_said(tmp_path: Path) -> None:
    model = make()
    model.config.pad_token_id = 0
    with pytest.raises(UnsupportedModel, match="pad_token_id is 0; expected another"):
        speech_to_text.describe(model)
    file = tmp_path / "preprocessor_config.json"
    for content, message in (
        ("{", "not readable as JSON"),
        ("[]", "holds no JSON object"),
        ('{"dither": 1}', "dither"),
    ):
        file.write_text(content)
        with pytest.raises((CheckpointError, UnsupportedModel), match=message):
            speech_to_text.prepare_sources(tmp_path, {})
