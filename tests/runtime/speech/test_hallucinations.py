"""`hallucination_silence_threshold`: which segments are left out, and where decoding goes on."""

from __future__ import annotations

from typing import Any

import pytest
from test_transcribe import PLAIN
from tiny_whisper import clip

from s2s_export.runtime.speech.hallucinations import anomaly, is_suspect, without
from s2s_export.runtime.speech.loop import Passage
from s2s_export.runtime.speech.segments import Segment, Word


def segment(start: float, probability: float = 0.9, n: int = 4, each: float = 0.3) -> Segment:
    words = tuple(Word(f" w{i}", start + i * each, start + (i + 1) * each, probability) for i in range(n))
    return Segment(start, start + n * each, (), text="".join(word.word for word in words), words=words)


def passage(*segments: Segment, seek: float = 0.0) -> Passage:
    return Passage(0, round(100 * seek), 3000, list(segments), None, 3000)  # type: ignore[arg-type]


def left(found: Passage) -> Any:
    return [s.start for s in found.segments], found.n_frames


def test_how_unlike_speech_a_word_is() -> None:
    assert anomaly(Word("a", 0, 0.5, 0.9)) == 0 and anomaly(Word("a", 0, 0.5, 0.1)) == 1
    assert anomaly(Word("a", 0, 0.033, 0.9)) == pytest.approx(1.5) and anomaly(Word("a", 0, 3.0, 0.1)) == 2.0


def test_what_is_suspect() -> None:
    assert is_suspect(segment(0, 0.1)) and is_suspect(segment(0, 0.1, n=1)) and not is_suspect(segment(0))
    assert is_suspect(segment(0, 0.1, n=20)) and not is_suspect(None) and not is_suspect(Segment(0, 1, ()))
    dot = Segment(0, 1, (), words=(Word(" .", 0, 0.3, 0.01), Word(" well", 0.3, 0.8, 0.9)))
    assert not is_suspect(dot)


def decided(*segments: Segment, seek: float = 0.0, spoken_until: float = 0.0, duration: float = 100.0) -> Any:
    return left(without(passage(*segments, seek=seek), 2.0, spoken_until, duration, 30.0))


def test_silence_before_suspect_words_is_skipped() -> None:
    assert decided(segment(5, 0.1), segment(9)) == ([], 500)
    assert decided(segment(65, 0.1), seek=60) == ([], 500)


def test_suspect_words_between_silences_are_left_out() -> None:
    assert decided(segment(0), segment(10, 0.1), segment(20)) == ([0], 1000)
    assert decided(segment(0), segment(4), segment(5.3, 0.1), segment(20)) == ([0, 4, 5.3, 20], 3000)  # close to speech
    assert decided(segment(0), segment(10, 0.1), segment(12, 0.1)) == ([0], 1000)  # two of them
    assert decided(segment(0.5, 0.1), segment(10)) == ([], 100)  # at the beginning; a second at least is passed
    assert decided(segment(0), segment(10, 0.1), duration=12.0) == ([0], 1200)  # nothing is left to be decoded


def test_speech_stays() -> None:
    assert decided(segment(0), segment(10), segment(20)) == ([0, 10, 20], 3000)
    assert decided() == ([], 3000)


def test_the_option(pairs: Any) -> None:
    given: dict[str, Any] = {"language": "en", "timestamps": "word", "temperature": 0, **PLAIN}
    session, sound = pairs().session, clip(1, 3.1)
    every = session.transcribe(sound, **given).finish()
    kept = session.transcribe(sound, hallucination_silence_threshold=0.1, **given).finish()
    assert len(kept.segments) < len(every.segments)  # a random model's words are improbable
    assert not any(is_suspect(one) and one.start < 0.1 for one in kept.segments)
