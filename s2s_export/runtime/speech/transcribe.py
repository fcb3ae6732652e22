"""`Session.transcribe`: sound of any length to segments with text, times and words.

Thresholds and their defaults are those of OpenAI's whisper: a window whose text repeats itself (zlib makes it 2.4
times smaller) or is unlikely is decoded again at a higher temperature, and one that nobody speaks in is passed over.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import InvalidOption
from ..audio.log_mel import HOP, SAMPLE_RATE
from ..decoding.generation_options import GenerationOptions
from ..decoding.state import Floats
from ..sources.audio_features import AudioFeatures
from ..text import Tokenizer
from . import activity, hallucinations, loop
from .formats import Transcript
from .generate import SpeechSearch
from .loop import Fallback, Passage, Track
from .prompts import TASKS, beginning, language_id
from .segments import SECONDS_PER_FRAME, Segment, Word
from .tokens import FRAMES_PER_TIMESTAMP, SpeechTokens
from .words import token_times, words

TIMES = ("none", "segment", "word")
# Text over music is sparse, needed another temperature, and the model half doubts that anybody speaks: such a window is
# passed over from this share of no_speech_threshold on, with fewer words for each second of loud sound than this.
DOUBT_OF_SPARSE_TEXT = 0.4
LEAST_WORDS_PER_SECOND = 0.5
LEAST_SOUND = 0.2  # seconds; of less models write "Thank you." rather than what was said
LEAST_NO_SPEECH_ALONE = 0.9  # with such a probability of silence a window is passed over, however likely its text is


@dataclass(frozen=True)
class TranscribeOptions:
    """What a transcription is asked for; names and meanings are OpenAI's, for generation options Hugging Face's.

    language: code or name, found from the first window if None. timestamps: "none", "segment" or "word". temperature:
    the temperatures tried one after the other. The three thresholds: None switches one off. condition_on_previous_text:
    whether a window is told the text before it. initial_prompt: text before the first window; hotwords: before every
    one. vad: leave out where nobody speaks. batched: decode the parts in which somebody speaks side by side, each by
    itself. batch_size: how many. clip: (start, end) in seconds, the parts to transcribe.
    hallucination_silence_threshold: seconds of silence beside improbable words, which are then left out; needs the
    times of words.
    """

    language: str | None = None
    task: str = "transcribe"
    timestamps: str = "segment"
    temperature: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    compression_ratio_threshold: float | None = 2.4
    logprob_threshold: float | None = -1.0
    no_speech_threshold: float | None = 0.6
    condition_on_previous_text: bool = False
    initial_prompt: str | None = None
    hotwords: str | None = None
    vad: bool = False
    batched: bool = False
    batch_size: int = 8
    clip: tuple[tuple[float, float | None], ...] = ()
    hallucination_silence_threshold: float | None = None

    def check(self) -> None:
        """Raises one InvalidOption that names everything that is wrong."""
        problems = []
        if self.timestamps not in TIMES:
            problems.append(f"timestamps is {self.timestamps!r}, expected one of {', '.join(TIMES)}")
        if self.task not in TASKS:
            problems.append(f"task is {self.task!r}, expected one of {', '.join(TASKS)}")
        if not self.temperature or any(not 0 <= t <= 100 for t in self.temperature):
            problems.append(f"temperature is {self.temperature}, expected numbers from 0 on")
        if self.batch_size < 1:
            problems.append(f"batch_size is {self.batch_size}, expected at least 1")
        if self.hallucination_silence_threshold is not None and self.timestamps != "word":
            problems.append("hallucination_silence_threshold needs timestamps='word'")
        if self.hallucination_silence_threshold is not None and self.batched:
            problems.append("hallucination_silence_threshold skips silence, of which batched has none; leave out one")
        for start, end in self.clip:
            if start < 0 or (end is not None and end <= start):
                problems.append(f"clip has {start}-{end}, expected an end behind a start, in seconds")
        if problems:
            raise InvalidOption("; ".join(problems))


def split_options(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options of `TranscribeOptions`, and the others, which are those of the search."""
    names = {field.name for field in dataclasses.fields(TranscribeOptions)}
    own = {name: value for name, value in options.items() if name in names}
    if isinstance(own.get("temperature"), (int, float)):
        own["temperature"] = (float(own["temperature"]),)
    for name in ("temperature", "clip"):
        if name in own:
            own[name] = tuple(own[name])
    return own, {name: value for name, value in options.items() if name not in names}


