"""Transcribing sound that is still coming: text as it becomes certain.

The sound that is not settled yet is kept and decoded again whenever some more of it has come. Words on which two
decodings in a row agree are certain (agreement.py); those behind them are tentative. What is kept is cut at the end of
a segment once it is long, and at a pause, where all that was said becomes certain. The text that was cut off is put
before the next decoding as what was said before.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...errors import InvalidOption, UsageError
from ..audio.files import to_mono
from ..audio.log_mel import HOP, SAMPLE_RATE
from ..decoding.generation_options import GenerationOptions
from ..decoding.state import Floats
from . import activity
from .agreement import Agreement
from .segments import Segment, Word, spans
from .transcribe import TranscribeOptions, Transcriber

STEP = 1.0  # seconds of new sound after which it is decoded again; arXiv:2307.14743 has 1 s
MOST_AT_ONCE = 5.0  # seconds of new sound for one decoding, where more has come than was waited for
PAUSE = 0.8  # seconds in which nobody speaks that end a line
LONG = 15.0  # seconds from which on the sound is cut at the end of a segment, or of a sentence; as there
SENTENCE_ENDS = (".", "?", "!", "\u3002", "\uff1f", "\uff01")
KEPT = 0.3  # seconds before speech that are kept, as it may begin softly
CONTEXT = 200  # characters of earlier text that are told; as there
TEMPERATURE = (0.0,)  # of decodings: what would be drawn at another one is hardly what the next decoding gives
NEVER = ("batched", "batch_size", "clip", "condition_on_previous_text", "hallucination_silence_threshold")


@dataclass(frozen=True)
class Heard:
    """What is known after a decoding.

    segments: the lines that were finished since the last one, with their words; they have no tokens. certain: text of
    the line that goes on, which won't change. tentative: what seems to follow, which may. seconds: of sound so far.
    """

    segments: tuple[Segment, ...]
    certain: str
    tentative: str
    seconds: float


def check_options(given: Mapping[str, Any], step: float) -> None:
    """Raises InvalidOption, UsageError."""
    wrong = [name for name in NEVER if name in given]
    if wrong:
        raise UsageError(f"sound that is still coming can't be transcribed with {', '.join(wrong)}; leave it out")
    if not isinstance(step, (int, float)) or not 0 < step <= MOST_AT_ONCE:
        raise InvalidOption(f"step is {step!r}; expected seconds up to {MOST_AT_ONCE:g}")


@dataclass(frozen=True)
class _Hypothesis:
    """words: all that were heard in the sound that is kept. ends: how many of them each whole segment ends behind."""

    words: list[Word] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)


class Listener:
    """Give it sound as it comes with `hear`, and `finish` it. To be used from one thread.

    step: seconds of new sound after which what is kept is decoded again. The options, but for those in NEVER, are
    `TranscribeOptions`; a part in which nobody speaks is left out whatever `vad` says, and a decoding that repeats
    itself (`compression_ratio_threshold`) is passed over.
    """

    def __init__(
        self, transcriber: Transcriber, options: TranscribeOptions, generation: GenerationOptions, step: float = STEP
    ) -> None:
        transcriber.check(options)
        half = transcriber.kind.n_samples // 2
        self._transcriber = transcriber
        self._options = dataclasses.replace(options, timestamps="word")
        self._generation = generation
        self._step = min(half, round(step * SAMPLE_RATE))
        self._most_at_once = min(half, round(MOST_AT_ONCE * SAMPLE_RATE))
        self._long = min(half, round(LONG * SAMPLE_RATE))
        self._language = options.language
        self._waiting = np.zeros(0, np.float32)  # came, and was not looked at yet
        self._kept = np.zeros(0, np.float32)
        self._first = 0  # samples before `_kept`
        self._agreement = Agreement()
        self._line: list[Word] = []  # certain
        self._earlier = ""  # text of all lines

    @property
    def language(self) -> str | None:
        """The language spoken; found from the sound where nobody named it, and then known with the first words."""
        return self._language

    def hear(self, samples: Floats) -> Iterator[Heard]:
        """samples [n] at 16 kHz, of any length. Lazy: iterate over what it gives."""
        self._waiting = np.concatenate([self._waiting, to_mono(np.asarray(samples), SAMPLE_RATE, "the sound")])
        while len(self._waiting) >= self._step:
            yield self._further(self._next(self._most_at_once))

    def finish(self) -> Heard:
        """No more is coming: all that was said is certain."""
        lines = self._keep(self._next(len(self._waiting)))
        if self._is_speech().any():
            self._decode()
        return self._heard([*lines, *self._settled()])

    def _next(self, most: int) -> Floats:
        taken, self._waiting = self._waiting[:most], self._waiting[most:]
        return taken

    def _keep(self, samples: Floats) -> list[Segment]:
        """Adds sound. Where a window has no room for it, what was said before becomes certain, as a line."""
        is_full = len(self._kept) + len(samples) > self._transcriber.kind.n_samples
        lines = list(self._settled()) if is_full else []
        self._kept = np.concatenate([self._kept, samples])
        return lines

    def _further(self, samples: Floats) -> Heard:
        lines = self._keep(samples)
        is_speech = self._is_speech()
        n_pause = round(PAUSE * SAMPLE_RATE / activity.FRAME)
        hypothesis = self._decode() if is_speech.any() else None
        if hypothesis is None or not is_speech[-n_pause:].any():
            return self._heard([*lines, *self._settled(round(KEPT * SAMPLE_RATE))])
        return self._heard([*lines, *self._lines_of(hypothesis)])

    def _is_speech(self) -> Any:
        """Of each frame of what is kept."""
        return activity.probabilities(self._kept) >= activity.Rules().threshold

    def _decode(self) -> _Hypothesis:
        """What is heard now. The words that it makes certain go to the line."""
        found = self._hypothesis()
        if found is None:
            return _Hypothesis()
        self._line += self._agreement.agree(found.words)
        return found

    def _hypothesis(self) -> _Hypothesis | None:
        """None where the text repeats itself."""
        earlier = f"{self._options.initial_prompt or ''} {self._earlier}".strip()[-CONTEXT:]
        options = dataclasses.replace(self._options, language=self._language, initial_prompt=earlier or None)
        begun, start = self._transcriber.begin(self._kept, options)
        n_frames = -(-len(self._kept) // HOP)
        track = self._transcriber.track(self._transcriber.kind.features(self._kept), start, options, end=n_frames)
        passage = next(self._transcriber.run([track], options, self._generation, 1))
        found, most = _Hypothesis(), self._options.compression_ratio_threshold
        if most is not None and any(segment.compression_ratio > most for segment in passage.segments):
            return None
        if not passage.segments or not (times := self._transcriber.times(passage)):
            return found
        for first, last, is_whole in spans(passage.window.token_ids, self._transcriber.speech.timestamp_begin):
            words = self._transcriber.words(passage, times, first, last, begun.language)
            found.words.extend(_later(word, self._first / SAMPLE_RATE) for word in words)
            if is_whole and words:
                found.ends.append(len(found.words))
        if found.words:
            self._language = begun.language if self._transcriber.speech.is_multilingual else None
        return found

    def _lines_of(self, hypothesis: _Hypothesis) -> Iterator[Segment]:
        """The lines that end behind certain words. Sound that is long is cut behind the last of them."""
        ends = [hypothesis.words[n - 1] for n in hypothesis.ends]
        certain = [word.end for word in ends if _middle(word) < self._agreement.certain_until]
        for end in certain:
            n = sum(_middle(word) < end for word in self._line)
            yield from self._line_ended(n)
        if len(self._kept) <= self._long:
            return
        if not certain and (n := self._n_to_end()):
            certain = [self._line[n - 1].end]
            yield from self._line_ended(n)
        if certain:
            self._cut(round(certain[-1] * SAMPLE_RATE) - self._first)

    def _n_to_end(self) -> int:
        """Of the words of the line, where no segment ends, those up to the last end of a sentence. Where the window has
        no more room, all: else what is tentative would become certain, and the sound be cut within a word.
        """
        ends = [n for n, word in enumerate(self._line, 1) if word.word.rstrip().endswith(SENTENCE_ENDS)]
        is_full = len(self._kept) + self._most_at_once > self._transcriber.kind.n_samples
        return ends[-1] if ends else len(self._line) if is_full else 0

    def _settled(self, n_kept: int = 0) -> Iterator[Segment]:
        """All that was said, as a line. n_kept: samples that are kept, in which nobody spoke."""
        self._line += self._agreement.settle()
        self._cut(len(self._kept) - n_kept)
        yield from self._line_ended(len(self._line))

    def _line_ended(self, n_words: int) -> Iterator[Segment]:
        words, self._line = self._line[:n_words], self._line[n_words:]
        text = "".join(word.word for word in words)
        if text.strip():
            self._earlier = f"{self._earlier}{text}"[-CONTEXT:]
            yield Segment(words[0].start, words[-1].end, (), text=text, words=tuple(words))

    def _cut(self, n_samples: int) -> None:
        n_samples = max(0, n_samples)
        self._kept = self._kept[n_samples:]
        self._first += n_samples

    def _heard(self, lines: Sequence[Segment]) -> Heard:
        certain, tentative = ("".join(word.word for word in words) for words in (self._line, self._agreement.tentative))
        return Heard(tuple(lines), certain, tentative, (self._first + len(self._kept)) / SAMPLE_RATE)


def _middle(word: Word) -> float:
    return (word.start + word.end) / 2


def _later(word: Word, seconds: float) -> Word:
    return dataclasses.replace(word, start=round(word.start + seconds, 2), end=round(word.end + seconds, 2))


def listen(listener: Listener, blocks: Iterable[Any]) -> Iterator[Heard]:
    """What is heard in blocks of samples at 16 kHz, until they end."""
    for block in blocks:
        yield from listener.hear(block)
    yield listener.finish()
