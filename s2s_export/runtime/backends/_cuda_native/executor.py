"""Batches under the search on the device: memory and launches of a slot, kept for batches of the same shape."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from ....errors import BackendError
from ...cuda.driver import Buffers
from ...decoding.options import GenerationOptions
from ...device_search.step_executor import Attention, CandidateTables, capacity
from ...sources import Source, SourceKind
from .encoder import source_length
from .loaded import NO_ATTENTION, Loaded
from .programs import Encoder, encoder_of, step_of
from .step_program import StepProgram


class NativeExecutor:
    """See `StepExecutor`."""

    element = "fp32"  # logits: fp16's three digits would make ties of tokens that are none
    capturable = True

    def __init__(self, loaded: Loaded, encoder: Encoder, decoder: StepProgram, stream: int) -> None:
        self._decoder = decoder
        self.n_sources, self.n_beams = encoder.n_sources, decoder.n_beams
        self.vocabulary_size = loaded.model.vocabulary
        self.capacity = self.positions = decoder.capacity
        self.token, self.position = decoder.token, decoder.position
        self.ancestors, self.logits = decoder.ancestors, decoder.logits
        self.attention: Attention | None = decoder.attention
        self.stream = stream
        # The step's launches follow from sizes and addresses, and those from the memory of the slot.
        self.signature: object = (
            self.n_sources, self.n_beams, self.capacity, encoder.length, encoder.mask, *encoder.results, self.token,
            self.position, self.ancestors, self.logits, self.attention, *(one.address for one in decoder.kept),
        )  # fmt: skip

    def enqueue(self, stream: int) -> None:
        self._decoder.program.run(stream)

    def candidate_lists(self, candidates: int) -> int:
        return self._decoder.candidate_lists(candidates)

    def enqueue_candidates(self, stream: int, tables: CandidateTables) -> None:
        self._decoder.run_candidates(stream, tables)


class NativeSlot:
    """See `searcher.Slot`. A batch of the last one's shape uses its launches again."""

    def __init__(self, loaded: Loaded, kind: SourceKind, limits: tuple[int | None, int | None]) -> None:
        self._loaded, self._kind, self._limits = loaded, kind, limits
        self._stream = loaded.device.create_stream()
        self._buffers = Buffers(loaded.device, self._stream)
        self._last: tuple[Hashable, Encoder, NativeExecutor] | None = None  # and what its launches depend on

    def begin(
        self, sources: Sequence[Source], options: GenerationOptions, *, graphs: bool, alignments: bool
    ) -> NativeExecutor:
        aligned = self._loaded.aligned if alignments else None
        if alignments and aligned is None:
            raise BackendError(NO_ATTENTION)
        shape = shape_of(self._loaded, sources, options, self._kind, self._limits)
        n_sources, n_beams, positions, length = shape
        if self._last is None or self._last[0] != (shape, aligned):
            self._last = None
            encoder = encoder_of(self._loaded, n_sources, length, self._buffers.get)
            decoder = step_of(self._loaded, encoder, n_beams, positions, self._buffers.get, aligned)
            self._last = ((shape, aligned), encoder, NativeExecutor(self._loaded, encoder, decoder, self._stream))
        _, encoder, executor = self._last
        values = self._kind.prepare(sources)
        encoder.upload(values, self._loaded.device, self._stream)
        encoder.program.run(self._stream)
        return executor

    def close(self) -> None:
        self._last = None
        self._loaded.device.synchronize(self._stream)
        self._buffers.close()
        self._loaded.device.destroy_stream(self._stream)


def shape_of(
    loaded: Loaded, sources: Sequence[Source], options: GenerationOptions, kind: SourceKind,
    limits: tuple[int | None, int | None],
) -> tuple[int, int, int, int]:  # fmt: skip
    """B, K, C and S of a batch. limits: longest source and target that the model takes."""
    length = source_length(loaded, kind, sources, limits[0])
    return len(sources), options.n_rows, capacity(options, limits[1]), length


class NativeSlotFactory:
    """See `searcher.SlotFactory`. Any number of sources."""

    most_sources: int | None = None

    def __init__(self, loaded: Loaded, kind: SourceKind, limits: tuple[int | None, int | None]) -> None:
        self.device: Any = loaded.device
        self.kind = kind
        self._loaded, self._limits = loaded, limits

    def shape_of(self, sources: Sequence[Source], options: GenerationOptions) -> Hashable:
        return shape_of(self._loaded, sources, options, self.kind, self._limits)

    def make(self) -> NativeSlot:
        return NativeSlot(self._loaded, self.kind, self._limits)
