"""Several audios whose parts share batches: each gives what it gives alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from test_transcribe import PLAIN, write_wav
from tiny_whisper import clip

from s2s_export.cli import s2s
from s2s_export.errors import InputError, InvalidOption
from s2s_export.runtime.speech import activity
from s2s_export.runtime.speech.windows import WindowDecoder

GIVEN: dict[str, Any] = {"language": "en", "temperature": 0, "batched": True, **PLAIN}
PAUSE = np.zeros(16000, np.float32)


@pytest.fixture(autouse=True)
def by_loudness(monkeypatch: Any) -> None:
    """Noise is no speech for Silero's network."""
    monkeypatch.setattr(activity, "silero", lambda: None)


def audio(seed: int, *seconds: float) -> Any:
    """Bursts of sound with pauses."""
    return np.concatenate([part for i, n in enumerate(seconds) for part in (clip(10 * seed + i, n), PAUSE)])


AUDIOS = [audio(1, 0.5), audio(2, 1.9, 0.6, 0.7), audio(3, 0.4, 0.6), audio(4, 0.6)]


def told(transcription: Any) -> list[Any]:
    return [(s.tokens, s.start, s.end, s.text) for s in transcription]


@pytest.fixture
def sizes(monkeypatch: Any) -> list[int]:
    """How many windows were encoded together each time."""
    found: list[int] = []
    encode = WindowDecoder.encode

    def counted(self: Any, features: Any) -> Any:
        found.append(len(features))
        return encode(self, features)

    monkeypatch.setattr(WindowDecoder, "encode", counted)
    return found


@pytest.mark.parametrize("options", [{}, {"temperature": (0.7,), "seed": 3}, {"timestamps": "word"}], ids=str)
def test_each_gives_what_it_gives_alone(pairs: Any, sizes: list[int], options: Any) -> None:
    session, given = pairs().session, {**GIVEN, **options}
    alone = [told(session.transcribe(sound, batch_size=1, **given)) for sound in AUDIOS]
    sizes.clear()
    together = [told(found) for found in session.transcribe_many(AUDIOS, batch_size=3, **given)]
    assert together == alone
    assert sum(map(len, together)) > 8
    assert sizes[:-3] == [3] * (len(sizes) - 3)  # refilled until there is nothing to refill with


def test_they_may_be_used_in_any_order(pairs: Any) -> None:
    session = pairs().session
    found = list(session.transcribe_many(AUDIOS, batch_size=3, **GIVEN))
    backwards = [told(one) for one in reversed(found)]
    assert backwards[::-1] == [told(session.transcribe(sound, **GIVEN)) for sound in AUDIOS]
    assert [one.duration for one in found] == [len(sound) / 16000 for sound in AUDIOS]


def test_audios_are_read_when_they_are_needed(pairs: Any, monkeypatch: Any) -> None:
    session, read = pairs().session, []
    check = session.kind.check
    monkeypatch.setattr(session.kind, "check", lambda sound, **k: read.append(len(read)) or check(sound, **k))
    found = session.transcribe_many([AUDIOS[0]] * 9, batch_size=2, **GIVEN)
    next(found).finish()
    assert len(read) <= 4
    assert len(list(found)) == 8


@pytest.mark.parametrize("batched", [True, False])
def test_what_cannot_be_read_costs_itself_alone(pairs: Any, batched: bool) -> None:
    session, given = pairs().session, {**GIVEN, "batched": batched}
    good, bad, last = session.transcribe_many([AUDIOS[0], b"no sound", AUDIOS[3]], **given)
    with pytest.raises(InputError, match="is no audio that can be read"):
        bad.finish()
    assert told(good) == told(session.transcribe(AUDIOS[0], **given))
    assert told(last) == told(session.transcribe(AUDIOS[3], **given))


def test_a_batch_that_fails_is_decoded_again_by_parts(pairs: Any, monkeypatch: Any) -> None:
    session = pairs().session
    expected = [told(session.transcribe(sound, **GIVEN)) for sound in AUDIOS]
    encode, features_of = WindowDecoder.encode, session.kind.features
    poison = clip(21, 0.6)[1000]  # is in the last window but one of the second audio

    def marked(samples: Any) -> Any:
        array = features_of(samples)
        return np.full_like(array, 99) if poison in samples else array

    def failing(self: Any, features: Any) -> Any:
        if any((array == 99).any() for array in features):
            raise MemoryError
        return encode(self, features)

    monkeypatch.setattr(session.kind, "features", marked)
    monkeypatch.setattr(WindowDecoder, "encode", failing)
    found = list(session.transcribe_many(AUDIOS, batch_size=4, **GIVEN))
    assert [told(found[i]) for i in (0, 2, 3)] == [expected[i] for i in (0, 2, 3)]
    before = []
    with pytest.raises(MemoryError):
        before.extend(found[1])
    assert told(found[1].so_far().segments) == expected[1][: len(found[1].so_far().segments)]
    assert 0 < len(found[1].so_far().segments) < len(expected[1])


