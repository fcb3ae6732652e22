"""What the backends `tensorrt` and `tensorrt-rtx` have in common: which engine, and a batch on it."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ....bundle import Bundle
from ....errors import EngineError
from ...cuda import device as cuda
from ...cuda import driver
from ...cuda.interface import Device
from ...decoding.state import DecodeState
from ...device_search.loop import Mode
from ...device_search.searcher import DeviceSearcher
from ...device_search.step_executor import unfit as unfit_for_search
from . import library as libraries
from .engines import Engines, read_record
from .executor import EnginePlaces
from .library import Library
from .parts import PartedState
from .state import EngineState

SEARCH = "on the device, of recurrent models on the host"


class TensorRTBackend:
    """Engines of one target. Safe to use from several threads: each batch in flight has a lane of its own."""

    def __init__(
        self,
        name: str,
        bundle: Bundle,
        folder: Path,
        library: Library,
        device: Any,
        search_device: Callable[[], Device] = cuda.shared,
    ) -> None:
        """device: of the engines. search_device: the same GPU as the search wants it, made when it is wanted."""
        self.name = name
        self.bundle = bundle
        self.target = folder.name
        self.engines = Engines(bundle, folder, read_record(folder), library, device)
        self._search_device = search_device
        self.max_sources = int(self.engines.record["ranges"]["B"]["max"])

    def begin(self, sources: Sequence[Sequence[int]], n_beams: int) -> DecodeState:
        if len(sources) <= self.max_sources:
            return self._part(sources, n_beams)
        return PartedState(lambda part: self._part(part, n_beams), sources, self.max_sources)

    def lacks_device_search(self) -> str | None:
        return unfit_for_search(self.engines.graphs["decoder_step"])

    def device_search(self, mode: Mode) -> DeviceSearcher:
        return DeviceSearcher(EnginePlaces(self.engines, self._search_device()), mode)

    def _part(self, sources: Sequence[Sequence[int]], n_beams: int) -> EngineState:
        return EngineState(self.engines, [list(source) for source in sources], n_beams)


def unavailable(flavour: str) -> str | None:
    """Why this flavour can't work on this machine. Looks for the package and the GPU first: importing takes seconds."""
    found = importlib.util.find_spec(libraries.MODULES[flavour])
    if found is None or found.origin is None:  # a folder that happens to have its name is no library
        return f"{libraries.NAMES[flavour]} is not installed; {libraries.INSTALL[flavour]}"
    return driver.unavailable() or libraries.unavailable(flavour)


def unfit(flavour: str, bundle: Bundle, target: str | None) -> str | None:
    """Why the bundle can't run on this flavour: no engine for it, several, or none of that target."""
    found = _targets(flavour, bundle)
    if target is not None and target in found:
        return None
    if target is not None:
        return f"the bundle has no {flavour} engine for target '{target}' ({_what(found)}); {_build(bundle, target)}"
    if not found:
        return f"the bundle has no {flavour} engine; {_build(bundle, 'TARGET')} (see s2s build --list)"
    if len(found) > 1:
        return f"the bundle has several {flavour} engines ({', '.join(found)}); choose one with --target"
    return None


def open_backend(name: str, flavour: str, bundle: Bundle, target: str | None) -> TensorRTBackend:
    chosen = target or _targets(flavour, bundle)[0]
    folder = bundle.path / "engines" / chosen
    if not folder.is_dir():
        raise EngineError(f"{folder}: no such engine; {_build(bundle, chosen)}")
    return TensorRTBackend(name, bundle, folder, libraries.load(flavour), driver.device())


def _targets(flavour: str, bundle: Bundle) -> list[str]:
    """Targets of the bundle's engines of this flavour. A damaged engine.json is one of them: opening it says so."""
    found = []
    for file in sorted((bundle.path / "engines").glob("[!.]*/engine.json")):
        try:
            is_ours = json.loads(file.read_bytes())["flavour"] == flavour
        except (OSError, ValueError, KeyError, TypeError):
            is_ours = True
        if is_ours:
            found.append(file.parent.name)
    return found


def _what(found: list[str]) -> str:
    return f"it has {', '.join(found)}" if found else "it has none"


def _build(bundle: Bundle, target: str) -> str:
    return f"run: s2s build {bundle.path} --target {target}"
