"""A window's tokens cut into segments at the times that the model wrote, as transformers and OpenAI's whisper do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .tokens import FRAMES_PER_TIMESTAMP, SECONDS_PER_TIMESTAMP, SpeechTokens

SECONDS_PER_FRAME = 0.01


@dataclass(frozen=True)
class Word:
    """One word: with the space before it, seconds, and the mean probability of its tokens."""

    word: str
    start: float
    end: float
    probability: float


@dataclass(frozen=True)
class Segment:
    """A part of a transcript. start, end: seconds from the beginning of the audio.

    tokens: its ids, times among them. first, last: which of its window's generated tokens these are. seek: the frame
    (10 ms) at which its window begins. compression_ratio: of the window's text. text and words are filled in by
    whoever has the tokenizer (transcribe.py).
    """

    start: float
    end: float
    tokens: tuple[int, ...]
    seek: int = 0
    first: int = 0
    last: int = 0
    text: str = ""
    temperature: float = 0.0
    avg_logprob: float = 0.0
    compression_ratio: float = 0.0
    no_speech_prob: float | None = None
    words: tuple[Word, ...] | None = field(default=None)


def cut(tokens: Sequence[int], speech: SpeechTokens, seek: int, n_frames: int) -> tuple[list[Segment], int]:
    """The segments of one window's tokens (without endoftext), and how many frames further the next window begins.

    seek: the window's first frame; n_frames: how many it has, filling left out. A segment ends where two times follow
    each other. What stands behind the last such pair is decoded again, unless the tokens end in a single time, which
    says that nobody speaks in the rest.
    """
    offset = seek * SECONDS_PER_FRAME
    is_time = [token >= speech.timestamp_begin for token in tokens]
    ends = [i + 1 for i in range(len(tokens) - 1) if is_time[i] and is_time[i + 1]]
    if not ends:
        times = [token for token, told in zip(tokens, is_time, strict=True) if told]
        steps = float(int(n_frames * SECONDS_PER_FRAME / SECONDS_PER_TIMESTAMP))
        if times and times[-1] != speech.timestamp_begin:
            steps = float(times[-1] - speech.timestamp_begin)
        whole = Segment(offset, offset + steps * SECONDS_PER_TIMESTAMP, tuple(tokens), seek, 0, len(tokens))
        return [whole], n_frames
    is_single = is_time[-2:] == [False, True]
    if is_single:
        ends.append(len(tokens))
    else:
        ends[-1] += 1  # the last segment keeps both times of its end
    found, first = [], 0
    for end in ends:
        part = tokens[first:end]
        last = part[-2] if end == ends[-1] and not is_single else part[-1]
        found.append(
            Segment(offset + speech.seconds(part[0]), offset + speech.seconds(last), tuple(part), seek, first, end)
        )
        first = end
    if is_single:
        return found, n_frames
    return found, (tokens[first - 2] - speech.timestamp_begin) * FRAMES_PER_TIMESTAMP


def spans(tokens: Sequence[int], timestamp_begin: int) -> list[tuple[int, int, bool]]:
    """Where a window's text lies between times: (first token, behind the last, whether a time ends it).

    Unlike `cut`, with the text behind the last time, which may be half of a sentence that goes on behind the window.
    """
    found, first, has_text = list[tuple[int, int, bool]](), 0, False
    for i, token in enumerate(tokens):
        if token < timestamp_begin:
            has_text = True
        elif has_text:
            found.append((first, i + 1, True))
            first, has_text = i + 1, False
    return [*found, (first, len(tokens), False)] if has_text else found
