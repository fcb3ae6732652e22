"""Text that a model writes where nobody speaks: improbable words next to silence, left out by OpenAI's rule.

As `hallucination_silence_threshold` of OpenAI's whisper and of faster-whisper has it. Words are suspect that are
improbable, too short or too long. Where a window begins with silence and then suspect words, it is decoded again from
their beginning; where suspect words stand between silences, they and what follows are dropped and decoded again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from .loop import Passage
from .segments import SECONDS_PER_FRAME, Segment, Word
from .words import JOINED_TO_LAST, JOINED_TO_NEXT

IMPROBABLE = 0.15
SHORTEST, LONGEST = 0.133, 2.0  # seconds of a word
PER_SECOND_SHORT = 15.0  # a word of no length counts for two
MOST_WORDS = 8  # of a segment that are looked at
SUSPECT = 3.0
NEAR = 2.0  # seconds from an end of the window, where words are taken to stand beside silence


def anomaly(word: Word) -> float:
    duration = word.end - word.start
    short, long = max(0.0, SHORTEST - duration), max(0.0, duration - LONGEST)
    return (word.probability < IMPROBABLE) + PER_SECOND_SHORT * short + long


def is_suspect(segment: Segment | None) -> bool:
    spoken = [word for word in (segment.words or () if segment else ()) if not _is_punctuation(word)][:MOST_WORDS]
    score = sum(map(anomaly, spoken))
    return bool(spoken) and (score >= SUSPECT or score + 0.01 >= len(spoken))


def _is_punctuation(word: Word) -> bool:
    return all(c in JOINED_TO_NEXT + JOINED_TO_LAST for c in word.word.strip())


def without(passage: Passage, threshold: float, spoken_until: float, duration: float, window: float) -> Passage:
    """The passage without segments that stand beside silence of `threshold` seconds and are suspect.

    Then the next window begins where they do. spoken_until: the end of the last word before the window. duration: of
    the audio. window: of a whole window. All in seconds.
    """
    begin = passage.seek * SECONDS_PER_FRAME
    heard = passage.n_frames if passage.n_heard is None else passage.n_heard
    segments = [segment for segment in passage.segments if segment.words]
    if segments and is_suspect(segments[0]) and _start(segments[0]) - begin > threshold:
        return _until(passage, [], _start(segments[0]) - begin)
    for i, segment in enumerate(segments):
        start, end = _start(segment), _end(segment)
        following = segments[i + 1] if i + 1 < len(segments) else None
        next_start = begin + heard * SECONDS_PER_FRAME if following is None else _start(following)
        silence_before = start - spoken_until > threshold or start < threshold or start - begin < NEAR
        silence_after = next_start - end > threshold or is_suspect(following) or begin + window - end < NEAR
        if is_suspect(segment) and silence_before and silence_after:
            rest = duration - begin if duration - end < threshold else max(1.0, start - begin)
            return _until(passage, passage.segments[: passage.segments.index(segment)], rest)
        spoken_until = end
    return passage


def _until(passage: Passage, segments: Sequence[Segment], seconds: float) -> Passage:
    return dataclasses.replace(passage, segments=list(segments), n_frames=max(1, round(seconds / SECONDS_PER_FRAME)))


def _start(segment: Segment) -> float:
    return segment.words[0].start if segment.words else segment.start


def _end(segment: Segment) -> float:
    return segment.words[-1].end if segment.words else segment.end
