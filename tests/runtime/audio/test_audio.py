"""Files of sound, and log-mel features against transformers'."""

from __future__ import annotations

import io
import tracemalloc
import wave
from typing import Any

import numpy as np
import pytest
import transformers

from s2s_export.errors import InputError
from s2s_export.runtime.audio import files
from s2s_export.runtime.audio.log_mel import log_mel, mel_filters
from s2s_export.runtime.speech import activity


@pytest.mark.parametrize("n_bands", [80, 128])
def test_features_are_those_of_transformers(n_bands: int) -> None:
    rng = np.random.default_rng(0)
    theirs = transformers.WhisperFeatureExtractor(feature_size=n_bands)
    assert np.abs(mel_filters(n_bands) - theirs.mel_filters).max() < 1e-8
    loudness = np.linspace(0, 0.5, 40_000) ** 2
    for samples in (rng.standard_normal(40_000) * loudness, np.sin(np.arange(30_000) * 0.3), np.zeros(20_000)):
        clip = samples.astype(np.float32)
        expected = theirs(clip, sampling_rate=16000, return_tensors="np").input_features[0]
        found = log_mel(np.pad(clip, (0, 480_000 - len(clip))), n_bands)
        assert found.shape == expected.shape == (n_bands, 3000)
        assert np.abs(found - expected).max() < 1e-4


def wav(samples: Any, rate: int = 16000, n_channels: int = 1) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((n_channels, 2, rate, 0, "NONE", ""))
        out.writeframes(np.asarray(samples, "<i2").tobytes())
    return file.getvalue()


def test_16_bits_at_16_khz_are_exact() -> None:
    samples = np.array([0, 1, -1, 32767, -32768, 5])
    assert (files.read(wav(samples)) == (samples / 32768).astype(np.float32)).all()
    assert (files.read(samples.astype(np.int16)) == (samples / 32768).astype(np.float32)).all()
    assert (files.read((samples / 32768, 16000)) == (samples / 32768).astype(np.float32)).all()


def test_channels_are_averaged() -> None:
    stereo = np.array([[100, 300], [-200, 200], [0, 8]])
    assert (files.read(wav(stereo, n_channels=2)) * 32768).tolist() == [200, 0, 4]
    eight = np.ones((50, 8), np.float32) * 0.25
    assert files.read(eight).tolist() == [0.25] * 50


def test_long_sound_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hours of sound take the memory of their samples, and little more while they are read and looked at."""
    monkeypatch.setattr(files, "BLOCK", 1 << 12)
    monkeypatch.setattr(activity, "AT_ONCE", 8)
    samples = np.random.default_rng(0).integers(-3000, 3000, 100_077).astype(np.int16)
    tracemalloc.start()
    try:
        read = files.read(samples)
        _, of_reading = tracemalloc.get_traced_memory()
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        is_silent = activity.is_silent(read)
        _, of_looking = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (read == (samples / 32768).astype(np.float32)).all()
    assert not is_silent
    assert of_reading < 2 * read.nbytes
    assert of_looking - before < read.nbytes / 2


def test_a_file_that_was_cut_gives_what_is_there() -> None:
    whole = wav(np.arange(1000))
    assert len(files.read(whole[:-500])) == 750
    assert len(files.read(whole[:-501])) == 749


@pytest.mark.parametrize("rate", [8000, 44100, 192000])
def test_other_rates_are_resampled(rate: int) -> None:
    pytest.importorskip("soxr", reason="soxr is not installed: pip install 's2s-export[audio]'")
    tone = (8000 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)).astype(np.int16)
    found = files.read(wav(tone, rate))
    assert abs(len(found) - 16000) <= 1
    spectrum = np.abs(np.fft.rfft(found[:16000]))
    assert int(spectrum.argmax()) == 440


@pytest.mark.parametrize("form", ["FLAC", "OGG", "MP3"])
def test_other_formats(form: str) -> None:
    soundfile = pytest.importorskip("soundfile", reason="soundfile is not installed: pip install 's2s-export[audio]'")
    file = io.BytesIO()
    soundfile.write(file, 0.3 * np.sin(np.arange(16000) * 0.1), 16000, format=form)
    assert abs(len(files.read(file.getvalue())) - 16000) < 2500


def test_what_is_no_sound_is_one_sentence(tmp_path: Any) -> None:
    (tmp_path / "a.wav").write_text("some text")
    (tmp_path / "b.wav").write_bytes(b"RIFF" + bytes(20))
    for name, message in (
        ("a.wav", "is no audio that can be read"),
        ("b.wav", "is no audio that can be read"),
        ("c.wav", "can't be read"),
    ):
        with pytest.raises(InputError, match=message):
            files.read(tmp_path / name)
    with pytest.raises(InputError, match="can't be read"):
        files.read(tmp_path)