class Transcription:
    """An iterator of segments as they are ready, in order. language, language_probability: known from the beginning.

    seconds_done: how much of the audio has been read. is_whole: whether all of it was decoded and returned. `finish()`
    decodes the rest and returns the whole; `stop()` gives up the rest.
    """

    def __init__(self, duration: float, language: str | None, probability: float | None) -> None:
        self.duration = duration
        self.language = language
        self.language_probability = probability
        self.seconds_done = 0.0
        self.is_whole = False
        self.is_stopped = False
        self._stop: Callable[[], None] | None = None
        self._segments: list[Segment] = []
        self._source: Iterator[tuple[float, list[Segment]]] = iter(())
        self._waiting: list[Segment] = []

    def __iter__(self) -> Transcription:
        return self

    def __next__(self) -> Segment:
        while not self._waiting:
            try:
                self.seconds_done, found = next(self._source)
            except StopIteration:
                self.is_whole = self.is_whole or not self.is_stopped
                raise
            self._waiting = list(found)
        segment = self._waiting.pop(0)
        self._segments.append(segment)
        return segment

    def so_far(self) -> Transcript:
        """What has been returned up to now."""
        return Transcript(tuple(self._segments), self.language, self.duration, self.language_probability)

    def finish(self) -> Transcript:
        for _ in self:
            pass
        return self.so_far()

    def stop(self) -> None:
        """Decode no more, as after Ctrl-C. What is decoded already is still returned.

        So it is for the audios whose parts share its batches, and no other audio is begun.
        """
        self.is_stopped = True
        self._source = iter(())
        if self._stop is not None:
            self._stop()

    @classmethod
    def failed(cls, error: BaseException) -> Transcription:
        """One that raises an error when it is iterated."""

        def source() -> Iterator[tuple[float, list[Segment]]]:
            raise error
            yield

        found = cls(0.0, None, None)
        found._source = source()
        return found


