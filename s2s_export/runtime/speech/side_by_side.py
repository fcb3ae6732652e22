"""Several audios at once: the parts in which somebody speaks, decoded side by side, those of all audios together.

Parts are taken from the audios in order, as there is room in the batch, so the last part of one audio shares a batch
with the first of the next, and what is open at a time is little more than the batch. Each audio's segments come in its
own order. If a batch fails, what was in it is decoded again part by part, so that only the audio that fails by itself
is given up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from ...errors import is_failure
from ..audio.log_mel import HOP, SAMPLE_RATE
from ..decoding.generation_options import GenerationOptions
from ..decoding.state import Floats
from . import activity
from .loop import Passage, Track
from .segments import Segment
from .transcribe import (
    TranscribeOptions,
    Transcriber,
    Transcription,
    clips_of,
    in_the_whole,
    inside,
    is_too_short,
    moved,
)

Read = Callable[[], Floats]  # gives samples [L] at 16 kHz, or raises what is wrong with them
LEAST_SILENCE = 0.16  # seconds of silence at which a part may end; faster-whisper's batched mode has the same


@dataclass(frozen=True)
class WholeSound:
    """Transcribes sound of any length with one choice of options, which is checked when it is made."""

    transcriber: Transcriber
    options: TranscribeOptions
    generation: GenerationOptions

    def __post_init__(self) -> None:
        self.transcriber.check(self.options)

    def one(self, samples: Floats) -> Transcription:
        """samples [L] at 16 kHz."""
        if not self.options.batched:
            return self.transcriber.open(samples, self.options, self.generation)
        return next(iter(SideBySide(self, [lambda: samples])))

    def many(self, reads: Iterable[Read]) -> Iterator[Transcription]:
        """A transcription of each audio, in order; what is wrong with an audio is raised when it is iterated."""
        return iter(SideBySide(self, reads)) if self.options.batched else one_by_one(reads, self.one)


def one_by_one(reads: Iterable[Read], transcribe: Callable[[Floats], Transcription]) -> Iterator[Transcription]:
    """Each audio is read when its turn comes."""
    for read in reads:
        try:
            found = transcribe(read())
        except BaseException as error:
            if not is_failure(error):
                raise
            found = Transcription.failed(error)
        yield found
        if found.is_stopped:
            return


@dataclass(eq=False)
class _Audio:
    """An audio that was read. spans: its parts, each of regions, the silence between which is left out. n_taken: of
    the parts, those that went into batches; n_given: those whose segments were given out. done: the segments of those
    that are decoded and not given out yet.
    """

    transcription: Transcription
    samples: Floats | None
    start: list[int]
    spans: list[list[activity.Region]]
    n_taken: int = 0
    n_given: int = 0
    done: dict[int, list[Segment]] = field(default_factory=dict)
    error: BaseException | None = None


@dataclass
class _Part:
    """One part on its way: the audio's part with this number, and what was found in it so far.

    loud_seconds: how much of it is no silence.
    """

    audio: _Audio
    number: int
    track: Track
    loud_seconds: float
    segments: list[Segment] = field(default_factory=list)


class SideBySide:
    """Iterable, once: the transcription of each audio, in order. To be used from one thread.

    Iterating one of them decodes batches until its next part is done; what these batches gave of other audios waits
    for them. What is wrong with an audio is raised when it is iterated, after what was found before.
    """

    def __init__(self, how: WholeSound, reads: Iterable[Read]) -> None:
        self._transcriber, self._options, self._generation = how.transcriber, how.options, how.generation
        self._reads = iter(reads)
        self._unseen: deque[_Audio] = deque()  # opened, and not returned by __iter__ yet
        self._opened: list[_Audio] = []  # that are not all given out
        self._untaken: deque[_Audio] = deque()  # opened, with parts that are in no batch yet
        self._returned: deque[_Part] = deque()  # that were in a batch which was interrupted
        self._parts: dict[int, _Part] = {}  # in the batch, by their number there
        self._is_stopped = False
        self._running = self._run(self._tracks(), self._options.batch_size)

    def __iter__(self) -> Iterator[Transcription]:
        while self._unseen or (not self._is_stopped and self._open_next()):
            audio = self._unseen.popleft()
            yield audio.transcription

    def _open_next(self) -> bool:
        try:
            read = next(self._reads)
        except StopIteration:
            return False
        try:
            samples = read()
            transcription, start = self._transcriber.begin(samples, self._options)
            audio = _Audio(transcription, samples, start, self._spans(samples))
        except BaseException as error:
            if not is_failure(error):
                raise
            audio = _Audio(Transcription(0.0, None, None), None, [], [], error=error)
        audio.transcription._source = self._segments_of(audio)
        audio.transcription._stop = self._stop
        self._opened.append(audio)
        self._unseen.append(audio)
        self._untaken.append(audio)
        return True

    def _spans(self, samples: Floats) -> list[list[activity.Region]]:
        """The parts with speech, up to a window each. The silence between their regions is left out."""
        if is_too_short(samples, self._options):
            return []
        window = self._transcriber.kind.n_samples
        rules = activity.Rules(least_silence=LEAST_SILENCE, most_speech=window / SAMPLE_RATE)
        spoken = activity.regions(samples, rules)
        parts = clips_of(samples, self._options)
        return [span for part in parts for span in activity.chunks(inside(spoken, part), window)]

    def _segments_of(self, audio: _Audio) -> Iterator[tuple[float, list[Segment]]]:
        while audio.n_given < len(audio.spans) or audio.error is not None:
            if audio.n_given in audio.done:
                number, audio.n_given = audio.n_given, audio.n_given + 1
                yield audio.spans[number][-1][1] / SAMPLE_RATE, audio.done.pop(number)
            elif audio.error is not None:
                self._opened.remove(audio)
                raise audio.error
            else:
                self._advance()
        self._opened.remove(audio)

    def _stop(self) -> None:
        """Every audio that was begun gives what is decoded of it, and no more."""
        if self._is_stopped:
            return
        self._is_stopped = True
        for audio in self._opened:
            audio.transcription.is_stopped = True
            audio.transcription._source = self._decoded_of(audio)

    def _decoded_of(self, audio: _Audio) -> Iterator[tuple[float, list[Segment]]]:
        """What is decoded and was not given out: whole parts, and windows of those that were in a batch."""
        missing = len(audio.spans) - audio.n_given - len(audio.done)
        audio.transcription.is_whole = not missing and audio.error is None
        begun = {part.number: part.segments for part in (*self._parts.values(), *self._returned) if part.audio is audio}
        for number, segments in sorted({**begun, **audio.done}.items()):
            yield audio.spans[number][-1][1] / SAMPLE_RATE, segments
        if audio.error is not None:
            raise audio.error

    def _advance(self) -> None:
        """One window further."""
        try:
            passage = next(self._running)
        except BaseException as error:
            parts = list(self._parts.values())
            self._parts = {}
            self._running = self._run(self._tracks(), self._options.batch_size)
            if not is_failure(error):
                self._returned.extend(parts)
                raise
            self._decode_apart(parts, error)
            return
        part = self._parts[passage.track]
        self._take(part, passage)
        if part.track.is_done:
            del self._parts[passage.track]

    def _decode_apart(self, parts: list[_Part], error: BaseException) -> None:
        """What was in a batch that failed, part by part."""
        for part in parts:
            if len(parts) == 1:
                part.audio.error = error
                return
            if part.audio.error is not None:
                continue
            try:
                for passage in self._run([part.track], 1):
                    self._take(part, passage)
            except BaseException as alone:
                if not is_failure(alone):
                    raise
                part.audio.error = alone

    def _tracks(self) -> Iterator[Track]:
        """The parts that are in no batch yet. Audios are opened as they are needed."""
        number = 0
        while (part := self._next_part()) is not None:
            self._parts[number] = part
            number += 1
            yield part.track

    def _next_part(self) -> _Part | None:
        if self._returned:
            return self._returned.popleft()
        while self._untaken or self._open_next():
            audio = self._untaken[0]
            if audio.error is None and audio.n_taken < len(audio.spans):
                try:
                    return self._part(audio)
                except BaseException as error:
                    if not is_failure(error):
                        raise
                    audio.error = error
            audio.samples = None
            self._untaken.popleft()
        return None

    def _part(self, audio: _Audio) -> _Part:
        assert audio.samples is not None
        number = audio.n_taken
        sound = np.concatenate([audio.samples[a:b] for a, b in audio.spans[number]])
        features = self._transcriber.kind.features(sound)
        # Its number within the audio, which tells draws apart, so that they don't depend on the audios beside it.
        track = self._transcriber.track(features, audio.start, self._options, number=number, end=-(-len(sound) // HOP))
        audio.n_taken += 1
        return _Part(audio, number, track, activity.loud_seconds(sound))

    def _run(self, tracks: Iterable[Track], batch_size: int) -> Iterator[Passage]:
        wants_times = self._options.timestamps != "none"
        return self._transcriber.run(tracks, self._options, self._generation, batch_size, timestamps=wants_times)

    def _take(self, part: _Part, passage: Passage) -> None:
        """What a window gave."""
        audio = part.audio
        try:
            heard = self._transcriber.without_music(passage, part.loud_seconds, self._options)
            finished = self._transcriber.finished(heard, self._options, audio.transcription.language)
        except BaseException as error:
            if not is_failure(error):
                raise
            audio.error = error
            return
        to_whole = in_the_whole(audio.spans[part.number])
        part.segments += [moved(segment, to_whole) for segment in finished.segments]
        if part.track.is_done:
            audio.done[part.number] = part.segments
