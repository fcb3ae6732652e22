"""What a backend declares about itself, so that no list of backends has to be kept elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...bundle import Bundle

if TYPE_CHECKING:
    from . import Backend

ON_THE_HOST = "on the host"


@dataclass(frozen=True)
class Declaration:
    """A backend's module holds one, named BACKEND.

    name: as the command line says it.
    preference: the place among those that `auto` tries, the smallest first; None for one that must be asked for.
    flavours: of engine.json, those that it runs.
    runs_portable_graphs: whether it runs the bundle's own graphs too.
    computes_on_cores: whether a call computes on the core of its thread, so that several workers get more done.
    search: where the search runs, for `s2s doctor`.
    unavailable: why it can't work on this machine, in one sentence, or None.
    incompatible_reason: why it can't run this bundle, or its engine of a target, or None. Raises EngineError where
        engine.json can't be read.
    open: bundle, target (None: the backend's choice) and threads of a call -> an open backend.
    broken: why what is installed fails when it is used, in one sentence, or None: what `unavailable` does not look at,
        as it takes time or memory. For `s2s doctor`.
    """

    name: str
    preference: int | None
    flavours: tuple[str, ...]
    runs_portable_graphs: bool
    computes_on_cores: bool
    unavailable: Callable[[], str | None]
    incompatible_reason: Callable[[Bundle, str | None], str | None]
    open: Callable[[Bundle, str | None, int | None], Backend]
    search: str = ON_THE_HOST
    broken: Callable[[], str | None] = lambda: None