class Transcriber:
    """Transcribes with one bundle."""

    def __init__(self, search: SpeechSearch, tokenizer: Tokenizer) -> None:
        self._search = search
        self._tokenizer = tokenizer

    @property
    def kind(self) -> AudioFeatures:
        return self._search.kind

    @property
    def speech(self) -> SpeechTokens:
        return self._search.speech

    def check(self, options: TranscribeOptions) -> None:
        """Raises what is wrong with options, whatever the audio."""
        options.check()
        if options.language is not None:
            self._search_start(options.language, options)

    def open(self, samples: Floats, options: TranscribeOptions, generation: GenerationOptions) -> Transcription:
        """samples [L] at 16 kHz; options that were checked. Window after window; `side_by_side` has `batched`."""
        found, start = self.begin(samples, options)
        found._source = self._in_order(samples, start, options, generation, found.language)
        return found

    def begin(self, samples: Floats, options: TranscribeOptions) -> tuple[Transcription, list[int]]:
        """A transcription to be filled, which knows its language, and the prompt from startoftranscript on."""
        probability = None
        language = options.language
        speech = self._search.speech
        if speech.is_multilingual and speech.lang_to_id and language is None:
            language, probability = self._detect(samples)
        start = self._search_start(language, options)
        known = language or (None if speech.is_multilingual else "en")
        return Transcription(len(samples) / SAMPLE_RATE, known, probability), start

    def _detect(self, samples: Floats) -> tuple[str, float]:
        n = self._search.kind.n_samples
        first = samples[:n]
        if options_regions := activity.regions(samples[: 10 * n]):
            first = samples[options_regions[0][0] : options_regions[0][0] + n]
        encoded = self._search.decoder.encode([self._search.kind.features(first)])
        shares = self._search.decoder.languages(encoded)[0]
        token = max(shares, key=shares.__getitem__)
        return token[2:-2], shares[token]

    def _search_start(self, language: str | None, options: TranscribeOptions) -> list[int]:
        speech = self._search.speech
        known = None if language is None else language_id(speech, language)
        task = options.task if speech.task_to_id or options.task != "transcribe" else None
        return beginning(speech, known, task, timestamps=options.timestamps != "none" or not options.batched)

    def _fallback(self, options: TranscribeOptions) -> Fallback:
        return Fallback(
            options.temperature, options.compression_ratio_threshold, options.logprob_threshold,
            options.no_speech_threshold, lambda tokens: self._tokenizer.decode(tokens).strip(),
            None if options.no_speech_threshold is None else max(LEAST_NO_SPEECH_ALONE, options.no_speech_threshold),
        )  # fmt: skip

    def _ids(self, text: str | None) -> tuple[int, ...]:
        if not text or not text.strip():
            return ()
        return tuple(self._tokenizer.encode_target(" " + text.strip()))

    def track(self, features: Floats, start: list[int], options: TranscribeOptions, **more: Any) -> Track:
        return Track(
            features, features.shape[1], start, initial=self._ids(options.initial_prompt),
            hot=self._ids(options.hotwords), condition=options.condition_on_previous_text, **more,
        )  # fmt: skip

    def run(
        self, tracks: Iterable[Track], options: TranscribeOptions, generation: GenerationOptions, batch_size: int,
        timestamps: bool = True, adjust: Callable[[Passage], Passage] | None = None,
    ) -> Iterator[Passage]:  # fmt: skip
        return loop.run(
            self._search.decoder, tracks, generation, self._fallback(options), timestamps=timestamps,
            attention=options.timestamps == "word", window_frames=self._search.kind.n_frames,
            max_target_length=self._search.max_target_length, vocabulary_size=self._search.vocabulary_size,
            batch_size=batch_size, adjust=adjust,
        )  # fmt: skip

    def _in_order(
        self, samples: Floats, start: list[int], options: TranscribeOptions, generation: GenerationOptions,
        language: str | None,
    ) -> Iterator[tuple[float, list[Segment]]]:  # fmt: skip
        """One window behind the other, in each clip."""
        parts = clips_of(samples, options)
        kept = samples
        if is_too_short(samples, options):
            return
        spans: list[activity.Region] = []
        if options.vad:
            spoken = activity.regions(samples)
            spans = [span for part in parts for span in inside(spoken, part)]
            if not spans:
                return
            kept = np.concatenate([samples[a:b] for a, b in spans])
            parts = [(0, len(kept))]
        elif activity.is_silent(samples):
            return
        features = self._search.whole_features(kept)
        to_seconds = in_the_whole(spans)
        for a, b in parts:
            if b <= a:
                continue
            track = self.track(features, start, options, seek=a // HOP, end=min(-(-b // HOP), features.shape[1]))
            # Where the audio is shorter than a window, what is behind its end is no sound.
            track.n_frames = min(track.n_frames, max(1, -(-len(kept) // HOP)))

            def adjust(passage: Passage, track: Track = track) -> Passage:
                sound = kept[passage.seek * HOP : passage.seek * HOP + self._search.kind.n_samples]
                loud = activity.loud_seconds(sound)
                found = self.finished(self.without_music(passage, loud, options), options, language)
                return self._without_hallucinations(found, track, len(kept) / SAMPLE_RATE, options)

            for passage in self.run([track], options, generation, 1, adjust=adjust):
                shifted = [moved(segment, to_seconds) for segment in passage.segments]
                yield float(to_seconds((passage.seek + passage.n_frames) * SECONDS_PER_FRAME)), shifted

    def finished(self, passage: Passage, options: TranscribeOptions, language: str | None) -> Passage:
        """With text and words; segments without text or length are left out."""
        times = self.times(passage) if options.timestamps == "word" else []
        segments = []
        for segment in passage.segments:
            text = self._tokenizer.decode(segment.tokens)
            if not text.strip() or (options.no_speech_threshold is not None and not any(map(str.isalnum, text))):
                continue  # "..." and notes are what models write over tones and music
            spoken = self.words(passage, times, segment.first, segment.last, language) if times else None
            segments.append(dataclasses.replace(segment, text=text, words=spoken))
        return dataclasses.replace(passage, segments=segments)

    def _without_hallucinations(
        self, passage: Passage, track: Track, duration: float, options: TranscribeOptions
    ) -> Passage:
        threshold = options.hallucination_silence_threshold
        if threshold is None:
            return passage
        spoken = [word.end for segment in track.segments[-1:] for word in segment.words or ()]
        window = self._search.kind.n_frames * SECONDS_PER_FRAME
        return hallucinations.without(passage, threshold, spoken[-1] if spoken else 0.0, duration, window)

    def times(self, passage: Passage) -> list[float]:
        """When each of a window's tokens ends, in seconds of the audio; nothing where no attention was kept."""
        window = passage.window
        if window.attention is None or not window.token_ids:
            return []
        offset = passage.seek * SECONDS_PER_FRAME
        width = self._search.speech.median_filter_width
        n_heard = passage.n_frames if passage.n_heard is None else passage.n_heard
        n_positions = max(1, min(n_heard, self._search.kind.n_frames) // FRAMES_PER_TIMESTAMP)
        found = token_times(window.attention, n_positions, width)
        times = [offset + t for t in found.tolist()][: len(window.token_ids)]
        return times + [times[-1] if times else offset] * (len(window.token_ids) - len(times))

    def words(
        self, passage: Passage, times: Sequence[float], first: int, last: int, language: str | None
    ) -> tuple[Word, ...]:
        """The words of a window's tokens from `first` to before `last`. times: of all its tokens."""
        window, speech = passage.window, self._search.speech
        begin = times[first - 1] if first else passage.seek * SECONDS_PER_FRAME
        return tuple(
            words(
                window.token_ids[first:last], times[first:last], window.hypotheses[0].token_scores[first:last],
                self._tokenizer.decode, speech.timestamp_begin, speech.endoftext, language, begin,
            )
        )  # fmt: skip

    def without_music(self, passage: Passage, loud_seconds: float, options: TranscribeOptions) -> Passage:
        """Without segments where the text is as sparse and doubtful as what models write over music.

        loud_seconds: how much of the passage's sound is no silence.
        """
        window = passage.window
        threshold = options.no_speech_threshold
        if (
            threshold is None
            or window.temperature == 0
            or (window.no_speech_prob or 0.0) < DOUBT_OF_SPARSE_TEXT * threshold
        ):
            return passage
        n_words = len(self._tokenizer.decode(window.token_ids).split())
        is_sparse = n_words < LEAST_WORDS_PER_SECOND * loud_seconds
        return dataclasses.replace(passage, segments=[]) if is_sparse else passage


def in_the_whole(spans: Sequence[activity.Region]) -> Callable[[float], float]:
    """Seconds in the joined spans -> seconds in the whole."""
    if not spans:
        return lambda seconds: seconds
    lengths = [b - a for a, b in spans]
    begins = np.concatenate([[0], np.cumsum(lengths)])

    def whole(seconds: float) -> float:
        at = seconds * SAMPLE_RATE
        i = int(np.clip(np.searchsorted(begins, at, side="right") - 1, 0, len(spans) - 1))
        return float(spans[i][0] + min(at - begins[i], lengths[i])) / SAMPLE_RATE

    return whole


def is_too_short(samples: Floats, options: TranscribeOptions) -> bool:
    """Whether samples [L] are too few for any word, unless all rules of silence are switched off."""
    return options.no_speech_threshold is not None and len(samples) < LEAST_SOUND * SAMPLE_RATE


def clips_of(samples: Floats, options: TranscribeOptions) -> list[activity.Region]:
    """The parts of samples [L] that are to be transcribed: the clips asked for, or all of it."""
    return [
        (int(a * SAMPLE_RATE), min(len(samples), len(samples) if b is None else int(b * SAMPLE_RATE)))
        for a, b in (options.clip or ((0.0, None),))
    ]


def inside(spans: Sequence[activity.Region], part: activity.Region) -> list[activity.Region]:
    """What of the spans lies in a part."""
    cut = [(max(part[0], a), min(part[1], b)) for a, b in spans]
    return [(a, b) for a, b in cut if a < b]


def moved(segment: Segment, to_seconds: Callable[[float], float]) -> Segment:
    spoken = segment.words
    if spoken is not None:
        spoken = tuple(
            dataclasses.replace(
                word, start=round(float(to_seconds(word.start)), 2), end=round(float(to_seconds(word.end)), 2)
            )
            for word in spoken
        )
    return dataclasses.replace(
        segment,
        start=round(float(to_seconds(segment.start)), 3),
        end=round(float(to_seconds(segment.end)), 3),
        words=spoken,
    )
