"""Moonshine against transformers: clips of any lengths together, each as it is alone; `s2s transcribe`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_moonshine
import torch
from command_line import run_here
from tiny_moonshine import clip

import s2s_export
from s2s_export import recipes
from s2s_export.building.gpu import dimensions
from s2s_export.errors import InputError, InvalidOption, UnsupportedModel, UsageError
from s2s_export.exporting.families import moonshine

CLIPS = [clip(seed, n) for seed, n in enumerate((16000, 9001, 3000, 895))]
pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' own


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    root: Path = tmp_path_factory.mktemp("moonshine")
    s2s_export.export(tiny_moonshine.save(root / "checkpoint"), root / "bundle")
    return root


@pytest.mark.parametrize("switch", sorted(tiny_moonshine.SWITCHES))
def test_tokens_and_scores_are_those_of_generate(tmp_path: Path, switch: str) -> None:
    options = tiny_moonshine.SWITCHES[switch]
    report = s2s_export.export(tiny_moonshine.save(tmp_path / "checkpoint", **options), tmp_path / "bundle")
    assert max(error.relative for error in report.parity) < 1e-5
    session, model = s2s_export.load(tmp_path / "bundle"), tiny_moonshine.make(**options)
    seen = set()
    for given in ({}, {"num_beams": 3}, {"num_beams": 4, "length_penalty": 0.3, "no_repeat_ngram_size": 2}):
        found = [best[0] for best in session.generate(CLIPS, **given)]
        for samples, hypothesis in zip(CLIPS, found, strict=True):
            out = model.generate(
                input_values=torch.from_numpy(samples)[None], return_dict_in_generate=True, output_scores=True, **given
            )
            assert hypothesis.token_ids == out.sequences[0].tolist()
            if given:
                assert abs(hypothesis.score - float(out.sequences_scores[0])) < 1e-4
            seen.add(tuple(hypothesis.token_ids))
    assert len(seen) > 4


def test_engines_for_a_cpu(folder: Path) -> None:
    portable = s2s_export.load(folder / "bundle", target="portable").generate(CLIPS)
    for target in ("cpu-fp32", "cpu-int8"):
        run_here("build", folder / "bundle", "--target", target, "--quiet")
        found = s2s_export.load(folder / "bundle", target=target).generate(CLIPS)
        assert len(found) == len(CLIPS)
        if target == "cpu-fp32":
            assert [best[0].token_ids for best in found] == [best[0].token_ids for best in portable]
    recipe = recipes.load("rtx-fp16")
    with pytest.raises(InvalidOption, match="reads samples of sound, for which engines have no range; build for a CPU"):
        dimensions.fit(s2s_export.load(folder / "bundle").bundle, recipe)


def test_transcribe(folder: Path) -> None:
    import soundfile

    session = s2s_export.load(folder / "bundle")
    transcript = session.transcribe(CLIPS[0]).finish()
    [[best]] = session.generate([CLIPS[0]])
    assert transcript.text == best.text.strip() and transcript.duration == 1.0
    assert [(part.start, part.end, part.tokens) for part in transcript.segments] == [(0, 1, tuple(best.token_ids))]
    soundfile.write(folder / "a.wav", CLIPS[0], 16000, subtype="FLOAT")
    out, _ = run_here("transcribe", folder / "bundle", folder / "a.wav", "--format", "json", "--quiet")
    assert json.loads(out)["segments"][0]["tokens"] == list(best.token_ids)
    out, _ = run_here("transcribe", folder / "bundle", folder / "a.wav", "--quiet")
    assert out.strip() == transcript.text
    for options in ({"language": "en"}, {"timestamps": "word"}, {"vad": True}):
        with pytest.raises(UsageError, match=f"without times and languages; leave out {next(iter(options))}"):
            session.transcribe(CLIPS[0], **options)


def test_verify(folder: Path) -> None:
    out, _ = run_here("verify", folder / "bundle", "--checkpoint", folder / "checkpoint", "--quiet")
    assert "8 of 8 sources equal" in out


def test_clips_that_are_too_short_or_too_long(folder: Path) -> None:
    session = s2s_export.load(folder / "bundle")
    with pytest.raises(InputError, match="the audio has 894 samples at 16 kHz; expected at least 895"):
        session.generate([np.zeros(894, np.float32)])
    n = session.kind.n_samples(moonshine.SOURCE_POSITIONS + 1)
    assert session.kind.length(np.zeros(n - 1)) == moonshine.SOURCE_POSITIONS
    with pytest.raises(InputError, match=r"the audio has 49.2 s, but the model takes 49.2 s at once; cut it"):
        session.check_source(np.zeros(n, np.float32))
    assert len(session.check_source(np.zeros(n + 5, np.float32), truncate=True)) == n - 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder_num_key_value_heads": 2}, "expected equal ones, as transformers computes no others"),
        ({"hidden_size": 36}, "a head has 9 numbers; expected an even number"),
    ],
    ids=["heads", "odd"],
)
def test_what_can_not_be_exported_is_said(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        moonshine.describe(tiny_moonshine.make(**options))
