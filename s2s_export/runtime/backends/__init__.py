"""What executes a bundle's graphs: one file a backend, its library imported inside.

A backend module defines

    NAME                 as the command line says it
    unavailable()        why it can't work on this machine, in one sentence, or None
    open(bundle, target, threads) -> Backend
    SEARCH               where the search runs, of a backend that has a device (optional)

and is found by listing this directory. A backend whose search can run where its graphs run offers that too
(`SearchesItself`); `searching.py` chooses.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Protocol, runtime_checkable

from ...bundle import Bundle
from ...errors import BackendUnavailable, UnknownOption
from ..decoding import GenerationOptions, Hypothesis
from ..decoding.state import DecodeState

AUTO = "auto"
# What `auto` tries, best first. Each must both work on the machine and find what it needs in the bundle.
PREFERENCE = ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda", "onnxruntime")


class Backend(Protocol):
    """An open bundle, ready to decode. Safe to use from several threads."""

    name: str

    def begin(self, sources: Sequence[Sequence[int]], n_beams: int) -> DecodeState:
        """Encode `sources` (token ids, each at least one) and be ready for their first step with `n_beams` beams."""
        ...


class Searcher(Protocol):
    """Decodes batches. Safe to use from several threads.

    where: "host" or "device". why: the reason in one sentence, where a backend's search runs on the host although its
    graphs run on a device; else empty.
    """

    where: str
    why: str

    def decode(
        self,
        sources: Sequence[Sequence[int]],
        options: GenerationOptions,
        *,
        alignments: bool | str = False,
        source_numbers: Sequence[int] | None = None,
    ) -> list[list[Hypothesis]]:
        """As `decoding.decode`."""
        ...

    def stream(self, source: Sequence[int], options: GenerationOptions) -> Iterator[list[int]]:
        """As `decoding.decode_stream`."""
        ...

    def warm_up(
        self,
        sources: Sequence[Sequence[int]],
        options: GenerationOptions,
        *,
        streams: bool = False,
        alignments: bool = False,
    ) -> None:
        """What the first batch of this shape and these options sets up, before there is one."""
        ...

    def release(self) -> None:
        """Gives back what is kept for batches to come."""
        ...


@runtime_checkable
class SearchesItself(Protocol):
    """A backend that decodes whole batches on its device."""

    def lacks_device_search(self) -> str | None:
        """Why this bundle's search can't run on the device, or None."""
        ...

    def device_search(self, mode: str) -> Searcher:
        """mode: of device_search/loop.py. Raises BackendUnavailable, or BuildError where the kernels can't be had."""
        ...


def modules() -> dict[str, ModuleType]:
    """Backend modules by the name that users give."""
    found = [
        importlib.import_module(f"{__name__}.{i.name}") for i in pkgutil.iter_modules(__path__) if i.name[0] != "_"
    ]
    return {module.NAME: module for module in found}


def open_backend(bundle: Bundle, name: str = AUTO, target: str | None = None, threads: int | None = None) -> Backend:
    """Open `bundle` on a backend; `auto` takes the first of PREFERENCE that works here."""
    known = modules()
    if name != AUTO and name not in known:
        raise UnknownOption(name, [AUTO, *known], "backend")
    candidates = [n for n in PREFERENCE if n in known] if name == AUTO else [name]
    reasons = []
    for candidate in candidates:
        module = known[candidate]
        reason = module.unavailable() or module.unfit(bundle, target)
        if reason is None:
            return module.open(bundle, target, threads)  # type: ignore[no-any-return]
        reasons.append(f"{candidate}: {reason}")
    raise BackendUnavailable("; ".join(reasons))
