"""Sessions: an open bundle that turns sources into hypotheses. No torch, transformers or onnx below this file.

session = load("bundle")
session.translate(["a text"], num_beams=4)
session.generate([[12, 7, 2], [9, 2]], num_beams=4, num_return_sequences=2)
for part in session.stream("a text"): print(part, end="")
"""

from __future__ import annotations

import dataclasses
import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import engines
from ..bundle import ENCODER_DECODER, GENERATING, Bundle, read
from ..errors import BundleError, InputError, InvalidOption, UsageError
from . import backends, calibration, decoding, memory, scheduling, scoring, searching, templates, text, text_options
from .cores import available_cores
from .decoding import GenerationOptions, Hypothesis
from .decoding.scoring import Score
from .ensembles import EnsembleBackend
from .scheduling import DEFAULT_BATCH_SIZE
from .sources import Source, is_prompt, kind_of
from .sources.audio_features import FIELD as AUDIO
from .sources.audio_features import AudioFeatures
from .sources.pixels import FIELD as IMAGE
from .speech import clips, live
from .speech import options as speech_options
from .speech.generate import SpeechSearch
from .speech.side_by_side import WholeSound
from .speech.tokens import SpeechTokens
from .speech.transcribe import TranscribeOptions, Transcriber, Transcription, split_options

if TYPE_CHECKING:
    from .shortlist.state import Shortlist

Ids = Sequence[int]
DEFAULT_NEW_TOKENS = 20  # transformers' own limit, where neither the caller nor the checkpoint gives one


