"""Sound that is still coming: which words are certain, when lines end, what stays in memory."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from test_transcribe import PLAIN
from tiny_whisper import clip

from s2s_export.cli import s2s
from s2s_export.errors import InvalidOption, UsageError
from s2s_export.runtime.speech import activity
from s2s_export.runtime.speech.agreement import Agreement
from s2s_export.runtime.speech.live import Listener, _Hypothesis
from s2s_export.runtime.speech.segments import Word, spans

RATE = 16000
SAID = "It was the best of times, it was the worst of times, it was the age of wisdom."
PACE = 0.05  # seconds of a word


@pytest.fixture(autouse=True)
def by_loudness(monkeypatch: Any) -> None:
    monkeypatch.setattr(activity, "silero", lambda: None)


def spoken(text: str, start: float = 0.0) -> list[Word]:
    return [
        Word(f" {word}", start + i * PACE, start + (i + 1) * PACE - 0.01, 0.9) for i, word in enumerate(text.split())
    ]


def texts(words: Any) -> str:
    return "".join(word.word for word in words).strip()


def test_words_are_certain_when_two_hypotheses_agree() -> None:
    agreement = Agreement()
    assert agreement.agree(spoken("it was a")) == []
    assert texts(agreement.agree(spoken("it was the best"))) == "it was"
    assert texts(agreement.tentative) == "the best"
    assert texts(agreement.agree(spoken("It was, the best of"))) == "the best"  # certain words may change no more
    assert texts(agreement.settle()) == "of" and agreement.tentative == []


@pytest.mark.parametrize("moved", [-0.3, -0.1, 0.1, 0.3])
def test_words_are_known_again_when_their_times_move(moved: float) -> None:
    agreement = Agreement()
    agreement.agree(spoken("one two three", 2.0))
    agreement.agree(spoken("one two three", 2.0))
    found = agreement.agree(spoken("two three four five", 2.1 + moved))
    assert found == [] and texts(agreement.tentative) == "four five"
    assert texts(agreement.agree(spoken("three four five six", 2.2 + moved))) == "four five"


def test_what_is_said_twice_is_kept_twice() -> None:
    agreement = Agreement()
    agreement.agree(spoken("no no no"))
    assert texts(agreement.agree(spoken("no no no no"))) == "no no no"
    assert texts(agreement.agree(spoken("no no no no no"))) == "no"


def test_text_between_times() -> None:
    assert spans([90, 5, 6, 95, 95, 7, 97, 97, 8], 90) == [(0, 4, True), (4, 7, True), (7, 9, False)]
    assert spans([5, 6], 90) == [(0, 2, False)] and spans([90, 91], 90) == [] and spans([], 90) == []


class Planted(Listener):
    """Hears `said`, a word every PACE seconds, with a wrong last word; a segment ends at each of `ends`."""

    said: Any = ()
    ends: str = ",."

    def _hypothesis(self) -> _Hypothesis:
        begin, end = self._first / RATE, (self._first + len(self._kept)) / RATE
        words = [word for word in self.said if word.start >= begin - PACE / 2 and word.end <= end]
        ends = [i + 1 for i, word in enumerate(words) if word.word[-1] in self.ends]
        return _Hypothesis([*words, Word(" wrong", end - 0.02, end, 0.1)], ends)


def planted(session: Any, said: Any, step: float = 0.1) -> Planted:
    plain = session.listener(step, language="en")
    found = Planted(plain._transcriber, plain._options, plain._generation, step)
    found.said = said
    return found


def test_all_that_is_said_is_told_once(pairs: Any) -> None:
    said = spoken(SAID)
    listener = planted(pairs().session, said)
    sound = clip(0, len(said) * PACE + 0.15)
    told, line, longest = [], "", 0
    for first in range(0, len(sound), 800):
        for heard in listener.hear(sound[first : first + 800]):
            told += [segment.text.strip() for segment in heard.segments]
            line = "" if heard.segments else line
            assert heard.certain.startswith(line)  # certain text only grows
            line = heard.certain
            longest = max(longest, len(listener._kept))
    last = listener.finish()
    told += [segment.text.strip() for segment in last.segments]
    assert told[:2] == ["It was the best of times,", "it was the worst of times,"]
    assert " ".join(told) == f"{SAID} wrong" and last.certain == last.tentative == ""
    assert longest <= listener._transcriber.kind.n_samples


def test_long_sound_without_segments_is_cut_behind_certain_words(pairs: Any) -> None:
    """At the end of a sentence, or else where the window has no more room: what is tentative never becomes certain."""
    said = spoken(
        "It was the age of wisdom. We had everything before us and then nothing so that some people went straight home"
    )
    listener = planted(pairs().session, said)
    listener.ends = ""
    sound = np.split(clip(0, len(said) * PACE + 0.1), range(800, int(len(said) * PACE * RATE), 800))
    told = [s.text.strip() for block in sound for heard in listener.hear(block) for s in heard.segments]
    assert told[0] == "It was the age of wisdom." and len(told) > 1 and "wrong" not in " ".join(told)
    told += [segment.text.strip() for segment in listener.finish().segments]
    assert " ".join(told) == f"{texts(said)} wrong"


def test_a_pause_ends_a_line(pairs: Any) -> None:
    said = spoken("is anybody there")
    listener = planted(pairs().session, said)
    sound = np.concatenate([clip(0, 0.17), np.zeros(RATE, np.float32)])
    found = [heard for first in range(0, len(sound), 1600) for heard in listener.hear(sound[first : first + 1600])]
    lines = [segment for heard in found for segment in heard.segments]
    assert [texts(line.words) for line in lines] == ["is anybody there wrong"] and lines[0].end < 1.4
    assert found[-1].certain == found[-1].tentative == "" and len(listener._kept) < RATE / 2
    assert listener.finish().segments == ()


def test_silence_is_never_decoded(pairs: Any) -> None:
    listener = pairs().session.listener()
    listener._decode = None
    assert [heard.seconds for heard in listener.hear(np.zeros(10 * RATE, np.float32))]
    assert listener.finish().segments == () and len(listener._kept) == 0


def test_text_that_repeats_itself_is_passed_over(pairs: Any) -> None:
    session = pairs().session
    for most, is_heard in ((0.0, False), (None, True)):
        given = {**PLAIN, "language": "en", "compression_ratio_threshold": most}
        heard = list(session.transcribe_live([clip(3, 2.0)], **given))
        assert any(one.segments or one.certain or one.tentative for one in heard) is is_heard


def test_a_model_listens(pairs: Any) -> None:
    session, sound = pairs().session, clip(3, 2.0)
    blocks = [sound[first : first + 1000] for first in range(0, len(sound), 1000)]
    heard = list(session.transcribe_live(blocks, step=0.4, **PLAIN))
    lines = [segment for one in heard for segment in one.segments]
    assert lines and all(segment.text == "".join(word.word for word in segment.words) for segment in lines)
    assert all(0 <= segment.start <= segment.end <= 2.3 for segment in lines)
    assert heard[-1].seconds == pytest.approx(2.0)
    again = list(session.transcribe_live([sound], step=0.4, **PLAIN))
    assert again == heard  # whatever the blocks


def test_wrong_options(pairs: Any) -> None:
    session = pairs().session
    with pytest.raises(UsageError, match="batched, clip"):
        session.listener(batched=True, clip=[(1, 2)])
    with pytest.raises(InvalidOption, match="step is 9"):
        session.listener(9)


def test_the_command_listens_to_a_pipe(pairs: Any) -> None:
    sound = clip(3, 0.3)
    raw = (sound * 32768).astype("<i2")
    listener = pairs().session.listener(language="en", **PLAIN)
    assert list(listener.hear(raw)) == []
    expected = [segment.text.strip() for segment in listener.finish().segments]
    given = ["transcribe", str(pairs().bundle), "-", "--stream", "--language", "en", "-q", "--no-speech-threshold",
             "none", "--logprob-threshold", "none", "--compression-ratio-threshold", "none"]  # fmt: skip
    out = CliRunner().invoke(s2s, given, input=raw.tobytes())
    assert out.exit_code == 0 and expected and out.stdout.splitlines() == "\n".join(expected).splitlines()
    out = CliRunner().invoke(s2s, [*given, "--format", "json"], input=raw.tobytes())
    records = [json.loads(line) for line in out.stdout.splitlines()]
    assert [record["text"].strip() for record in records] == expected
    assert all(list(record) == ["id", "start", "end", "text", "words"] for record in records)
    assert CliRunner().invoke(s2s, given, input=b"").stdout == ""
    wrong = CliRunner().invoke(s2s, [*given, "--batched"], input=b"")
    assert isinstance(wrong.exception, UsageError) and "can't be transcribed with batched" in str(wrong.exception)
