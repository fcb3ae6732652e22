"""Searches with fewer beams than the executor runs: an engine serves some numbers of beams, and others run as more.

The search has tables of its own width. Before a step they are copied into the first rows of the executor's, and after
it the first rows of what it wrote come back; the other rows feed token 0, and their results are ignored. Letters: B
sources, K beams that are searched, E beams that run, C positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from ..cuda.interface import Device
from .step_executor import StepExecutor

Buffer = Callable[[str, Sequence[int], str], int]  # (name, shape, dtype) -> address, the same for each call
BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
NAMES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
Copy = tuple[int, int, int, int, int]  # target, its pitch, source, its pitch, bytes: once for each of B sources


class NarrowExecutor:
    """See `StepExecutor`. inner: the executor that runs more beams than `n_beams`."""

    def __init__(self, inner: StepExecutor, n_beams: int, device: Device, buffer: Buffer) -> None:
        B, K, E = inner.n_sources, n_beams, inner.n_beams
        C, V = inner.capacity, inner.vocabulary_size
        self._inner, self._device = inner, device
        self.n_sources, self.n_beams, self.vocabulary_size, self.capacity = B, K, V, C
        self.element, self.stream, self.position = inner.element, inner.stream, inner.position
        self.positions, self.capturable = inner.positions, inner.capturable
        self.token = buffer("narrow token", (B, K), "int64")
        self.ancestors = buffer("narrow ancestors", (B, K, C), "int64")
        self.logits = buffer("narrow logits", (B, K, V), NAMES[inner.element])
        self.attention = inner.attention
        row = V * BYTES[inner.element]
        self._before: list[Copy] = [
            (inner.token, E * 8, self.token, K * 8, K * 8),
            (inner.ancestors, E * C * 8, self.ancestors, K * C * 8, K * C * 8),
        ]
        self._after: list[Copy] = [(self.logits, K * row, inner.logits, E * row, K * row)]
        if self.attention is not None:
            a = self.attention
            row = a.layers * a.heads * a.width * BYTES[a.element]
            mine = buffer("narrow attention", (B, K, a.layers, a.heads, a.width), NAMES[a.element])
            self._after.append((mine, K * row, a.address, E * row, K * row))
            self.attention = replace(a, address=mine)
        self.signature: object = (inner.signature, self.token, self.ancestors, self.logits, self.attention)
        device.zero(inner.token, B * E * 8, self.stream)

    def enqueue(self, stream: int) -> None:
        for copy in self._before:
            self._copy(copy, stream)
        self._inner.enqueue(stream)
        for copy in self._after:
            self._copy(copy, stream)

    def _copy(self, copy: Copy, stream: int) -> None:
        target, target_pitch, source, source_pitch, n_bytes = copy
        self._device.move_rows(target, target_pitch, source, source_pitch, n_bytes, self.n_sources, stream)
