"""Window after window through audio of any length: the long form of Whisper, as `generate()` of transformers goes.

Several audios go side by side: the windows that they are at share a batch, which the next audio joins when one is done.
Each has a place, where its next window begins, the text so far, and its own prompt; what one gives does not depend on
the others.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np

from ..decoding.generation_options import GenerationOptions
from ..decoding.state import Floats
from .prompts import with_earlier
from .segments import Segment, cut
from .windows import DecodedWindow, EncodedWindows, WindowDecoder

RESET_FROM = 0.5  # a window decoded at this temperature or above is no context for the next


@dataclass(frozen=True)
class Fallback:
    """When a window is decoded again at the next temperature, and when it is passed over.

    temperatures: the first is 0 in most uses: greedy, or beams. most_compression: how much zlib may compress a window;
    of its text where `text_of` gives one, else of its token ids, two bytes each, as in transformers (where useful
    values are about 1.35 and not 2.4). least_logprob: of avg_logprob. most_no_speech: with a lower avg_logprob than
    `least_logprob`, a window is silence from this probability on; from `no_speech_alone` on whatever its text is.
    """

    temperatures: tuple[float, ...] = (0.0,)
    most_compression: float | None = None
    least_logprob: float | None = None
    most_no_speech: float | None = None
    text_of: Callable[[Sequence[int]], str] | None = None
    no_speech_alone: float | None = None

    def ratio(self, tokens: Sequence[int], vocabulary_size: int) -> float:
        """Bytes before and after zlib; 0 of nothing."""
        if self.text_of is not None:
            raw = self.text_of(tokens).encode("utf-8", "replace")
        else:
            width = int(math.log2(vocabulary_size) / 8) + 1
            raw = b"".join(token.to_bytes(width, "little") for token in tokens)
        return len(raw) / len(zlib.compress(raw)) if raw else 0.0

    def wants_another(self, window: DecodedWindow, ratio: float) -> bool:
        is_bad = (self.most_compression is not None and ratio > self.most_compression) or self._is_unlikely(window)
        return is_bad and not self.is_silence(window)

    def is_silence(self, window: DecodedWindow) -> bool:
        probability = window.no_speech_prob or 0.0
        if self.no_speech_alone is not None and probability > self.no_speech_alone:
            return True
        speaks_not = self.most_no_speech is not None and probability > self.most_no_speech
        return speaks_not and (self.least_logprob is None or self._is_unlikely(window))

    def _is_unlikely(self, window: DecodedWindow) -> bool:
        return self.least_logprob is not None and window.avg_logprob < self.least_logprob


@dataclass
class Track:
    """One audio on its way: features [F, T], of which the first `n_frames` are sound, and how it is decoded.

    prompt: from startoftranscript on. always: ids that are put before every window as they are. initial: earlier text,
    before the first window. hot: text before every window. condition: whether the text so far is put before a window.
    number: tells draws apart. seek, end: the frames between which it is decoded. segments: what was found so far.
    """

    features: Floats
    n_frames: int
    prompt: list[int]
    number: int = 0
    always: tuple[int, ...] = ()
    initial: tuple[int, ...] = ()
    hot: tuple[int, ...] = ()
    condition: bool = False
    seek: int = 0
    end: int | None = None
    segments: list[Segment] = field(default_factory=list)
    is_context: bool = True

    @property
    def is_done(self) -> bool:
        return self.seek >= (self.n_frames if self.end is None else min(self.end, self.n_frames))


@dataclass(frozen=True)
class Passage:
    """What one window gave: the segments, of which silence has none, and the decoded window.

    track: which of the tracks it is of, counted from 0. n_frames: how far behind `seek` the next window begins.
    n_heard: the frames of sound in the window, where they are not the same.
    """

    track: int
    seek: int
    n_frames: int
    segments: list[Segment]
    window: DecodedWindow
    n_heard: int | None = None


def run(
    decoder: WindowDecoder,
    tracks: Iterable[Track],
    options: GenerationOptions,
    fallback: Fallback,
    *,
    timestamps: bool = True,
    attention: bool = False,
    window_frames: int,
    max_target_length: int,
    vocabulary_size: int,
    batch_size: int = 1,
    encoded: EncodedWindows | None = None,
    adjust: Callable[[Passage], Passage] | None = None,
    always_no_speech: bool = False,
) -> Iterator[Passage]:
    """Decode all tracks to their ends; passages as they are ready, those of one track in order.

    tracks: taken as there is room among the `batch_size` that are decoded together, and let go when they are done.
    encoded: the first windows of all tracks, if somebody encoded them already; then all are decoded together. adjust:
    changes a passage (and so where the next window begins) before it counts.
    """
    most_earlier = max_target_length // 2 - 1
    waiting = ((i, track) for i, track in enumerate(tracks) if not track.is_done)
    active: list[tuple[int, Track]] = []
    while True:
        active = [(i, track) for i, track in active if not track.is_done]
        active += islice(waiting, batch_size - len(active))
        if not active:
            return
        frames = [min(window_frames, _end(track) - track.seek) for _, track in active]
        if encoded is None:
            encoded = decoder.encode(
                [_window(track, n, window_frames) for (_, track), n in zip(active, frames, strict=True)]
            )
        prompts = [_prompt(decoder, track, most_earlier) for _, track in active]
        windows = _decode(
            decoder, encoded, prompts, options, fallback, [track for _, track in active],
            timestamps=timestamps, attention=attention, max_target_length=max_target_length,
            vocabulary_size=vocabulary_size, no_speech=fallback.most_no_speech is not None or always_no_speech,
        )  # fmt: skip
        encoded = None
        for (i, track), n, window in zip(active, frames, windows, strict=True):
            seek = track.seek
            ratio = fallback.ratio(window.token_ids, vocabulary_size)
            if fallback.is_silence(window):
                segments, advance = list[Segment](), n
            else:
                segments, advance = cut(window.token_ids, decoder.speech, seek, n)
            passage = Passage(i, seek, advance, [_described(s, window, ratio) for s in segments], window, n)
            if adjust is not None:
                passage = adjust(passage)
            track.segments += passage.segments
            track.is_context = window.temperature < RESET_FROM
            track.seek = seek + max(1, passage.n_frames)
            yield passage


def _end(track: Track) -> int:
    return track.n_frames if track.end is None else min(track.end, track.n_frames)


def _window(track: Track, n_frames: int, window_frames: int) -> Floats:
    """[F, window_frames]; what is behind the sound is 0, as in transformers, which is not silence."""
    part = track.features[:, track.seek : track.seek + n_frames]
    return np.ascontiguousarray(np.pad(part, ((0, 0), (0, window_frames - part.shape[1]))))


def _prompt(decoder: WindowDecoder, track: Track, most: int) -> list[int]:
    context = list(track.initial) if not track.segments or track.condition else []
    if track.condition and track.is_context:
        for segment in track.segments:
            is_closed_twice = len(segment.tokens) > 2 and segment.tokens[-2] >= decoder.speech.timestamp_begin
            context += segment.tokens[:-1] if is_closed_twice else segment.tokens
    elif track.segments:
        context = []
    if context or track.hot:
        told = [*track.hot[:most], *context[-max(1, most - len(track.hot)) :]]
        return with_earlier(decoder.speech, told, track.prompt, most)
    return [*track.always, *track.prompt]


def _decode(
    decoder: WindowDecoder,
    encoded: EncodedWindows,
    prompts: Sequence[list[int]],
    options: GenerationOptions,
    fallback: Fallback,
    tracks: Sequence[Track],
    *,
    timestamps: bool,
    attention: bool,
    max_target_length: int,
    vocabulary_size: int,
    no_speech: bool,
) -> list[DecodedWindow]:
    """Each window at the first temperature whose text is good enough, else at the last."""
    found: list[DecodedWindow | None] = [None] * len(prompts)
    waiting = list(range(len(prompts)))
    for temperature in fallback.temperatures:
        windows = decoder.decode(
            encoded.rows(waiting), [prompts[i] for i in waiting], options, timestamps=timestamps,
            temperature=temperature, no_speech=no_speech, attention=attention,
            source_numbers=[tracks[i].number * 4099 + tracks[i].seek for i in waiting],
        )  # fmt: skip
        for i, window in zip(waiting, windows, strict=True):
            found[i] = window
        waiting = [
            i
            for i, window in zip(waiting, windows, strict=True)
            if fallback.wants_another(window, fallback.ratio(window.token_ids, vocabulary_size))
        ]
        if not waiting:
            break
    return [window for window in found if window is not None]


def _described(segment: Segment, window: DecodedWindow, ratio: float) -> Segment:
    return replace(
        segment,
        temperature=window.temperature,
        avg_logprob=window.avg_logprob,
        no_speech_prob=window.no_speech_prob,
        compression_ratio=ratio,
    )
