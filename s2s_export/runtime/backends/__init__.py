"""Backends, which execute a bundle's graphs. Each is one file, which imports its library only when it is used.

A backend's file holds `BACKEND`, a `Declaration` of its name, its place in the order of preference, the engines that it
runs and how it is opened (_declaration.py). It is found by listing this directory; files that begin with an underscore
are what several share. A backend whose search can run where its graphs run offers that too (`SearchesItself`);
`searching.py` chooses.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

from ... import recipes
from ...bundle import Bundle
from ...engines import PORTABLE, folder_of, names, read, targets_of
from ...errors import BackendUnavailable, UnknownOption, nearest
from ..decoding import GenerationOptions, Hypothesis
from ..decoding.state import DecodeState
from ..sources import Source
from ._declaration import Declaration as Declaration

AUTO = "auto"


class Backend(Protocol):
    """An open bundle, ready to decode. Safe to use from several threads.

    target: of the engine that runs; None for the bundle's own graphs.
    """

    name: str
    target: str | None

    def begin(self, sources: Sequence[Source], n_beams: int) -> DecodeState:
        """Encode `sources`, as their kind checked them, and be ready for their first step with `n_beams` beams."""
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
        sources: Sequence[Source],
        options: GenerationOptions,
        *,
        alignments: bool | str = False,
        source_numbers: Sequence[int] | None = None,
    ) -> list[list[Hypothesis]]:
        """As `decoding.decode`."""
        ...

    def stream(self, source: Source, options: GenerationOptions) -> Iterator[list[int]]:
        """As `decoding.decode_stream`."""
        ...

    def warm_up(
        self,
        sources: Sequence[Source],
        options: GenerationOptions,
        *,
        streams: bool = False,
        alignments: bool = False,
    ) -> None:
        """Set up now what the first batch of this shape with these options would set up."""
        ...

    def release(self) -> None:
        """Give back what is kept for later batches."""
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


def declared() -> dict[str, Declaration]:
    """Every backend by the name that users give."""
    found: list[Declaration] = [module.BACKEND for module in _modules(tuple(__path__))]
    return {backend.name: backend for backend in found}


@lru_cache(maxsize=2)
def _modules(folders: tuple[str, ...]) -> list[Any]:
    files = [info.name for info in pkgutil.iter_modules(folders) if not info.name.startswith("_")]
    return [importlib.import_module(f"{__name__}.{name}") for name in files]


def by_preference() -> list[Declaration]:
    """Those that `auto` tries, best first. Each must both work on the machine and find what it needs in the bundle."""
    ranked = [(backend.preference, backend) for backend in declared().values() if backend.preference is not None]
    return [backend for _, backend in sorted(ranked, key=lambda pair: pair[0])]


def of_flavour(flavour: str) -> Declaration | None:
    """The backend that runs engines of a flavour, the preferred one where several do."""
    fitting = [backend for backend in (*by_preference(), *declared().values()) if flavour in backend.flavours]
    return fitting[0] if fitting else None


def passed_over(bundle: Bundle, taken: str) -> list[str]:
    """Why `auto` took no backend that it prefers to the one taken, for those that work on this machine.

    One for which nothing was built is named only where a CPU was taken instead.
    """
    found = []
    for backend in by_preference():
        if backend.name == taken:
            break
        reason = backend.incompatible_reason(bundle, None) if backend.unavailable() is None else None
        if reason and (targets_of(bundle, backend.flavours) or declared()[taken].computes_on_cores):
            found.append(f"{backend.name}: {reason}")
    return found


def open_backend(bundle: Bundle, name: str = AUTO, target: str | None = None, threads: int | None = None) -> Backend:
    """Open `bundle` on a backend; `auto` takes the first of `by_preference` that works here."""
    known = declared()
    if name != AUTO and name not in known:
        raise UnknownOption(name, [AUTO, *known], "backend")
    if name == AUTO and target is not None and target not in (PORTABLE, *names(bundle)):
        raise BackendUnavailable(_not_built(bundle, target))
    reasons: list[str] = []
    reasons_built: list[str] = []
    for backend in _may_run(bundle, target) if name == AUTO else [known[name]]:
        reason = backend.unavailable() or backend.incompatible_reason(bundle, target)
        if reason is None:
            return backend.open(bundle, target, threads)
        said = reasons_built if targets_of(bundle, backend.flavours) else reasons
        said.append(f"{backend.name}: {reason}")
    # Why an engine that was built can't run matters most; then why the one that works everywhere, tried last, doesn't.
    raise BackendUnavailable("; ".join(reasons_built + reasons[::-1]))


def _may_run(bundle: Bundle, target: str | None) -> list[Declaration]:
    """Those that `auto` tries, best first: of a target that was built, the backends that run such engines."""
    if target is None or target == PORTABLE or target not in names(bundle):
        return by_preference()
    flavour = read(folder_of(bundle, target))["flavour"]
    fitting = [backend for backend in by_preference() if flavour in backend.flavours]
    return fitting or by_preference()


def _not_built(bundle: Bundle, target: str) -> str:
    """What to say of a target for which the bundle has no engine of any flavour."""
    run = f"run: s2s build {bundle.path} --target {target}" if target in recipes.names() else "see: s2s build --list"
    return f"the bundle has no engine for target '{target}'{nearest(target, [PORTABLE, *names(bundle)])}; {run}"