def load(
    bundle: str | os.PathLike[str],
    backend: str = backends.AUTO,
    target: str | None = None,
    threads: int | None = None,
    *,
    workers: int | None = 1,
    shortlist: bool = False,
    verify: bool = True,
    search: str = "auto",
    ensemble: Sequence[str | os.PathLike[str]] = (),
    ensemble_average: str = "log_probs",
) -> Session:
    """Open a bundle.

    backend: "auto" takes the best that works here; see `s2s doctor`.
    target: which built engine to use; None for the portable graphs or the backend's only engine.
    threads: CPU threads for each batch, up to the cores there are; by default at most four, and the workers share the
        cores. Threads that wait for work sleep, so that they take little more of a busy machine than one does.
    workers: how many batches of one call to `generate` or `translate` are decoded in parallel. They share the weights.
        With enough batches, several workers of one thread are faster on a CPU than one worker of several threads. None
        takes one for each core on a CPU, and a single one elsewhere.
    shortlist: compute only the tokens that `s2s shortlist` found for a batch's sources. This is faster, and may change
        tokens in the share of sentences that `s2s shortlist` measured.
    verify: compare every file that will be used, an engine's included, with its sha256. Results are remembered until a
        file is touched: 300 MB of weights take 0.3 to 0.5 s of one core at first and 1 ms later (hashing.py).
    search: where the search runs: "device", "host", or "auto" for the device if the backend has one; "python" for the
        host without its C++ (searching.py).
    ensemble: further bundles with the same vocabulary, which decode together with this one (ensembles.py).
    ensemble_average: "log_probs", or "probs".

    Raises BundleError, BackendUnavailable, EngineError, InvalidOption, UnknownOption.
    """
    n_workers = scheduling.workers_of(workers, threads)
    if threads is None and n_workers > 1:
        threads = max(1, available_cores() // n_workers)
    opened = read(bundle, verify=verify, kinds=GENERATING)
    if opened.kind != ENCODER_DECODER and (shortlist or ensemble):
        raise InvalidOption(
            f"{'an ensemble' if ensemble else 'a shortlist'} is of encoder-decoders, and {opened.path} holds a decoder "
            "alone; leave it out"
        )
    kind_of(opened)  # refuses an unknown kind before weights are loaded
    executor = backends.open_backend(opened, backend, target, threads)
    if workers is None and not backends.declared()[executor.name].computes_on_cores:
        n_workers = 1
    if ensemble:
        if shortlist or search not in ("auto", *searching.ON_HOST):
            raise InvalidOption("an ensemble decodes with the search on the host, and without a shortlist")
        others = [read(path, verify=verify) for path in ensemble]
        members = [backends.open_backend(other, executor.name, target, threads) for other in others]
        executor = EnsembleBackend([opened, *others], [executor, *members], ensemble_average)
    session = Session(opened, executor, n_workers, search)
    if shortlist:
        from .shortlist.state import open_shortlist

        session.shortlist = open_shortlist(session.backend)
    return session


class Session:
    """Decodes with one bundle on one backend. Safe to call from several threads.

    kind: what the model reads (sources/). searcher: what decodes batches; `searcher.where` is "device" or "host".
    """

    def __init__(self, bundle: Bundle, backend: backends.Backend, workers: int = 1, search: str = "auto") -> None:
        self.bundle = bundle
        self.kind = kind_of(bundle)
        self.backend = backend
        self.workers = workers
        self.speech = SpeechTokens.of(bundle)
        me = weakref.proxy(self)  # weak, so that session and searcher are no reference cycle
        self.searcher = searching.choose(backend, search, lambda batch, options: me.begin(batch, options), self.kind)
        self._speech_search = self._open_speech()
        self.shortlist: Shortlist | None = None
        entry = bundle.manifest.get("tokenizer")
        self._tokenizer = text.load(bundle.path / "tokenizer", entry) if entry else None

    def _open_speech(self) -> SpeechSearch | None:
        if self.speech is None:
            return None
        if not isinstance(self.kind, AudioFeatures):
            raise BundleError(f"{self.bundle.path}: has speech tokens but reads '{self.kind.name}'; export it again")
        return SpeechSearch(self.bundle, self.backend, self.searcher, self.kind, self.speech)

    def __repr__(self) -> str:
        target = self.backend.target or "portable graphs"
        family = self.bundle.manifest["family"]
        return f"<Session of {self.bundle.path} ({family}) on {self.backend.name}, {target}, {self.workers} worker(s)>"

    @property
    def engine(self) -> str:
        """What runs, with its precision: "cpu-int8 (int8)", or "portable graphs (fp32)"."""
        target = self.backend.target
        if target is not None:
            record = engines.read(engines.folder_of(self.bundle, target))
            return f"{target} ({record.get('precision', 'precision unknown')})"
        stored = self.bundle.manifest["precision"]
        return f"{engines.PORTABLE} graphs ({stored if stored == 'fp32' else f'{stored} weights'})"

    @cached_property
    def calibration(self) -> calibration.Calibration | None:
        """How likely an output is right, as `s2s calibrate` learned it for what runs; None where it did not.

        Raises BundleError for a calibration.json that is none."""
        return calibration.read(self.bundle, self.backend.target)

    def passed_over(self) -> list[str]:
        """Why "auto" took none of the backends before this one that work on this machine, a sentence each."""
        return backends.passed_over(self.bundle, self.backend.name)

    @property
    def tokenizer(self) -> text.Tokenizer:
        """Raises UsageError for a bundle whose checkpoint had no tokenizer."""
        if self._tokenizer is None:
            raise UsageError(
                f"{self.bundle.path}: has no tokenizer, as its checkpoint had none; give token ids instead"
            )
        return self._tokenizer

    @property
    def has_tokenizer(self) -> bool:
        return self._tokenizer is not None

    @property
    def has_attention(self) -> bool:
        """Whether the model has cross-attention weights, which alignments need; an LSTM without attention has none."""
        return any(
            output["name"] == "attention" for output in self.bundle.manifest["graphs"]["decoder_step"]["outputs"]
        )

    def options(self, /, *, target_lang: str | None = None, **overrides: Any) -> GenerationOptions:
        """The options of a call, checked: what is given, then the checkpoint's defaults, then transformers' own.

        Some may be given as text (text_options.py): target_prefix, typed_prefix, terms, force_words, stop_strings,
        choices, regex.
        """
        if target_lang is not None:
            overrides = {**self.tokenizer.target_overrides(target_lang), **overrides}
        own: dict[str, Any] = {}
        if self.speech is not None:
            overrides, own = speech_options.take(overrides, self.speech)
        if not text_options.NAMES.isdisjoint(overrides):
            overrides = self._texts.to_ids(overrides, self._resolve)
        chosen = self._resolve(overrides)
        if chosen.stop_strings and chosen.stop_strings.decode is None:  # the checkpoint's own
            chosen.stop_strings.decode = self.tokenizer.decode
        if self.shortlist is not None and any(not guide.token_ids() for guide in chosen.guides or ()):
            raise InvalidOption(
                "regex and typed_prefix choose among all tokens, of which a shortlist has few; leave --shortlist out"
            )
        if chosen.coverage_penalty and not self.has_attention:
            raise InvalidOption(
                f"coverage_penalty is {chosen.coverage_penalty}, but a model of the family "
                f"'{self.bundle.manifest['family']}' has no attention to the source; leave it out"
            )
        return chosen if self.speech is None else speech_options.combine(chosen, own)

    def _resolve(self, overrides: Mapping[str, Any]) -> GenerationOptions:
        if is_prompt(self.kind):
            overrides = self._of_prompts(overrides)
        if self.bundle.manifest.get("prompt_replaces_start") and (prompt := overrides.get("decoder_input_ids")):
            first = prompt[0] if isinstance(prompt, Sequence) else None
            first = first[0] if isinstance(first, Sequence) and first else first
            overrides = {"decoder_start_token_id": first, **overrides}
        return decoding.resolve(
            self.bundle.manifest["generation"],
            overrides,
            vocabulary_size=self.bundle.vocabulary_size,
            max_target_length=self.bundle.max_target_length,
            reads_source_ids=self.kind.has_ids,
        )

    def _of_prompts(self, overrides: Mapping[str, Any]) -> dict[str, Any]:
        """Options where the source is the prompt: nothing starts before it, and by default 20 tokens follow."""
        if overrides.get("decoder_input_ids") is not None:
            raise InvalidOption("decoder_input_ids is given, but the model's source is its prompt; put them in front")
        limits = ("max_length", "max_new_tokens")
        defaults = self.bundle.manifest["generation"]
        if all(overrides.get(name) is None and defaults.get(name) is None for name in limits):
            overrides = {**overrides, "max_new_tokens": DEFAULT_NEW_TOKENS}
        return {**overrides, "decoder_start_token_id": 0}

    @cached_property
    def _texts(self) -> text_options.TextOptions:
        return text_options.TextOptions(self.tokenizer, self.bundle)

    def encode(
        self,
        source: str,
        *,
        source_lang: str | None = None,
        target_lang: str | None = None,
        truncate: bool = False,
        template: str | None = None,
    ) -> list[int]:
        """Ids of a text, checked against the bundle's limits. Raises InputError where the model reads no token ids.

        template: what the text becomes first (templates.py): a text with {text} in it, or "chat" for the checkpoint's.
        """
        if not self.kind.has_ids:
            raise InputError(
                f"the source is text, but the model reads '{self.kind.name}'; give such sources to `generate`"
                f"{self._other_method()}"
            )
        is_whole = False
        if template is not None:
            source, is_whole = templates.filled(template, source, self.bundle)
        if is_whole:
            ids = self.tokenizer.encode_inner(source)
        else:
            ids = self.tokenizer.encode(source, source_lang=source_lang, target_lang=target_lang)
        checked: list[int] = self.check_source(ids, truncate=truncate)
        return checked

    @property
    def transcribes(self) -> bool:
        """Whether the model reads speech."""
        return self.kind.field == AUDIO

    def _other_method(self) -> str:
        """What takes sources of the model's kind beside `generate`, for messages."""
        if self.transcribes:
            return ", or `transcribe` for sound"
        if self.kind.field == IMAGE:
            return ", or `read` for pictures"
        return ", or `translate` for text" if self.kind.has_ids else ""

    def check_source(self, source: Any, *, truncate: bool = False) -> Source:
        """The source as its kind has it, or InputError: not of this kind, empty, longer than the model allows.

        truncate: cut a source that is too long instead.
        """
        return self.kind.check(source, truncate=truncate, tokenizer=self._tokenizer)

    def generate(
        self,
        sources: Sequence[Source],
        *,
        batch_size: int = DEFAULT_BATCH_SIZE,
        alignments: bool | str = False,
        truncate: bool = False,
        **options: Any,
    ) -> list[list[Hypothesis]]:
        """Hypotheses of each source, best first.

        sources: of the kind that the model reads, such as lists of token ids. options: generation options by their
        Hugging Face names. alignments: cross-attention weights with each hypothesis, True for their mean over heads,
        "heads" for each head and layer as well.
        """
        chosen = self.options(**options)
        checked = []
        for number, source in enumerate(sources):
            try:
                checked.append(self.check_source(source, truncate=truncate))
            except InputError as error:
                raise InputError(f"source {number}: {error}") from None
        return self.decode(checked, chosen, batch_size=batch_size, alignments=alignments)

    def decode(
        self,
        sources: Sequence[Source],
        options: GenerationOptions,
        *,
        batch_size: int = DEFAULT_BATCH_SIZE,
        alignments: bool | str = False,
        on_batch: Callable[[list[int], list[list[Hypothesis]]], None] | None = None,
    ) -> list[list[Hypothesis]]:
        """Like `generate`, for checked sources and options.

        on_batch: called with the indices and hypotheses of each batch when it is finished, in the caller's thread.
        """
        found: list[list[Hypothesis]] = [[] for _ in sources]
        for indices, of_batch in self.batches(sources, options, batch_size=batch_size, alignments=alignments):
            for i, of_source in zip(indices, of_batch, strict=True):
                found[i] = of_source
            if on_batch:
                on_batch(indices, of_batch)
        return found

    def batches(
        self,
        sources: Sequence[Source],
        options: GenerationOptions,
        *,
        batch_size: int = DEFAULT_BATCH_SIZE,
        alignments: bool | str = False,
        source_numbers: Sequence[int] | None = None,
    ) -> Iterator[tuple[list[int], list[list[Hypothesis]]]]:
        """Indices and hypotheses of each batch as it is finished, for checked sources and options.

        source_numbers: the numbers by which sampling tells sources apart; their indices if None.
        """
        numbers = range(len(sources)) if source_numbers is None else source_numbers
        batches = scheduling.plan_batches([self.kind.length(source) for source in sources], batch_size, self.workers)
        if alignments and not self.has_attention:
            raise InvalidOption(
                f"a model of the family '{self.bundle.manifest['family']}' has no attention, so there is no alignment; "
                "don't ask for one"
            )

        def decode_batch(indices: list[int]) -> list[list[Hypothesis]]:
            batch, of_batch = [sources[i] for i in indices], [numbers[i] for i in indices]
            return self.decode_batch(batch, options, alignments=alignments, source_numbers=of_batch)

        yield from scheduling.run(batches, decode_batch, self.workers)

    def decode_batch(
        self,
        batch: Sequence[Source],
        options: GenerationOptions,
        *,
        alignments: bool | str = False,
        source_numbers: Sequence[int] | None = None,
        wanted: Callable[[int], bool] | None = None,
        on_prefix: Callable[[int, list[int]], None] | None = None,
    ) -> list[list[Hypothesis]]:
        """The hypotheses of checked sources that are decoded as one batch, in the caller's thread.

        wanted: asked before each step about each source by its index; one that is not wanted leaves and gets [].
        on_prefix: called with an index and the token ids that have become final since the last call.
        A search on a device makes all its steps by itself, and speech is decoded in several passes: there `wanted` is
        asked only before the first step, and `on_prefix` is called once, with all tokens.
        """
        if self.computes_on_cores:
            memory.check(self.bundle, len(batch), options)
        searcher = self._speech_search or self.searcher
        if isinstance(searcher, searching.HostSearch):
            found = searcher.decode(
                batch,
                options,
                alignments=alignments,
                source_numbers=source_numbers,
                wanted=wanted,
                on_prefix=on_prefix,
            )
        else:
            numbers = range(len(batch)) if source_numbers is None else source_numbers
            staying = [i for i in range(len(batch)) if wanted is None or wanted(i)]
            found = [[] for _ in batch]
            if staying:
                of_staying = searcher.decode(
                    [batch[i] for i in staying],
                    options,
                    alignments=alignments,
                    source_numbers=[numbers[i] for i in staying],
                )
                for i, hypotheses in zip(staying, of_staying, strict=True):
                    found[i] = hypotheses
                    if on_prefix and hypotheses:
                        on_prefix(i, hypotheses[0].token_ids)
        n_prompt = [self.kind.length(source) if is_prompt(self.kind) else 0 for source in batch]
        return [
            [self.with_text(hypothesis, n) for hypothesis in of_source]
            for of_source, n in zip(found, n_prompt, strict=True)
        ]

    @property
    def decodes_speech_in_passes(self) -> bool:
        """Whether a source is sound that a search of its own decodes, as Whisper's is."""
        return self._speech_search is not None

    @property
    def computes_on_cores(self) -> bool:
        """Whether the graphs run on CPU cores, not on a GPU."""
        declared = backends.declared().get(self.backend.name)
        return declared is not None and declared.computes_on_cores

    def warm_up(
        self,
        source_lengths: Sequence[int],
        *,
        n_sources: int = 1,
        streams: bool = False,
        alignments: bool = False,
        **options: Any,
    ) -> None:
        """Set up now what the first call would set up: on a GPU, load kernels, take memory and capture graphs.

        That serves batches of `n_sources` sources of each of these lengths (for an engine with buckets, of lengths in
        the same bucket) with these options; another num_beams, max_length or kind of search needs other graphs.
        streams, alignments: whether calls of `stream`, or with alignments, will follow.
        """
        chosen = self.options(**options)
        rng = np.random.default_rng(0)
        for length in source_lengths:
            source = self.check_source(self.kind.random(rng, max(0, length)))
            self.searcher.warm_up([source] * n_sources, chosen, streams=streams, alignments=alignments)

    def begin(self, batch: Sequence[Source], options: GenerationOptions) -> decoding.DecodeState:
        """Encode a batch, ready for the first step of the host's search."""
        if self.shortlist is not None:
            return self.shortlist.begin(batch, options)
        return self.backend.begin(batch, options.n_rows)

    def translate(
        self,
        texts: Sequence[str],
        *,
        source_lang: str | None = None,
        target_lang: str | None = None,
        truncate: bool = False,
        template: str | None = None,
        batch_size: int = DEFAULT_BATCH_SIZE,
        **options: Any,
    ) -> list[str]:
        """The best hypothesis of each text; of a decoder alone, what it goes on with. template: as of `encode`.

        options: generation options; target_prefix and typed_prefix may be lists with one for each text, "" for none.
        """
        if isinstance(texts, str):
            raise UsageError("translate takes a list of texts, found one text; write [text]")
        if parts := text_options.by_prefix(options, len(texts)):
            found = [""] * len(texts)
            for of_part, places in parts:
                some = self.translate(
                    [texts[i] for i in places],
                    source_lang=source_lang,
                    target_lang=target_lang,
                    truncate=truncate,
                    template=template,
                    batch_size=batch_size,
                    **of_part,
                )
                for place, text_found in zip(places, some, strict=True):
                    found[place] = text_found
            return found
        chosen = self.options(target_lang=target_lang, **options)
        sources = []
        for number, line in enumerate(texts):
            try:
                ids = self.encode(
                    line, source_lang=source_lang, target_lang=target_lang, truncate=truncate, template=template
                )
                sources.append(ids)
            except InputError as error:
                raise InputError(f"text {number}: {error}") from None
        return [best[0].text or "" for best in self.decode(sources, chosen, batch_size=batch_size)]

    def score(
        self,
        sources: Sequence[str | Source],
        targets: Sequence[str | Ids],
        *,
        source_lang: str | None = None,
        target_lang: str | None = None,
        truncate: bool = False,
        batch_size: int = DEFAULT_BATCH_SIZE,
        **options: Any,
    ) -> list[Score]:
        """How likely the model finds each target as the output for its source (scoring.py).

        Texts, or sources of the model's kind and target token ids. Of the options only those of the decoder prompt
        matter. Equal sources, as in an n-best list, are encoded once. Raises InputError, which names the pair.
        """
        if isinstance(sources, str) or isinstance(targets, str) or len(sources) != len(targets):
            raise UsageError(
                f"score takes a list of sources and a list of as many targets, found {len(sources)} and {len(targets)}"
            )
        chosen = self.options(target_lang=target_lang, **options)
        pairs = []
        for number, (source, target) in enumerate(zip(sources, targets, strict=True)):
            try:
                pairs.append(
                    self.check_pair(
                        source, target, chosen, source_lang=source_lang, target_lang=target_lang, truncate=truncate
                    )
                )
            except InputError as error:
                raise InputError(f"pair {number}: {error}") from None
        found: list[Score | None] = [None] * len(pairs)
        for place, score in self.score_each(pairs, chosen, batch_size=batch_size):
            found[place] = score
        return [score for score in found if score is not None]

    def check_pair(
        self,
        source: str | Source,
        target: str | Ids,
        options: GenerationOptions,
        *,
        source_lang: str | None = None,
        target_lang: str | None = None,
        truncate: bool = False,
    ) -> tuple[Source, list[int]]:
        """A pair as `score_each` takes it: a text becomes ids, a target's with the end token. Raises InputError."""
        if isinstance(source, str):
            source = self.encode(source, source_lang=source_lang, target_lang=target_lang, truncate=truncate)
        else:
            source = self.check_source(source, truncate=truncate)
        if isinstance(target, str):
            target = [*self.tokenizer.encode_target(target), *options.eos_token_id[:1]]
        n_prompt = self.kind.length(source) if is_prompt(self.kind) else 0
        return source, scoring.check_target(target, options, self.bundle, n_prompt)

    def score_each(
        self, pairs: Sequence[tuple[Source, Ids]], options: GenerationOptions, *, batch_size: int = DEFAULT_BATCH_SIZE
    ) -> Iterator[tuple[int, Score]]:
        """The index and score of each checked pair, as batches finish."""
        return scoring.score_pairs(
            self.backend.begin,
            self.kind.length,
            [source for source, _ in pairs],
            [target for _, target in pairs],
            None if is_prompt(self.kind) else scoring.prompt_of(options),
            batch_size=batch_size,
            workers=self.workers,
        )

    def transcribe(self, audio: Any, **options: Any) -> Transcription:
        """The segments of sound of any length, as they are ready; `finish()` gives the whole transcript.

        Of models other than Whisper, sound is a clip that they take at once, and the transcript one segment.

        audio: a file's name or bytes, samples at 16 kHz, or (samples, rate). options: those of
        `speech.transcribe.TranscribeOptions` (language, task, timestamps, temperature, thresholds, vad, ...) and
        generation options by their Hugging Face names.
        """
        return self._transcriber(options).one(self.check_source(audio))

    def transcribe_many(self, audios: Iterable[Any], **options: Any) -> Iterator[Transcription]:
        """A transcription of each of several audios, in order, to be used from one thread.

        They are read as they are needed; what is wrong with one is raised when its transcription is iterated, and the
        others go on. With `batched=True` the parts of all share batches of `batch_size`. audios, options: as for
        `transcribe`.
        """
        chosen = self._transcriber(options)
        return chosen.many(partial(self.check_source, audio) for audio in audios)

    def transcribe_live(
        self, blocks: Iterable[Any], *, step: float = live.STEP, **options: Any
    ) -> Iterator[live.Heard]:
        """The text of sound that is still coming: after each `step` seconds what is certain, and what may change.

        blocks: arrays [n] of samples at 16 kHz, of any lengths; `audio.live` has those of a pipe and of a microphone.
        options: as for `transcribe`, but for those that need all of the sound.
        """
        return live.listen(self.listener(step, **options), blocks)

    def listener(self, step: float = live.STEP, **options: Any) -> live.Listener:
        """What `transcribe_live` uses, for programs that push their sound."""
        live.check_options(options, step)
        chosen = self._transcriber({"temperature": live.TEMPERATURE, **options})
        if not isinstance(chosen, WholeSound):
            raise UsageError(
                f"{self.bundle.path}: a model of the family '{self.bundle.manifest['family']}' takes a whole clip at "
                "once; expected a bundle of Whisper, or a clip for `transcribe`"
            )
        return live.Listener(chosen.transcriber, chosen.options, chosen.generation, step)

    def _transcriber(self, options: Mapping[str, Any]) -> WholeSound | clips.Clips:
        """Raises UsageError for a bundle that reads no sound, and what is wrong with the options."""
        if not self.transcribes:
            raise UsageError(
                f"{self.bundle.path}: reads '{self.kind.name}' and no sound; use `generate`{self._other_method()}"
            )
        own, others = split_options(options)
        generation = self.options(**others)
        if self._speech_search is None:
            clips.check_options(own, self.bundle.manifest["family"])
            return clips.Clips(lambda samples: self.decode_batch([samples], generation)[0][0])
        assert self.tokenizer is not None
        return WholeSound(Transcriber(self._speech_search, self.tokenizer), TranscribeOptions(**own), generation)

    def read(
        self,
        pictures: Any,
        *,
        prompt: str | None = None,
        batch_size: int = DEFAULT_BATCH_SIZE,
        **options: Any,
    ) -> Any:
        """The text that the model finds in a picture, a str; for a list of pictures a list of str.

        pictures: each a file's name or bytes, a PIL image, or an array [height, width] or [height, width, channels].
        prompt: how the output begins. options: generation options by their Hugging Face names. Raises InputError.
        """
        several = isinstance(pictures, (list, tuple))
        chosen = self.reading_options(prompt, **options)
        checked = []
        for number, picture in enumerate(pictures if several else [pictures]):
            try:
                checked.append(self.check_source(picture))
            except InputError as error:
                raise InputError(f"picture {number}: {error}" if several else str(error)) from None
        texts = [best[0].text or "" for best in self.decode(checked, chosen, batch_size=batch_size)]
        return texts if several else texts[0]

    def reading_options(self, prompt: str | None = None, **options: Any) -> GenerationOptions:
        """The options of `read`. Raises UsageError for a bundle that reads no pictures or has no tokenizer."""
        if self.kind.field != IMAGE:
            raise UsageError(
                f"{self.bundle.path}: its model reads '{self.kind.name}' and no pictures; use `generate`"
                f"{self._other_method()}"
            )
        assert self.tokenizer is not None
        if prompt is not None:
            if options.get("decoder_input_ids") is not None:
                raise InvalidOption("prompt and decoder_input_ids are both given; expected one of them")
            options["decoder_input_ids"] = self._texts.phrase("prompt", prompt)
        return self.options(**options)

    def stream(
        self,
        source: str,
        *,
        source_lang: str | None = None,
        target_lang: str | None = None,
        truncate: bool = False,
        template: str | None = None,
        **options: Any,
    ) -> Iterator[str]:
        """The best hypothesis piece by piece, as soon as no later step can change a piece.

        With beams that is the common prefix of all hypotheses that can still win. The pieces joined are the text that
        `translate` gives.
        """
        chosen = self.options(target_lang=target_lang, **options)
        ids = self.encode(
            source, source_lang=source_lang, target_lang=target_lang, truncate=truncate, template=template
        )
        return self.stream_ids(ids, chosen)

    def stream_ids(self, ids: Source, options: GenerationOptions) -> Iterator[str]:
        """Like `stream`, for a checked source and options."""
        decoder = self.stream_decoder(ids)
        for tokens in self.searcher.stream(ids, options):
            if part := decoder.push(tokens):
                yield part
        if rest := decoder.finish():
            yield rest

    def stream_decoder(self, source: Source) -> text.StreamDecoder:
        """What turns the ids of a source's output into text as they become final; a prompt's own is left out."""
        return text.StreamDecoder(self.tokenizer, prompt=self.kind.ids(source) if is_prompt(self.kind) else ())

    def source_tokens(self, source: Source) -> list[str]:
        """The spelling of each source id; numbers where there is no tokenizer, positions where there are no ids."""
        if not self.kind.has_ids:
            return [str(i) for i in range(self.kind.length(source))]
        ids = self.kind.ids(source)
        return self._tokenizer.source_tokens(ids) if self._tokenizer else [str(i) for i in ids]

    def target_tokens(self, ids: Ids) -> list[str]:
        """The spelling of each target id; numbers where there is no tokenizer."""
        return self._tokenizer.tokens(ids) if self._tokenizer else [str(i) for i in ids]

    def with_text(self, hypothesis: Hypothesis, n_prompt: int = 0) -> Hypothesis:
        """The hypothesis with its text, where there is a tokenizer. n_prompt: how many tokens of the source it begins
        with, whose text is left out.
        """
        if self._tokenizer is None:
            return hypothesis
        segments = hypothesis.segments
        if segments is not None:
            segments = tuple(dataclasses.replace(s, text=self._tokenizer.decode(s.tokens)) for s in segments)
        text_of_all = self._tokenizer.decode(hypothesis.token_ids)
        if n_prompt:
            before = self._tokenizer.decode(hypothesis.token_ids[:n_prompt])
            # What the prompt's text goes on with: its last word may go on, and a blank may follow it.
            is_longer = text_of_all.startswith(before)
            text_of_all = (
                text_of_all[len(before) :] if is_longer else self._tokenizer.decode(hypothesis.token_ids[n_prompt:])
            )
        return dataclasses.replace(hypothesis, text=text_of_all, segments=segments)
