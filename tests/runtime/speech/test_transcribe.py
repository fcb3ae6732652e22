"""`Session.transcribe`, its formats, and `s2s transcribe`."""

from __future__ import annotations

import json
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from tiny_whisper import SAMPLES, clip

from s2s_export.cli import s2s
from s2s_export.errors import InputError, InvalidOption, UsageError
from s2s_export.runtime.speech import activity, formats
from s2s_export.runtime.speech.activity import loud_seconds
from s2s_export.runtime.speech.formats import WRITERS, Lines, Transcript
from s2s_export.runtime.speech.loop import Fallback, Passage
from s2s_export.runtime.speech.segments import Segment, Word, cut
from s2s_export.runtime.speech.tokens import SpeechTokens
from s2s_export.runtime.speech.transcribe import TranscribeOptions, Transcriber
from s2s_export.runtime.speech.windows import DecodedWindow

PLAIN: dict[str, Any] = {"no_speech_threshold": None, "logprob_threshold": None, "compression_ratio_threshold": None}
WORDS = (Word(" Hello", 0.0, 0.5, 0.9), Word(" there,", 0.5, 1.0, 0.8), Word(" you", 1.0, 3661.5, 0.7))
TRANSCRIPT = Transcript(
    (
        Segment(0.0, 3661.5, (7, 8), text=" Hello there,\tyou --> me", words=WORDS),
        Segment(3661.5, 3662.0, (9,), text=" Bye"),
    ),
    "en",
    3662.25,
)  # fmt: skip


@pytest.fixture(autouse=True)
def by_loudness(monkeypatch: Any) -> None:
    """Noise is no speech for Silero's network."""
    monkeypatch.setattr(activity, "silero", lambda: None)


def write_wav(path: Path, samples: Any, rate: int = 16000) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
    return path


def test_without_thresholds_it_is_the_loop_of_generate(pairs: Any) -> None:
    session, sound = pairs().session, clip(1, 3.1)
    [[expected]] = session.generate([sound], language="en", return_timestamps=True)
    found = session.transcribe(sound, language="en", temperature=0, **PLAIN).finish()
    texts = [segment for segment in expected.segments if segment.text.strip()]
    assert [segment.tokens for segment in found.segments] == [segment.tokens for segment in texts]
    assert [segment.start for segment in found.segments] == pytest.approx([s.start for s in texts])
    assert found.duration == pytest.approx(3.1)


def test_words_lie_within_the_sound_and_spell_the_text(pairs: Any) -> None:
    found = pairs().session.transcribe(clip(1, 3.1), language="en", timestamps="word", temperature=0, **PLAIN).finish()
    assert found.segments
    for segment in found.segments:
        assert segment.words is not None
        assert "".join(word.word for word in segment.words) == segment.text
        assert all(0 <= word.start <= word.end <= 3.9 for word in segment.words)


@pytest.mark.parametrize("options", [{"vad": True}, {"batched": True}, {"clip": [(0.5, 1.2), (2.0, None)]}], ids=str)
def test_parts_of_it(pairs: Any, options: dict[str, Any]) -> None:
    sound = np.concatenate([clip(1, 1.0), np.zeros(5 * 16000, np.float32), clip(2, 1.0)])
    found = (
        pairs().session.transcribe(sound, language="de", timestamps="word", temperature=0, **PLAIN, **options).finish()
    )
    assert all(-0.01 <= segment.start <= 7.5 for segment in found.segments)
    if "clip" not in options:
        assert not any(2.0 < segment.start < 5.0 for segment in found.segments)


@pytest.mark.parametrize("options", [{}, {"vad": True}, {"batched": True}], ids=str)
def test_nothing_outside_a_clip_is_transcribed(pairs: Any, options: dict[str, Any]) -> None:
    sound = np.concatenate([clip(1, 1.5), np.zeros(3 * 16000, np.float32), clip(2, 1.5)])
    session = pairs().session
    given = {"language": "de", "temperature": 0, **PLAIN, **options}
    whole = session.transcribe(sound, **given).finish()
    last = session.transcribe(sound, clip=[(4.0, None)], **given).finish()
    assert any(segment.start < 1.5 for segment in whole.segments)
    assert last.segments and all(segment.start >= 3.9 for segment in last.segments)


def test_silence_is_no_text(pairs: Any) -> None:
    assert pairs().session.transcribe(np.zeros(40000, np.float32)).finish().text == ""


def test_the_language_is_told(pairs: Any) -> None:
    found = pairs().session.transcribe(clip(3, 0.7))
    assert found.language in ("en", "de") and 0.5 <= found.language_probability <= 1


