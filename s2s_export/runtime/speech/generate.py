"""`generate()` for sound: the tokens that Whisper's own `generate()` in transformers returns.

Windows follow each other (loop.py); most clips need one. Several outputs of a clip come from one search.
Tokens come without prompt and endoftext, as there. Where the caller gives the decoder's prompt, the search is the plain
one and tokens come whole, as with other models.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ...bundle import Bundle
from ...errors import InvalidOption
from ..audio.log_mel import log_mel
from ..backends import Backend, Searcher
from ..decoding.generation_options import GenerationOptions
from ..decoding.hypothesis import Hypothesis
from ..decoding.state import Floats
from ..searching import HostSearch
from ..sources.audio_features import AudioFeatures
from . import prompts
from .loop import Fallback, Passage, Track, run
from .on_device import on_device
from .options import SpeechOptions
from .tokens import SpeechTokens
from .windows import EncodedWindows, WindowDecoder


class SpeechSearch:
    """Decodes batches of sound, in place of a bundle's searcher."""

    def __init__(
        self, bundle: Bundle, backend: Backend, searcher: Searcher, kind: AudioFeatures, speech: SpeechTokens
    ) -> None:
        self.kind = kind
        self.speech = speech
        self.vocabulary_size = bundle.vocabulary_size
        self.max_target_length = bundle.max_target_length or 448
        make = searcher.native.make if isinstance(searcher, HostSearch) else None
        device = on_device(searcher, self.vocabulary_size)
        self.decoder = WindowDecoder(backend, speech, self.max_target_length, make, device)
        self._searcher = searcher

    def decode(
        self,
        sources: Sequence[Floats],
        options: GenerationOptions,
        *,
        alignments: bool | str = False,
        source_numbers: Sequence[int] | None = None,
    ) -> list[list[Hypothesis]]:
        """The outputs of each source, best first."""
        if not isinstance(options, SpeechOptions) or options.decoder_input_ids is not None:
            return self._searcher.decode(sources, options, alignments=alignments, source_numbers=source_numbers)
        numbers = range(len(sources)) if source_numbers is None else source_numbers
        is_long = [source.ndim == 1 and len(source) > self.kind.n_samples for source in sources]
        wants_times = options.return_timestamps
        if wants_times is None:
            wants_times = self.speech.return_timestamps
        if options.return_timestamps is False and any(is_long):
            raise InvalidOption(
                "return_timestamps is False, but the audio is longer than a window; without times nobody knows where "
                "the next window begins; leave it out"
            )
        wants_times = wants_times or any(is_long)
        if alignments and wants_times:
            raise InvalidOption("alignments were asked for with times or for long sound; transcribe gives word times")
        if not alignments and options.num_return_sequences == 1:
            found: list[list[Hypothesis]] = [[] for _ in sources]
            for long in (False, True):
                places = [i for i, value in enumerate(is_long) if value is long]
                some = self._through([sources[i] for i in places], options, wants_times, [numbers[i] for i in places])
                for place, hypothesis in zip(places, some, strict=True):
                    found[place] = [hypothesis]
            return found
        if wants_times:
            raise InvalidOption(
                f"num_return_sequences is {options.num_return_sequences}, but with times, or for long sound, windows "
                "follow from the best output; leave it out"
            )
        encoded = self.decoder.encode([self.kind.features(source) for source in sources])
        starts = self.starts(encoded, options.language, options.task, timestamps=False)
        given = [[*(options.prompt_ids or ()), *start] for start in starts]
        windows = self.decoder.decode(
            encoded, given, options, timestamps=False, attention=bool(alignments), source_numbers=list(numbers)
        )
        return [
            [self._bare(hypothesis, len(prompt)) for hypothesis in window.hypotheses]
            for window, prompt in zip(windows, given, strict=True)
        ]

    def starts(
        self, encoded: EncodedWindows, language: str | None, task: str | None, *, timestamps: bool
    ) -> list[list[int]]:
        """Each window's prompt from startoftranscript on; its language is found where nobody named it."""
        speech = self.speech
        if language is not None:
            ids: list[int | None] = [prompts.language_id(speech, language)] * len(encoded)
        elif prompts.needs_detection(speech, language, task):
            ids = [speech.lang_to_id[max(shares, key=shares.__getitem__)] for shares in self.decoder.languages(encoded)]
        else:
            ids = [None] * len(encoded)
        is_detected = language is None
        return [prompts.beginning(speech, i, task, is_detected=is_detected, timestamps=timestamps) for i in ids]

    def _through(
        self, sources: Sequence[Floats], options: SpeechOptions, timestamps: bool, numbers: Sequence[int]
    ) -> list[Hypothesis]:
        """Through all windows of each. The windows that several sources are at share a batch.

        Also a clip without times goes this way: a model may write them all the same, and then it is cut there.
        """
        if not sources:
            return []
        features = [self.whole_features(source) for source in sources]
        encoded = self.decoder.encode([array[:, : self.kind.n_frames] for array in features])
        starts = self.starts(encoded, options.language, options.task, timestamps=timestamps)
        given = options.prompt_ids or ()
        condition = options.condition_on_prev_tokens
        earlier = given[1:] if given[:1] == (self.speech.startofprev,) else given
        tracks = [
            Track(
                array, array.shape[1], start, number, condition=condition,
                always=() if condition else given, initial=earlier if condition else (),
            )
            for array, start, number in zip(features, starts, numbers, strict=True)
        ]  # fmt: skip
        passages: list[list[Passage]] = [[] for _ in tracks]
        for passage in run(
            self.decoder, tracks, options, Fallback(), timestamps=timestamps,
            window_frames=self.kind.n_frames, encoded=encoded,
            max_target_length=self.max_target_length, vocabulary_size=self.vocabulary_size, batch_size=len(tracks),
        ):  # fmt: skip
            passages[passage.track].append(passage)
        found = [_joined(of_track) for of_track in passages]
        return found if timestamps else [dataclasses.replace(one, segments=None) for one in found]

    def whole_features(self, source: Floats) -> Floats:
        """[F, T] of sound of any length: at least a window, and longer sound as it is."""
        if source.ndim == 2 or len(source) <= self.kind.n_samples:
            return self.kind.features(source)
        return log_mel(source, self.kind.n_bands)

    def _bare(self, hypothesis: Hypothesis, n_prompt: int) -> Hypothesis:
        ids = hypothesis.token_ids[n_prompt:]
        ends = bool(ids) and ids[-1] == self.speech.endoftext
        return dataclasses.replace(hypothesis, token_ids=ids[:-1] if ends else ids)


def _joined(passages: Sequence[Passage]) -> Hypothesis:
    """The tokens of all segments; the score is the mean of the windows' scores, weighted by their tokens."""
    tokens = [token for passage in passages for segment in passage.segments for token in segment.tokens]
    best = [passage.window.hypotheses[0] for passage in passages]
    weights = [max(1, len(hypothesis.token_scores)) for hypothesis in best]
    score = sum(h.score * n for h, n in zip(best, weights, strict=True)) / max(1, sum(weights))
    scores = [value for hypothesis in best for value in hypothesis.token_scores]
    segments = tuple(segment for passage in passages for segment in passage.segments)
    return Hypothesis(tokens, score, scores, segments=segments)
