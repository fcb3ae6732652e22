"""Encoders alone: an open bundle that turns texts into embeddings or labels. No torch, transformers or onnx below.

session = load_encoder("bundle")
session.encode(["a text", "another"])          # [2, E] float32
session.classify(["a text"])                   # of a classifier: all labels of each text, best first
session.classify([("a question", "a text")])   # of one that reads two texts, such as a reranker
session.tag(["a text"])                        # of a classifier of tokens: the label of each token
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from ... import engines
from ...bundle import ENCODER, Bundle, read
from ...errors import BackendUnavailable, BundleError, InputError, InvalidOption, UnknownOption, UsageError
from .. import backends, scheduling, text
from ..backends.onnxruntime import NAME, OnnxRuntimeBackend
from ..cores import available_cores
from ..decoding.state import Floats
from ..sources import MASK, kind_of
from . import dense
from .labels import Entity, Label, TokenLabel, entities, probabilities, ranked
from .pairs import PairTemplate
from .pooling import POOLINGS, normalized, pool

__all__ = ["EncoderSession", "Entity", "Head", "Label", "TokenLabel", "entities", "load_encoder"]

DEFAULT_BATCH_SIZE = 32  # texts that are encoded together
Source: TypeAlias = str | tuple[str, str] | Sequence[int]
STATES, LOGITS = "encoder_states", "logits"
TASK_METHODS = {"embedding": "encode", "sequence_classification": "classify", "token_classification": "tag"}


@dataclass(frozen=True)
class Head:
    """What becomes of the encoder's states: manifest.json's `head`."""

    task: str
    pooling: str = "mean"
    normalize: bool = False
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    dense: tuple[dict[str, Any], ...] = ()
    labels: tuple[str, ...] = ()
    activation: str = "softmax"

    @classmethod
    def of(cls, bundle: Bundle) -> Head:
        """Raises BundleError where the graph gives another number of labels, or another output."""
        found = {name: value for name, value in bundle.manifest["head"].items() if name in cls.__annotations__}
        head = cls(**{**found, **{name: tuple(found.get(name, ())) for name in ("labels", "dense")}})
        outputs = {entry["name"]: entry["shape"] for entry in bundle.manifest["graphs"]["encoder"]["outputs"]}
        wanted = STATES if head.task == "embedding" else LOGITS
        if wanted not in outputs:
            raise BundleError(f"{bundle.path}: its encoder gives no {wanted}, which {head.task} needs; export it again")
        if head.labels and outputs[wanted][-1] != len(head.labels):
            raise BundleError(
                f"{bundle.path}: its encoder gives {outputs[wanted][-1]} logits, but head.labels has "
                f"{len(head.labels)}; export it again"
            )
        if head.default_prompt is not None and head.default_prompt not in head.prompts:
            raise BundleError(f"{bundle.path}: head.default_prompt is none of its prompts; export it again")
        return head


def load_encoder(
    bundle: str | os.PathLike[str],
    backend: str = backends.AUTO,
    target: str | None = None,
    threads: int | None = None,
    *,
    workers: int | None = 1,
    verify: bool = True,
) -> EncoderSession:
    """Open the bundle of an encoder. Options are those of `load`; encoders run on ONNX Runtime on the CPU.

    Raises BundleError, BackendUnavailable, EngineError, InvalidOption, UnknownOption.
    """
    n_workers = scheduling.workers_of(workers, threads)
    if threads is None and n_workers > 1:
        threads = max(1, available_cores() // n_workers)
    opened = read(bundle, verify=verify, kinds=(ENCODER,))
    if backend not in (backends.AUTO, NAME):
        if backend in backends.declared():
            raise InvalidOption(f"backend is '{backend}', but encoders run on '{NAME}'; choose it, or 'auto'")
        raise UnknownOption(backend, [backends.AUTO, NAME], "backend")
    declared = backends.declared()[NAME]
    if reason := declared.unavailable() or declared.incompatible_reason(opened, target):
        raise BackendUnavailable(f"{NAME}: {reason}")
    executor = declared.open(opened, target, threads)
    assert isinstance(executor, OnnxRuntimeBackend)
    return EncoderSession(opened, executor, n_workers)


class EncoderSession:
    """Encodes with one bundle. Safe to call from several threads.

    Sources are texts, pairs of texts (tuples), or lists of token ids.
    """

    def __init__(self, bundle: Bundle, backend: OnnxRuntimeBackend, workers: int = 1) -> None:
        self.bundle, self.backend, self.workers = bundle, backend, workers
        self.kind = kind_of(bundle)
        self.head = Head.of(bundle)
        entry = bundle.manifest.get("tokenizer")
        self._tokenizer = text.load(bundle.path / "tokenizer", entry) if entry else None
        pair = bundle.manifest["source"].get("pair")
        self._pair = None if pair is None else PairTemplate.of(pair)
        self._dense = dense.read(bundle, self.head.dense)

    def __repr__(self) -> str:
        return f"<EncoderSession of {self.bundle.path} ({self.head.task}) on {self.engine}>"

    @property
    def engine(self) -> str:
        """What runs: "cpu-int8", or "portable graphs"."""
        return self.backend.target or f"{engines.PORTABLE} graphs"

    @property
    def width(self) -> int:
        """E: numbers of an embedding."""
        return int(self.head.dense[-1]["width"] if self.head.dense else self.bundle.manifest["sizes"]["width"])

    @property
    def tokenizer(self) -> text.Tokenizer:
        """Raises UsageError for a bundle whose checkpoint had no tokenizer."""
        if self._tokenizer is None:
            raise UsageError(
                f"{self.bundle.path}: has no tokenizer, as its checkpoint had none; give token ids instead"
            )
        return self._tokenizer

    def prompt(self, prompt: str | None = None, prompt_name: str | None = None) -> str:
        """What is put before every text. prompt: itself. prompt_name: one of the bundle's. Raises UsageError."""
        if prompt is not None and prompt_name is not None:
            raise UsageError("found prompt and prompt_name; expected one of them")
        if prompt is not None:
            return prompt
        name = prompt_name if prompt_name is not None else self.head.default_prompt
        if name is None:
            return ""
        if not self.head.prompts:
            raise UsageError(f"the prompt '{name}' was asked for, but the bundle has none; leave it out")
        if name not in self.head.prompts:
            raise UnknownOption(name, self.head.prompts, "prompt")
        return self.head.prompts[name]

    def ids(self, source: Source, *, truncate: bool = False) -> list[int]:
        """The checked token ids of a source. truncate: cut one that is too long. Raises InputError, UsageError."""
        ids = self.tokenizer.encode(source) if isinstance(source, str) else source
        if isinstance(source, tuple) and any(isinstance(part, str) for part in source):
            ids = self._ids_of_pair(source, truncate)
        checked: list[int] = self.kind.check(ids, truncate=truncate, tokenizer=self._tokenizer)
        return checked

    def _ids_of_pair(self, pair: tuple[Any, ...], truncate: bool) -> list[int]:
        if len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise InputError(f"the source is a tuple of {len(pair)} parts; expected two texts")
        if self.head.task == "token_classification":
            raise UsageError("the model labels the tokens of one text; expected one text, not two")
        if self._pair is None:
            tokenizer = self.tokenizer  # says that there is none
            raise UsageError(
                f"{self.bundle.path}: its tokenizer ({tokenizer.entry.kind}) has no form for two texts, or the bundle "
                "was exported by a version without; export it again, or give token ids"
            )
        return self._pair.ids(self.tokenizer, pair[0], pair[1], self.bundle.max_source_length, truncate=truncate)

    def encode(
        self,
        sources: Sequence[Source],
        *,
        pooling: str | None = None,
        normalize: bool | None = None,
        prompt: str | None = None,
        prompt_name: str | None = None,
        truncate: bool = False,
        batch_size: int = DEFAULT_BATCH_SIZE,
    ) -> Floats:
        """The embedding of each source, [n, E] float32.

        pooling: mean, cls, max, mean_sqrt_len or last. normalize: whether each has length 1. Both by default as the
        checkpoint says. prompt: text put before each text, ids stay as they are; prompt_name: one of the bundle's.
        """
        self._require("embedding")
        before = self.prompt(prompt, prompt_name)
        checked = self._checked(sources, truncate, before)
        found = np.zeros((len(checked), self.width), np.float32)
        for place, vector in self.encode_each(checked, pooling=pooling, normalize=normalize, batch_size=batch_size):
            found[place] = vector
        return found

    def encode_each(
        self,
        checked: Sequence[list[int]],
        *,
        pooling: str | None = None,
        normalize: bool | None = None,
        batch_size: int = DEFAULT_BATCH_SIZE,
    ) -> Iterator[tuple[int, Floats]]:
        """The index and embedding [E] of each source of checked ids, as batches finish."""
        pooling = self.head.pooling if pooling is None else pooling
        normalize = self.head.normalize if normalize is None else normalize
        if pooling not in POOLINGS:
            raise UnknownOption(pooling, POOLINGS, "pooling")
        for indices, values in self._run(checked, batch_size):
            pooled = pool(values[STATES], values[MASK], pooling)
            for layer in self._dense:
                pooled = layer(pooled)
            yield from zip(indices, normalized(pooled) if normalize else pooled, strict=True)

    def classify(
        self,
        sources: Sequence[Source],
        *,
        truncate: bool = False,
        batch_size: int = DEFAULT_BATCH_SIZE,
    ) -> list[list[Label]]:
        """All labels of each source, best first; a regression has one, whose score is the value."""
        self._require("sequence_classification")
        checked = self._checked(sources, truncate)
        return [found for _, found in sorted(self.classify_each(checked, batch_size=batch_size), key=_place)]

    def classify_each(
        self, checked: Sequence[list[int]], *, batch_size: int = DEFAULT_BATCH_SIZE
    ) -> Iterator[tuple[int, list[Label]]]:
        for indices, values in self._run(checked, batch_size):
            scores = probabilities(values[LOGITS], self.head.activation)
            for index, of_source in zip(indices, scores, strict=True):
                yield index, ranked(of_source, self.head.labels)

    def tag(
        self,
        sources: Sequence[Source],
        *,
        truncate: bool = False,
        batch_size: int = DEFAULT_BATCH_SIZE,
    ) -> list[list[TokenLabel]]:
        """The label of each token of each source, without those put around it; `entities` groups them."""
        self._require("token_classification")
        checked = self._checked(sources, truncate)
        texts = [source if isinstance(source, str) else None for source in sources]
        return [found for _, found in sorted(self.tag_each(checked, texts, batch_size=batch_size), key=_place)]

    def tag_each(
        self, checked: Sequence[list[int]], texts: Sequence[str | None], *, batch_size: int = DEFAULT_BATCH_SIZE
    ) -> Iterator[tuple[int, list[TokenLabel]]]:
        """texts: what the ids were made of, for the places of tokens; None for a source that was ids."""
        for indices, values in self._run(checked, batch_size):
            scores = probabilities(values[LOGITS], self.head.activation)
            for index, of_source in zip(indices, scores, strict=True):
                yield index, self._tokens(checked[index], texts[index], of_source)

    def _tokens(self, ids: list[int], source: str | None, scores: Floats) -> list[TokenLabel]:
        tokenizer = self._tokenizer
        before, after = tokenizer.ends(ids) if tokenizer is not None else (0, 0)
        spelled = tokenizer.tokens(ids) if tokenizer is not None else [str(i) for i in ids]
        spans: list[Any] = [(None, None)] * len(ids)
        if source is not None and tokenizer is not None:
            spans = _placed(tokenizer, source, ids)
        best = scores.argmax(axis=1)
        return [
            TokenLabel(spelled[i], token, self.head.labels[best[i]], float(scores[i, best[i]]), *spans[i])
            for i, token in enumerate(ids)
            if before <= i < len(ids) - after
        ]

    def _run(self, checked: Sequence[list[int]], batch_size: int) -> Iterator[tuple[list[int], dict[str, Any]]]:
        batches = scheduling.plan_batches([len(ids) for ids in checked], batch_size, self.workers)
        yield from scheduling.run(
            batches, lambda indices: self.backend.encode([checked[i] for i in indices]), self.workers
        )

    def _checked(self, sources: Sequence[Source], truncate: bool, before: str = "") -> list[list[int]]:
        if isinstance(sources, str):
            raise UsageError("expected a list of texts, found one text; write [text]")
        found = []
        for number, source in enumerate(sources):
            try:
                found.append(self.ids(before + source if isinstance(source, str) else source, truncate=truncate))
            except InputError as error:
                raise InputError(f"source {number}: {error}") from None
        return found

    def _require(self, task: str) -> None:
        if self.head.task != task:
            raise UsageError(
                f"{self.bundle.path}: its model is for {self.head.task.replace('_', ' ')}; use "
                f"`{TASK_METHODS[self.head.task]}`"
            )


def _placed(tokenizer: text.Tokenizer, source: str, ids: list[int]) -> list[tuple[int | None, int | None]]:
    """The characters of a source that each of its ids stands for; None for ids that the template adds."""
    nothing: list[tuple[int | None, int | None]] = [(None, None)]
    spans = tokenizer.spans(source)
    if spans is None:
        return nothing * len(ids)
    before, after = len(tokenizer.entry.prefix), len(tokenizer.entry.suffix)
    n_cut = len(spans) - (len(ids) - before - after)
    kept = spans[n_cut:] if tokenizer.entry.truncation_side == "left" else spans[: len(spans) - n_cut]
    return [*nothing * before, *kept, *nothing * after]


def _place(found: tuple[int, Any]) -> int:
    return found[0]