def test_draws_depend_on_the_seed_alone(pairs: Any) -> None:
    def texts(seed: int) -> list[Any]:
        found = pairs().session.transcribe(clip(3, 2.0), temperature=(0.8,), seed=seed, language="en", **PLAIN).finish()
        return [segment.tokens for segment in found.segments]

    assert texts(1) == texts(1) != texts(2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timestamps": "letters"}, "timestamps is 'letters', expected one of none, segment, word"),
        ({"task": "sing", "batch_size": 0}, "task is 'sing'.*batch_size is 0"),
        ({"hallucination_silence_threshold": 1.0}, "needs timestamps='word'"),
        ({"clip": [(3.0, 2.0)]}, "expected an end behind a start"),
    ],
)
def test_wrong_options_are_named_together(pairs: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        pairs().session.transcribe(clip(1, 0.5), **options)


def test_fallback_rules() -> None:
    def window(avg: float, silence: float) -> DecodedWindow:
        return DecodedWindow([1, 2], [], avg, silence, 0.0)

    rules = Fallback((0.0, 0.2), 2.4, -1.0, 0.6)
    assert rules.wants_another(window(-0.5, 0.1), 2.5)  # repeats itself
    assert rules.wants_another(window(-1.5, 0.1), 1.0)  # unlikely
    assert not rules.wants_another(window(-1.5, 0.9), 1.0) and rules.is_silence(window(-1.5, 0.9))
    assert not rules.is_silence(window(-0.5, 0.9))  # likely text: somebody speaks
    assert Fallback(no_speech_alone=0.9).is_silence(window(-0.1, 0.95))
    assert Fallback().ratio([258] * 40, 300) > 5 and Fallback(text_of=lambda ids: "").ratio([1], 300) == 0


def test_sparse_and_doubtful_text_over_loud_sound_is_left_out(pairs: Any) -> None:
    session = pairs().session
    transcriber = Transcriber(session._speech_search, session.tokenizer)
    words = session.tokenizer.encode_target("a b c d e f")
    loud, short = clip(1, 20.0), clip(1, 5.0)

    def is_kept(sound: Any, silence: float, temperature: float, **options: Any) -> bool:
        window = DecodedWindow(words, [], -0.5, silence, temperature)
        passage = Passage(0, 0, 80, [Segment(0.0, 0.8, tuple(words))], window)
        return bool(transcriber.without_music(passage, loud_seconds(sound), TranscribeOptions(**options)).segments)

    assert not is_kept(loud, 0.3, 0.2)
    assert is_kept(short, 0.3, 0.2) and is_kept(loud, 0.2, 0.2) and is_kept(loud, 0.3, 0.0)
    assert is_kept(loud, 0.9, 0.4, no_speech_threshold=None)


def test_tokens_are_cut_at_pairs_of_times() -> None:
    speech = SpeechTokens(0, 1, 99, False)
    t = speech.timestamp_begin

    def spans(tokens: list[int], n: int = 3000) -> Any:
        found, advance = cut(tokens, speech, 100, n)
        return [(round(s.start, 2), round(s.end, 2), s.tokens) for s in found], advance

    assert spans([t, 5, t + 50]) == ([(1.0, 2.0, (t, 5, t + 50))], 3000)
    assert spans([t, 5, t + 50, t + 50, 6]) == ([(1.0, 2.0, (t, 5, t + 50, t + 50))], 100)
    assert spans([t, 5, t + 50, t + 50, 6, t + 80]) == (
        [(1.0, 2.0, (t, 5, t + 50)), (2.0, 2.6, (t + 50, 6, t + 80))],
        3000,
    )
    assert spans([5, 6], 200) == ([(1.0, 3.0, (5, 6))], 200)


def test_regions_of_speech() -> None:
    p = np.zeros(400, np.float32)
    p[100:130], p[140:150], p[300:310] = 0.9, 0.9, 0.9
    rules = activity.Rules(least_silence=1.0, padding=0.1)
    n = activity.FRAME
    assert activity.cut(p, 400 * n, rules) == [(100 * n - 1600, 150 * n + 1600), (300 * n - 1600, 310 * n + 1600)]
    assert activity.cut(np.ones(10, np.float32), 10 * n, rules) == [(0, 10 * n)]
    assert activity.cut(np.zeros(10, np.float32), 10 * n, rules) == []
    # Neighbours share what is between them; speech that is too long is divided where somebody breathes.
    p = np.ones(100, np.float32)
    p[38:44] = p[60:70] = 0
    close = activity.Rules(least_silence=0.25, padding=1.0)
    assert activity.cut(p, 100 * n, close) == [(0, 65 * n), (65 * n, 100 * n)]

    def divided(n_frames: int, most: int) -> list[tuple[int, int]]:
        rules = activity.Rules(padding=0.0, most_speech=most * n / 16000)
        return [(a // n, b // n) for a, b in activity.cut(p[:n_frames], n_frames * n, rules)]

    assert divided(100, 70) == [(0, 60), (70, 100)]
    assert divided(60, 50) == [(0, 38), (44, 60)]
    assert divided(38, 21) == [(0, 21), (21, 38)]
    assert activity.chunks([(0, 10), (12, 20), (25, 60)], 20) == [[(0, 10), (12, 20)], [(25, 45)], [(45, 60)]]


def test_formats() -> None:
    written = {name: writer(TRANSCRIPT, Lines()) for name, writer in WRITERS.items()}
    assert written["text"] == "Hello there,\tyou --> me\nBye\n"
    assert written["srt"] == (
        "1\n00:00:00,000 --> 01:01:01,500\nHello there,\tyou -> me\n\n2\n01:01:01,500 --> 01:01:02,000\nBye\n\n"
    )
    assert written["vtt"].startswith("WEBVTT\n\n00:00.000 --> 01:01:01.500\n")
    assert written["tsv"] == "start\tend\ttext\n0\t3661500\tHello there, you --> me\n3661500\t3662000\tBye\n"
    assert written["lrc"] == "[00:00.00]Hello there,\tyou -> me\n[61:01.50]Bye\n"
    record = json.loads(written["json"])
    assert record["text"] == TRANSCRIPT.text and record["language"] == "en" and record["duration"] == 3662.25
    assert {"id", "seek", "start", "end", "text", "tokens", "temperature", "avg_logprob", "compression_ratio",
            "no_speech_prob", "words"} == set(record["segments"][0])  # fmt: skip
    assert record["segments"][0]["words"][0] == {"word": " Hello", "start": 0.0, "end": 0.5, "probability": 0.9}


def test_lines_of_subtitles() -> None:
    def of(lines: Lines) -> list[str]:
        return [text for _, _, text in formats.cues(TRANSCRIPT.segments, lines)]

    assert of(Lines(width=12)) == ["Hello\nthere, you", "Bye"]
    assert of(Lines(width=12, count=1)) == ["Hello", "there, you", "Bye"]
    assert of(Lines(words=2)) == ["Hello there,", "you", "Bye"]
    assert of(Lines(highlights=True))[1] == "Hello <u>there,</u> you"


def test_the_command(pairs: Any, tmp_path: Path) -> None:
    bundle, good = pairs().bundle, write_wav(tmp_path / "good.wav", clip(1, 2.0))
    (tmp_path / "bad.wav").write_text("no sound")
    run = CliRunner().invoke
    given = ["transcribe", str(bundle), "--language", "en", "--temperature", "0", "--no-speech-threshold", "none",
             "--logprob-threshold", "none", "--compression-ratio-threshold", "none", "-q"]  # fmt: skip
    out = run(s2s, [*given, str(good), "--format", "json"])
    assert out.exit_code == 0, out.output
    record = json.loads(out.stdout)
    assert record["segments"] and record["duration"] == 2.0
    out = run(
        s2s,
        [
            *given,
            str(good),
            str(tmp_path / "bad.wav"),
            str(good),
            "--output-dir",
            str(tmp_path / "o"),
            "--format",
            "srt",
        ],
    )
    assert out.exit_code == 1
    assert out.stderr.count("\n") == 1 and "bad.wav: is no audio that can be read" in out.stderr
    assert (tmp_path / "o" / "good.srt").read_text().startswith("1\n00:00:")
    streamed = run(s2s, [*given, str(good), "--stream"])
    assert streamed.stdout == run(s2s, [*given, str(good)]).stdout
    lines = run(s2s, [*given, str(good), "--stream", "--format", "json"]).stdout.splitlines()
    assert [json.loads(line) for line in lines] == [{"audio": str(good), **segment} for segment in record["segments"]]
    wrong = run(s2s, [*given, str(good), "--stream", "--format", "srt"])
    assert isinstance(wrong.exception, UsageError) and "--stream prints text or lines of JSON" in str(wrong.exception)
    assert run(s2s, ["transcribe", "--help"]).exit_code == 0


def test_lines_of_json_with_audio(pairs: Any, tmp_path: Path) -> None:
    good = write_wav(tmp_path / "good.wav", clip(1, 2.0))
    cases = [
        {"audio": str(good), "return_timestamps": True, "language": "en"},
        {"audio": "none.wav"},
        {"text": "x"},
        {"audio": 3},
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, cases)))
    out = CliRunner().invoke(
        s2s,
        [
            "generate",
            str(pairs().bundle),
            "--input",
            str(tmp_path / "in.jsonl"),
            "--output",
            str(tmp_path / "out"),
            "-q",
        ],
    )
    assert out.exit_code != 0 or "error" in (tmp_path / "out").read_text()
    lines = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    assert (
        lines[0]["segments"]
        and [t for s in lines[0]["segments"] for t in s["tokens"]] == lines[0]["outputs"][0]["token_ids"]
    )
    assert "none.wav: can't be read" in lines[1]["error"]
    assert "takes no 'text'" in lines[2]["error"] and "expected the name of an audio file" in lines[3]["error"]


def test_sound_that_is_none(pairs: Any) -> None:
    session = pairs().session
    for sound, message in (
        (np.array([0.1, np.nan], np.float32), "NaN or infinite"),
        (np.zeros(0, np.float32), "has no samples"),
        (b"", "is empty"),
        (np.zeros((2, 2, 2)), "expected numbers"),
        (([0.0, 1.0], "44k"), "rate of the audio is '44k'"),
        (([0.0, 1.0], 3), "has 3 samples a second"),
    ):
        with pytest.raises(InputError, match=message):
            session.transcribe(sound)
    assert session.transcribe(np.zeros(10, np.float32)).finish().text == ""
    assert session.kind.n_samples == SAMPLES
