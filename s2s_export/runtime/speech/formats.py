"""A transcript as text, subtitles, tables or JSON, written as OpenAI's whisper and faster-whisper write them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .segments import Segment


@dataclass(frozen=True)
class Lines:
    """How subtitles are broken into lines. Each needs the times of words.

    width: characters of a line. count: lines of a cue. words: words of a line. highlights: one cue a word, underlined.
    """

    width: int | None = None
    count: int | None = None
    words: int | None = None
    highlights: bool = False

    @property
    def need_words(self) -> bool:
        return self != Lines()


@dataclass(frozen=True)
class Transcript:
    """All of one audio's text. duration: seconds. language_probability: None where the language was given."""

    segments: tuple[Segment, ...]
    language: str | None
    duration: float
    language_probability: float | None = None

    @property
    def text(self) -> str:
        return "".join(segment.text for segment in self.segments).strip()


Cue = tuple[float, float, str]


def cues(segments: Sequence[Segment], lines: Lines) -> Iterator[Cue]:
    """Start, end and text of each subtitle."""
    for segment in segments:
        if not segment.words or not lines.need_words:
            yield segment.start, segment.end, _clean(segment.text)
            continue
        for group in _grouped(segment, lines):
            if not lines.highlights:
                words = [word for line in group for word in line]
                text = "\n".join("".join(word.word for word in line).strip() for line in group)
                yield words[0].start, words[-1].end, _clean(text)
                continue
            for word in (word for line in group for word in line):
                yield word.start, word.end, _clean("\n".join(_underlined(line, word) for line in group))


def _underlined(line: Sequence[Any], word: Any) -> str:
    spelled = (f" <u>{w.word.strip()}</u>" if w is word else w.word for w in line)
    return "".join(spelled).strip()


def _grouped(segment: Segment, lines: Lines) -> Iterator[list[list[Any]]]:
    """The words of a segment by line, and lines by cue."""
    assert segment.words is not None
    rows: list[list[Any]] = [[]]
    for word in segment.words:
        length = sum(len(w.word) for w in rows[-1])
        is_full = (lines.width is not None and length + len(word.word.rstrip()) > lines.width) or (
            lines.words is not None and len(rows[-1]) >= lines.words
        )
        if rows[-1] and is_full:
            rows.append([])
        rows[-1].append(word)
    count = lines.count or (1 if lines.words is not None else len(rows))
    for first in range(0, len(rows), count):
        yield rows[first : first + count]


def _clean(text: str) -> str:
    return text.strip().replace("-->", "->")


def clock(seconds: float, *, hours: bool, mark: str) -> str:
    """hh:mm:ss,mmm; hours: also where there are none."""
    ms = round(max(0.0, seconds) * 1000)
    h, ms = divmod(ms, 3_600_000)
    m, ms = divmod(ms, 60_000)
    s, ms = divmod(ms, 1000)
    return (f"{h:02d}:" if hours or h else "") + f"{m:02d}:{s:02d}{mark}{ms:03d}"


def as_text(transcript: Transcript, lines: Lines) -> str:
    return "".join(segment.text.strip() + "\n" for segment in transcript.segments)


def as_srt(transcript: Transcript, lines: Lines) -> str:
    found = []
    for number, (start, end, text) in enumerate(cues(transcript.segments, lines), 1):
        times = f"{clock(start, hours=True, mark=',')} --> {clock(end, hours=True, mark=',')}"
        found.append(f"{number}\n{times}\n{text}\n\n")
    return "".join(found)


def as_vtt(transcript: Transcript, lines: Lines) -> str:
    found = ["WEBVTT\n\n"]
    for start, end, text in cues(transcript.segments, lines):
        found.append(f"{clock(start, hours=False, mark='.')} --> {clock(end, hours=False, mark='.')}\n{text}\n\n")
    return "".join(found)


def as_tsv(transcript: Transcript, lines: Lines) -> str:
    rows = [
        f"{round(1000 * s.start)}\t{round(1000 * s.end)}\t{s.text.strip().replace(chr(9), ' ')}\n"
        for s in transcript.segments
    ]
    return "start\tend\ttext\n" + "".join(rows)


def as_lrc(transcript: Transcript, lines: Lines) -> str:
    found = []
    for start, _, text in cues(transcript.segments, lines):
        minutes, rest = divmod(max(0.0, start), 60)
        found.append(f"[{int(minutes):02d}:{rest:05.2f}]{text.replace(chr(10), ' ')}\n")
    return "".join(found)


def as_json(transcript: Transcript, lines: Lines) -> str:
    return json.dumps(record(transcript), ensure_ascii=False) + "\n"


def record(transcript: Transcript) -> dict[str, Any]:
    """{text, segments, language, duration} with the fields that OpenAI's and faster-whisper's users read."""
    return {
        "text": transcript.text,
        "segments": [describe(segment, number) for number, segment in enumerate(transcript.segments)],
        "language": transcript.language,
        "language_probability": transcript.language_probability,
        "duration": round(transcript.duration, 3),
    }


def describe(segment: Segment, number: int) -> dict[str, Any]:
    """One segment as a record."""
    values = {field.name: getattr(segment, field.name) for field in dataclasses.fields(segment)}
    for name in ("first", "last"):
        del values[name]
    values |= {"start": round(segment.start, 3), "end": round(segment.end, 3), "tokens": list(segment.tokens)}
    values["words"] = None if segment.words is None else [dataclasses.asdict(word) for word in segment.words]
    if segment.words is None:
        del values["words"]
    return {"id": number, **values}


WRITERS: dict[str, Callable[[Transcript, Lines], str]] = {
    "text": as_text, "srt": as_srt, "vtt": as_vtt, "tsv": as_tsv, "json": as_json, "lrc": as_lrc,
}  # fmt: skip
SUFFIXES = {"text": "txt"}  # where it is not the format's own name
