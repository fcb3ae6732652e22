"""Ensembles: bundles with one vocabulary that decode together, each step's probabilities being averaged.

    session = load("a", ensemble=["b", "c"])

`log_probs` averages log-probabilities, which is the product of the models' distributions, as Marian does it;
`probs` averages probabilities, as fairseq does it. Every member encodes the sources and makes every step, so that an
ensemble of n costs n times as much. The search is the host's, over whole distributions. Letters: B sources, K beams,
V vocabulary, M candidates, Q probed tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..bundle import Bundle
from ..errors import InvalidOption, UnknownOption
from .backends import Backend
from .decoding import DecodeState, StepQuery, StepResult
from .decoding.numerics import log_softmax
from .decoding.state import Floats, Ints
from .sources import Source

AVERAGES = ("log_probs", "probs")


class EnsembleBackend:
    """See `backends.Backend`. bundles, members: of each model, opened on one backend."""

    def __init__(self, bundles: Sequence[Bundle], members: Sequence[Backend], average: str = "log_probs") -> None:
        if average not in AVERAGES:
            raise UnknownOption(average, AVERAGES, "average of an ensemble")
        for bundle in bundles[1:]:
            if reason := _difference(bundles[0], bundle):
                raise InvalidOption(
                    f"{bundle.path}: has {reason} than {bundles[0].path}; expected members of an ensemble to share "
                    "one vocabulary; leave it out"
                )
        self.name = members[0].name
        self.target = getattr(members[0], "target", None)
        self._members = list(members)
        self._average = average

    def begin(self, sources: Sequence[Source], n_beams: int) -> DecodeState:
        return EnsembleState([member.begin(sources, n_beams) for member in self._members], self._average)


class EnsembleState:
    """See `DecodeState`."""

    def __init__(self, states: Sequence[DecodeState], average: str) -> None:
        self._states = list(states)
        self._average = average
        self.vocabulary_size = self._states[0].vocabulary_size

    @property
    def n_sources(self) -> int:
        return self._states[0].n_sources

    @property
    def n_beams(self) -> int:
        return self._states[0].n_beams

    def step(self, tokens: Ints, parents: Ints, query: StepQuery) -> StepResult:
        asked = StepQuery(1, dense=True, attention=query.attention)
        results = [state.step(tokens, parents, asked) for state in self._states]
        log_probs = averaged([result.log_probs for result in results if result.log_probs is not None], self._average)
        n = min(query.n_candidates, self.vocabulary_size)
        ids = np.argpartition(-log_probs, n - 1, axis=-1)[..., :n]
        order = np.argsort(-np.take_along_axis(log_probs, ids, axis=-1), axis=-1, kind="stable")
        ids = np.take_along_axis(ids, order, axis=-1)
        probed = None if query.probe_ids is None else np.take_along_axis(log_probs, query.probe_ids, axis=-1)
        return StepResult(
            candidate_ids=ids,
            candidate_log_probs=np.take_along_axis(log_probs, ids, axis=-1),
            log_normalizer=np.zeros(log_probs.shape[:2], dtype=np.float32),
            probe_log_probs=probed,
            log_probs=log_probs if query.dense else None,
            attention=_attention(results) if query.attention else None,
        )

    def keep(self, sources: Ints) -> None:
        for state in self._states:
            state.keep(sources)


def averaged(log_probs: Sequence[Floats], average: str) -> Floats:
    """[B, K, V] of several models' log-probabilities [B, K, V], normalised again."""
    if average == "log_probs":
        return log_softmax(np.mean(log_probs, axis=0, dtype=np.float32))
    found: Floats = np.logaddexp.reduce(np.stack(log_probs), axis=0) - np.float32(np.log(len(log_probs)))
    return found


def _attention(results: Sequence[StepResult]) -> Any:
    """[B, K, 1, 1, S]: the mean over the members of their last layers' mean over heads."""
    found = [result.attention[:, :, -1].mean(axis=2) for result in results if result.attention is not None]
    return np.mean(found, axis=0)[:, :, None, None] if found else None


def _difference(first: Bundle, other: Bundle) -> str | None:
    """What of two bundles' vocabularies differs."""
    sizes = [bundle.manifest["sizes"].get("source_vocabulary_size") for bundle in (first, other)]
    if first.vocabulary_size != other.vocabulary_size or sizes[0] != sizes[1]:
        return f"a vocabulary of another size, {other.vocabulary_size} and not {first.vocabulary_size},"
    if first.manifest["source"]["kind"] != other.manifest["source"]["kind"]:
        return "sources of another kind"
    tokenizers = [
        {name: file["sha256"] for name, file in bundle.manifest["files"].items() if name.startswith("tokenizer/")}
        for bundle in (first, other)
    ]
    return "another tokenizer" if tokenizers[0] != tokenizers[1] else None
