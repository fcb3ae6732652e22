"""The backend `cuda`, open: an engine of packed weights on a device."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ....bundle import Bundle
from ....engines import read, rebuild, refuse_stale
from ...cuda.interface import Device
from ...decoding.state import DecodeState
from ...device_search.loop import Mode
from ...device_search.searcher import DeviceSearcher
from ...sources import Source, kind_of
from .alignment import aligned_heads
from .executor import NativeSlotFactory
from .loaded import Loaded
from .model import Weights
from .state import NativeState


class NativeBackend:
    """Safe to use from several threads: weights are shared, every batch has memory of its own."""

    name = "cuda"

    def __init__(self, bundle: Bundle, folder: Path, device: Device) -> None:
        """device: CudaDevice, or HostDevice to run the same kernels without a GPU.

        Raises EngineError for an engine that can't run here, OutOfMemory where its weights don't fit.
        """
        engine = read(folder)
        refuse_stale(bundle, folder, engine)
        self.bundle = bundle
        self.kind = kind_of(bundle)
        self.target: str | None = folder.name
        self.limits = (bundle.max_source_length, bundle.max_target_length)
        weights = Weights(folder, rebuild(folder, engine))
        self.loaded = Loaded(weights, device, aligned_heads(bundle, weights.model))

    def begin(self, sources: Sequence[Source], n_beams: int) -> DecodeState:
        return NativeState(self.loaded, self.kind, self.limits, sources, n_beams)

    def lacks_device_search(self) -> str | None:
        return None

    def device_search(self, mode: Mode) -> DeviceSearcher:
        return DeviceSearcher(NativeSlotFactory(self.loaded, self.kind, self.limits), mode)
