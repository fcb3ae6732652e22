"""`s2s bench --audio`, and word error rates."""

from __future__ import annotations

import json
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_whisper
from click.testing import CliRunner

import s2s_export
from s2s_export.cli import s2s
from s2s_export.errors import InvalidOption, UnknownOption
from s2s_export.measuring import word_errors
from s2s_export.measuring.bench.audio import run, show
from s2s_export.measuring.bench.audio.transcribers import openvino_genai, peers


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: Any) -> Any:
    """Checkpoint, bundle and two files, of which one has a reference text."""
    folder = tmp_path_factory.mktemp("whisper")
    checkpoint = tiny_whisper.save(folder / "checkpoint", 3)
    s2s_export.export(checkpoint, folder / "bundle")
    for name, seconds in (("short", 0.6), ("long", 2.0)):
        with wave.open(str(folder / f"{name}.wav"), "wb") as file:
            file.setparams((1, 2, 16000, 0, "NONE", ""))
            file.writeframes((np.clip(tiny_whisper.clip(3, seconds), -1, 1) * 32767).astype("<i2").tobytes())
    (folder / "short.txt").write_text("It's 5 o'clock, isn't it?")
    return folder


def test_words() -> None:
    assert word_errors.words_of("It\u2019s 5 O'Clock -- isn't 'it'?") == ["it's", "5", "o'clock", "isn't", "it"]
    assert word_errors.words_of("\u4eca\u5929 ok") == ["\u4eca", "\u5929", "ok"]


def test_errors_are_the_least_edits() -> None:
    found = word_errors.word_errors("the cat sat on a mat", "The cat sat, on the big mat.")
    assert (found.n_errors, found.n_words) == (2, 7) and found.rate == pytest.approx(2 / 7)
    assert word_errors.word_errors("a b c", "").n_errors == 3 and word_errors.word_errors("", "a b").rate == 1
    assert found + found == word_errors.WordErrors(4, 14)


def test_a_run(whisper: Path) -> None:
    sounds = [word for name in ("short", "long") for word in ("--audio", str(whisper / f"{name}.wav"))]
    given = ["bench", str(whisper / "bundle"), *sounds, "--peers", "openvino-genai", "--repeats", "2", "--language",
             "en", "--num-beams", "1,2", "--batched", "--targets", "portable", "--backends", "onnxruntime",
             "--quiet"]  # fmt: skip
    out = CliRunner().invoke(
        s2s, [*given, "--json", str(whisper / "r.json"), "--html", str(whisper / "r.html")], catch_exceptions=False
    )
    assert out.exit_code == 0
    record = json.loads((whisper / "r.json").read_text())
    results = record["audio"]["results"]
    assert [(r["sound"], r["num_beams"], r["batched"]) for r in results] == [
        (name, n, side) for side in (False, True) for n in (1, 2) for name in ("short.wav", "long.wav")
    ]
    for result in results:
        seconds = {"short.wav": 0.6, "long.wav": 2.0}[result["sound"]]
        assert result["real_time_factor"] == pytest.approx(result["seconds"]["p50"] / seconds, rel=0.01)
        assert result["peak_memory"] > 2**20 and result["speed"] is None
        assert (result["word_errors"] is None) is (result["sound"] == "long.wav")
    session = s2s_export.load(whisper / "bundle", threads=1)
    plain = dict.fromkeys(("compression_ratio_threshold", "logprob_threshold", "no_speech_threshold"))
    expected = session.transcribe(str(whisper / "long.wav"), language="en", temperature=0, num_beams=2, **plain)
    assert results[3]["text"] == expected.finish().text
    assert "long.wav (2.0 s), 2 beams, batched, 1 thread" in out.stdout
    assert "OpenVINO GenAI fp32: needs a folder that optimum-intel exported" in out.stdout
    page = (whisper / "r.html").read_text()
    assert page.count("<figure>") == 8 and "speed of transcription" in page


def test_the_fastest_peer_is_the_measure() -> None:
    def result(label: str, contestant: str, precision: str, seconds: float) -> dict[str, Any]:
        quantiles = dict.fromkeys(("p50", "p90", "p99", "min", "max"), seconds)
        return {
            "label": label, "precision": precision, "threads": 1, "sound": "a.wav", "num_beams": 1, "batched": False,
            "seconds": quantiles, "seconds_cpu": quantiles, "real_time_factor": seconds / 10, "peak_memory": 2**20,
            "word_errors": None, "text": "", "speed": None, "speed_against": None, "flags": [],
            "contestant": contestant,
        }  # fmt: skip

    results = [result("ours", "s2s", "int8", 2.0), result("b", "x", "int8", 3.0), result("c", "y", "fp32", 2.5)]
    entries = [run.Entry(r["contestant"], r["label"], r["precision"], 1.0) for r in results]
    run._add_speed(results, entries)
    assert [(r["speed"], r["speed_against"]) for r in results] == [(1.5, "b"), (1.0, "b"), (1.0, "c")]
    record = {
        "contestants": [{"label": r["label"], "contestant": r["contestant"]} for r in results],
        "audio": {"sounds": [{"name": "a.wav", "seconds": 10.0}], "results": results},
    }
    assert show.verdict(record) == [
        "In int8, s2s runs at 1.50 times the speed of the fastest peer, and is faster in 1 of 1 cells."
    ]


def test_the_precision_of_an_openvino_folder(tmp_path: Path) -> None:
    assert openvino_genai._precision(str(tmp_path)) == "fp32"
    (tmp_path / "openvino_decoder_model.xml").write_text('<data element_type="f32"/><data element_type="u8"/>')
    assert openvino_genai._precision(str(tmp_path)) == "int8"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"peers": ("fast-whisper",)}, UnknownOption, "faster-whisper"),
        ({"num_beams": (0,)}, InvalidOption, "--num-beams is 0"),
        ({"folders": {"transformers": ("nowhere",)}}, InvalidOption, "nowhere: no such folder"),
    ],
    ids=["peer", "beams", "folder"],
)
def test_wrong_options(whisper: Path, options: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        run.bench(str(whisper / "bundle"), run.Options((str(whisper / "long.wav"),), **options), "")
    assert peers() == ["faster-whisper", "openvino-genai", "transformers"]


def test_options_of_sound_need_sound(whisper: Path) -> None:
    found = CliRunner().invoke(s2s, ["bench", str(whisper / "bundle"), "--batched", "--language", "en"])
    assert isinstance(found.exception, InvalidOption) and "only with --audio" in str(found.exception)
