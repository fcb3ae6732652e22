"""An engine's weights in a GPU's memory, and the kernels that read them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from .... import plugin_sources
from ...cuda.interface import Device, Kernels, Queued
from .alignment import AlignedHeads
from .model import AnyModel, Model, RecurrentModel, Weights
from .plain_weights import PlainWeights

NO_ATTENTION = (
    "the backend cuda gives no cross-attention weights of this model, which alignments need: it is recurrent, or does "
    "not say which heads align; expected no alignments; leave them out, or load with another backend"
)
structures = plugin_sources.module("transformer.structures")
launches = plugin_sources.module("transformer.launches")


class Loaded:
    """Shared by all batches. Raises OutOfMemory where the weights don't fit, and what loading kernels raises."""

    def __init__(self, weights: Weights, device: Device, aligned: AlignedHeads | None = None) -> None:
        """aligned: the heads whose cross-attention weights a step can give."""
        self.aligned = aligned
        self.model: AnyModel = weights.model
        self.plain = PlainWeights(weights, device)
        self.device = device
        self.kernels: Kernels = device.kernels(
            launches.folder(self.model.element), launches.any_kernel(self.model.element)
        )
        self._base = device.allocate(weights.bytes.size, f"the weights of {weights.path.parent.name}")
        stream = device.create_stream()
        device.to_device(self._base, weights.bytes, stream)
        device.synchronize(stream)
        device.destroy_stream(stream)

    @property
    def transformer(self) -> Model:
        assert isinstance(self.model, Model)
        return self.model

    @property
    def recurrent(self) -> RecurrentModel:
        assert isinstance(self.model, RecurrentModel)
        return self.model

    def address(self, name: str | None) -> int | None:
        """Of a tensor; None for none."""
        return None if name is None else self._base + self.model.tensors[name].offset


Call = Callable[[int], None]  # a library's, with the stream
Buffer = Callable[[str, tuple[int, ...], str], int]  # (name, shape, dtype) -> address, the same each time or larger


class Program:
    """Launches in the order in which they are queued."""

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self._queued: list[Queued] = []
        self._calls: list[tuple[int, Call]] = []  # before so many launches

    def add(self, launch: Any, given: ctypes.Structure) -> None:
        self._queued.append((launch, given))

    def add_call(self, call: Call) -> None:
        """Adds what a library queues."""
        self._calls.append((len(self._queued), call))

    def run(self, stream: int) -> None:
        first = 0
        for end, call in self._calls:
            if end > first:
                self._loaded.kernels.run_chain(self._queued[first:end], stream)
            self._loaded.device.run_call(call, stream)
            first = end
        if first < len(self._queued):
            self._loaded.kernels.run_chain(self._queued[first:], stream)

    def run_apart(self, stream: int) -> None:
        """The same, none of which begins before the last has ended: what that gains is to be measured."""
        assert not self._calls
        for launch, given in self._queued:
            self._loaded.kernels.run(launch, given, stream)

    def run_with(self, launch: Any, given: ctypes.Structure, stream: int) -> None:
        """The same with another launch in place of the last one."""
        self._loaded.kernels.run_chain([*self._queued[:-1], (launch, given)], stream)

    @property
    def last(self) -> ctypes.Structure:
        """The arguments of the last launch."""
        return self._queued[-1][1]

    @property
    def n_launches(self) -> int:
        return len(self._queued) + len(self._calls)


def named(prefix: str, buffer: Buffer) -> Buffer:
    """The same memory with names of its own."""
    return lambda name, shape, dtype: buffer(f"{prefix} {name}", shape, dtype)


__all__ = ["NO_ATTENTION", "Buffer", "Loaded", "Program", "launches", "named", "structures"]
