"""What the backends `tensorrt` and `tensorrt-rtx` have in common: which engine, and a batch on it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ....bundle import Bundle
from ....engines import folder_of, read, targets_of, why_no_engine, why_no_single_engine
from ....errors import InvalidOption
from ...cuda import device as cuda
from ...cuda import driver
from ...cuda.interface import Device
from ...decoding.state import DecodeState
from ...device_search.loop import Mode
from ...device_search.searcher import DeviceSearcher
from ...device_search.step_executor import incompatible_reason as search_incompatible_reason
from ...sources import Source
from .._declaration import Declaration
from . import library as libraries
from .engines import Engines
from .executor import EngineSlotFactory
from .library import Library
from .parts import PartedState
from .state import EngineState

SEARCH = "on the device, of recurrent models on the host"


class TensorRTBackend:
    """Engines of one target. Safe to use from several threads: each batch in flight has its own execution context."""

    def __init__(
        self,
        name: str,
        bundle: Bundle,
        folder: Path,
        library: Library,
        device: Any,
        search_device: Callable[[], Device] = cuda.shared,
    ) -> None:
        """device: the GPU of the engines. search_device: opens the same GPU with kernels and graphs, for the search."""
        self.name = name
        self.bundle = bundle
        self.target: str | None = folder.name
        self.engines = Engines(bundle, folder, read(folder), library, device)
        self._search_device = search_device
        self.max_sources = int(self.engines.record["ranges"]["B"]["max"])

    def begin(self, sources: Sequence[Source], n_beams: int) -> DecodeState:
        if len(sources) <= self.max_sources:
            return self._part(sources, n_beams)
        return PartedState(lambda part: self._part(part, n_beams), sources, self.max_sources)

    def lacks_device_search(self) -> str | None:
        return search_incompatible_reason(self.engines.graphs["decoder_step"])

    def device_search(self, mode: Mode) -> DeviceSearcher:
        return DeviceSearcher(EngineSlotFactory(self.engines, self._search_device()), mode)

    def _part(self, sources: Sequence[Source], n_beams: int) -> EngineState:
        return EngineState(self.engines, list(sources), n_beams)


def declaration(flavour: str, preference: int) -> Declaration:
    """Of the backend that is named after this flavour and runs its engines."""

    def open_on_gpu(bundle: Bundle, target: str | None = None, threads: int | None = None) -> TensorRTBackend:
        """threads: checked and not used; a GPU does the work."""
        if threads is not None and threads < 1:
            raise InvalidOption(f"threads is {threads}; expected at least 1")
        chosen = target or targets_of(bundle, (flavour,))[0]
        return TensorRTBackend(flavour, bundle, folder_of(bundle, chosen), libraries.load(flavour), driver.device())

    return Declaration(
        name=flavour,
        preference=preference,
        flavours=(flavour,),
        runs_portable_graphs=False,
        computes_on_cores=False,
        unavailable=lambda: unavailable(flavour),
        incompatible_reason=lambda bundle, target: incompatible_reason(flavour, bundle, target),
        open=open_on_gpu,
        search=SEARCH,
    )


def unavailable(flavour: str) -> str | None:
    """Why this flavour can't work on this machine. Looks for the package and the GPU first: importing takes seconds."""
    found = importlib.util.find_spec(libraries.MODULES[flavour])
    if found is None or found.origin is None:  # a folder that happens to have its name is no library
        return f"{libraries.NAMES[flavour]} is not installed; {libraries.INSTALL[flavour]}"
    return driver.unavailable() or libraries.unavailable(flavour)


def incompatible_reason(flavour: str, bundle: Bundle, target: str | None) -> str | None:
    """Why the bundle can't run on this flavour: no engine for it, several, or none of that target."""
    if target is not None:
        return why_no_engine(bundle, target, (flavour,))
    return why_no_single_engine(bundle, (flavour,))
