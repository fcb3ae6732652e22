"""A batch under the search on the host: every step's logits come to the host, which finds the candidates.

It serves options that the search on the device has not; docs/cuda-native.md says what it costs.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from ....errors import BackendError
from ...cuda.driver import Buffers
from ...decoding.ancestors import AncestorTable
from ...decoding.state import Floats, Ints, StepQuery, StepResult
from ...sources import Source, SourceKind
from .encoder import source_length
from .loaded import NO_ATTENTION, Loaded
from .programs import encoder_of, step_of
from .step_program import StepProgram

FIRST_CAPACITY = 64  # positions that a cache has room for at first
GROWTH = 2  # a full cache grows by this factor


class NativeState:
    """See `decoding.state.DecodeState`."""

    def __init__(
        self, loaded: Loaded, kind: SourceKind, limits: tuple[int | None, int | None], sources: Sequence[Source],
        n_beams: int,
    ) -> None:  # fmt: skip
        self.vocabulary_size = loaded.model.vocabulary
        self.n_beams = n_beams
        self._loaded, self._device, self._limit = loaded, loaded.device, limits[1]
        self._device.activate()
        self._stream = self._device.create_stream()
        self._buffers = Buffers(self._device, self._stream)
        weakref.finalize(self, _close, self._device, self._buffers, self._stream)
        length = source_length(loaded, kind, sources, limits[0])
        self._encoder = encoder_of(loaded, len(sources), length, self._buffers.get)
        self._encoder.upload(kind.prepare(sources), self._device, self._stream)
        self._encoder.program.run(self._stream)
        self._t = self._generation = 0
        self._kept = np.arange(len(sources))  # of the batch that was encoded, those that are still searched
        self._ancestors = AncestorTable.of(len(sources), n_beams, 0)
        self._decoder: StepProgram | None = None
        self._gives_attention = False
        self._grow(FIRST_CAPACITY)

    @property
    def n_sources(self) -> int:
        return len(self._kept)

    def step(self, tokens: Ints, parents: Ints, query: StepQuery) -> StepResult:
        t, decoder = self._t, self._decoder
        if self._limit is not None and t >= self._limit:
            raise BackendError(f"the decoder has no position {t}: the model's limit is {self._limit} tokens")
        if query.attention and self._loaded.aligned is None:
            raise BackendError(NO_ATTENTION)
        self._device.activate()
        if query.attention and not self._gives_attention:
            self._gives_attention = True
            self._grow(self._ancestors.capacity)
            decoder = self._decoder
        if self._ancestors.is_full:
            self._grow(t * GROWTH)
            decoder = self._decoder
        assert decoder is not None
        self._ancestors.follow(parents)
        shape = (self._encoder.n_sources, self.n_beams)
        fed, table = np.zeros(shape, np.int64), np.zeros((*shape, decoder.capacity), np.int64)
        fed[self._kept], table[self._kept] = tokens, self._ancestors.array
        at = np.array([t], np.int64)
        for address, array in ((decoder.token, fed), (decoder.ancestors, table), (decoder.position, at)):
            self._device.to_device(address, array, self._stream)
        decoder.program.run(self._stream)
        logits = np.empty((*shape, self.vocabulary_size), np.float32)
        self._device.to_host(logits, decoder.logits, self._stream)
        given = decoder.attention if query.attention else None
        if given is not None:
            attention = np.empty((*shape, given.layers, given.heads, given.width), np.float32)
            self._device.to_host(attention, given.address, self._stream)
        self._device.synchronize(self._stream)
        self._t = t + 1
        found = answer(logits[self._kept], query)
        if given is not None:
            found.attention = attention[self._kept]
        return found

    def keep(self, sources: Ints) -> None:
        """The others are computed on, and nobody looks at them."""
        self._kept = self._kept[sources]
        self._ancestors.keep(sources)

    def _grow(self, positions: int) -> None:
        """Makes room for so many positions, and keeps what the caches hold."""
        old, limit = self._decoder, self._limit
        positions = positions if limit is None else min(positions, limit)
        self._generation += 1
        prefix = f"{self._generation}"

        def buffer(name: str, shape: tuple[int, ...], dtype: str) -> int:
            return self._buffers.get(f"{prefix} {name}", shape, dtype)

        aligned = self._loaded.aligned if self._gives_attention else None
        self._decoder = step_of(self._loaded, self._encoder, self.n_beams, positions, buffer, aligned)
        self._ancestors.grow(positions)
        if old is None:
            return
        for source, target in zip(old.kept, self._decoder.kept, strict=True):
            size = source.part_bytes
            self._device.move_rows(
                target.address, target.part_bytes, source.address, size, size, source.n_parts, self._stream
            )


def _close(device: Any, buffers: Buffers, stream: int) -> None:
    with suppress(BackendError):  # the device may be lost, and its memory with it
        device.activate()
        device.synchronize(stream)
        buffers.close()
        device.destroy_stream(stream)


def answer(logits: Floats, query: StepQuery) -> StepResult:
    """What a query asks of logits [B, K, V]."""
    largest = logits.max(axis=-1, keepdims=True)
    normalizer = largest + np.log(np.exp(logits - largest).sum(axis=-1, keepdims=True))
    log_probs = logits - normalizer
    n = min(query.n_candidates, logits.shape[-1])
    near = np.sort(np.argpartition(-log_probs, n - 1, axis=-1)[..., :n], axis=-1)
    order = np.argsort(-np.take_along_axis(log_probs, near, -1), axis=-1, kind="stable")
    ids = np.take_along_axis(near, order, -1)
    probes = query.probe_ids
    return StepResult(
        candidate_ids=ids,
        candidate_log_probs=np.take_along_axis(log_probs, ids, -1),
        log_normalizer=normalizer[..., 0],
        probe_log_probs=None if probes is None else np.take_along_axis(log_probs, probes, -1),
        log_probs=log_probs if query.dense else None,
    )