def test_after_an_interruption_it_goes_on(pairs: Any, monkeypatch: Any) -> None:
    session = pairs().session
    expected = [told(session.transcribe(sound, **GIVEN)) for sound in AUDIOS]
    encode, n_calls = WindowDecoder.encode, 0

    def interrupted(self: Any, features: Any) -> Any:
        nonlocal n_calls
        n_calls += 1
        if n_calls == 2:
            raise KeyboardInterrupt
        return encode(self, features)

    monkeypatch.setattr(WindowDecoder, "encode", interrupted)
    found = list(session.transcribe_many(AUDIOS, batch_size=3, **GIVEN))
    with pytest.raises(KeyboardInterrupt):
        found[1].finish()
    assert found[0].finish().text == "".join(part[3] for part in expected[0]).strip()


def interrupt_encoding(monkeypatch: Any, at: int) -> None:
    """Ctrl-C when a batch is encoded for the `at`-th time."""
    encode, n_calls = WindowDecoder.encode, 0

    def interrupted(self: Any, features: Any) -> Any:
        nonlocal n_calls
        n_calls += 1
        if n_calls == at:
            raise KeyboardInterrupt
        return encode(self, features)

    monkeypatch.setattr(WindowDecoder, "encode", interrupted)


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_when_it_is_stopped_all_that_is_decoded_is_given(pairs: Any, monkeypatch: Any, at: int) -> None:
    session = pairs().session
    expected = [told(session.transcribe(sound, **GIVEN)) for sound in AUDIOS]
    interrupt_encoding(monkeypatch, at)
    n_begun = n_whole = 0
    for i, found in enumerate(session.transcribe_many(AUDIOS, batch_size=5, **GIVEN)):
        try:
            found.finish()
        except KeyboardInterrupt:
            found.stop()
            found.finish()
        segments = told(found.so_far().segments)
        assert all(segment in expected[i] for segment in segments)
        assert not found.is_whole or segments == expected[i]
        n_begun, n_whole = n_begun + 1, n_whole + found.is_whole
    assert n_begun < len(AUDIOS) or n_whole < len(AUDIOS)
    assert n_begun > 1  # one batch holds parts of several audios
    assert at < 4 or n_whole  # the first audio has fewer windows


def test_without_batches_no_other_audio_is_begun(pairs: Any) -> None:
    found = []
    for transcription in pairs().session.transcribe_many(AUDIOS, **{**GIVEN, "batched": False}):
        found.append(transcription)
        transcription.stop()
    assert len(found) == 1 and not found[0].finish().segments and not found[0].is_whole


def test_the_command_keeps_what_is_decoded(pairs: Any, tmp_path: Path, monkeypatch: Any) -> None:
    names = [write_wav(tmp_path / f"{i}.wav", sound) for i, sound in enumerate(AUDIOS)]
    given = ["transcribe", str(pairs().bundle), *map(str, names), "--language", "en", "--temperature", "0", "-q",
             "--no-speech-threshold", "none", "--logprob-threshold", "none", "--compression-ratio-threshold", "none",
             "--batch-size", "5", "--batched", "--output-dir", str(tmp_path / "o"), "--format", "json"]  # fmt: skip
    with monkeypatch.context() as patch:
        interrupt_encoding(patch, 4)
        out = CliRunner().invoke(s2s, given)
    assert out.exit_code == 1 and isinstance(out.exception, SystemExit)
    written = sorted(path.name for path in (tmp_path / "o").iterdir())
    parts = [name for name in written if ".unfinished." in name]
    assert parts and len(written) > len(parts)
    out = CliRunner().invoke(s2s, [*given, "--resume"])
    assert out.exit_code == 0
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == [f"{i}.json" for i in range(len(AUDIOS))]


def test_wrong_options_are_told_at_once(pairs: Any) -> None:
    with pytest.raises(InvalidOption, match="batch_size is 0"):
        pairs().session.transcribe_many([], batch_size=0, batched=True)
    with pytest.raises(InvalidOption, match="language"):
        pairs(False).session.transcribe_many([], language="de")


def test_the_command_writes_each_file(pairs: Any, tmp_path: Path) -> None:
    names = [write_wav(tmp_path / f"{i}.wav", sound) for i, sound in enumerate(AUDIOS)]
    (tmp_path / "bad.wav").write_text("no sound")
    given = ["transcribe", str(pairs().bundle), *map(str, names[:2]), str(tmp_path / "bad.wav"), *map(str, names[2:]),
             "--language", "en", "--temperature", "0", "--no-speech-threshold", "none", "--logprob-threshold", "none",
             "--compression-ratio-threshold", "none", "-q", "--batch-size", "3"]  # fmt: skip
    out = CliRunner().invoke(s2s, [*given, "--batched", "--output-dir", str(tmp_path / "o"), "--format", "json"])
    assert out.exit_code == 1 and out.stderr.count("\n") == 1 and "bad.wav: is no audio" in out.stderr
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == [f"{i}.json" for i in range(4)]
