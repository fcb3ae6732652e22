"""Who is measured: one file a system, found by listing this directory.

A contestant's module defines

    NAME                        as --peers says it, or "s2s" for ourselves
    entries(bundle, choice)     its entries in the race: a system may run at several precisions. Called in the parent
                                process; imports nothing heavy
    environment(folder)         optional: variables that the process of `open` starts with; `folder` is prepared
    prepare(job, folder)        optional: make in `folder` what `open` reads (a conversion). Runs and is timed in a
                                process of its own, so that it does not count as the contestant's memory
    open(job, folder) -> System in the worker process. Raises Absent with the reason when it can't run here

`import`s of the system itself are inside functions: a contestant that is not installed costs nothing.
"""

from __future__ import annotations

import importlib
import pkgutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Protocol

from ..work import Ids

OURS = "s2s"


class Absent(Exception):
    """Why a contestant can't run here, in one sentence."""


@dataclass(frozen=True)
class Entry:
    """One line of the table. weight_bytes: bytes a weight is stored in, by which the bandwidth floor is found.

    options: what only its module understands, JSON-able. reason: why it can't run, when that is known without trying.
    build_seconds: what its engine took to build, when that happened before.
    """

    contestant: str
    label: str
    precision: str
    weight_bytes: float
    options: dict[str, Any] = field(default_factory=dict)
    reason: str | None = None
    build_seconds: float | None = None


@dataclass(frozen=True)
class Choice:
    """What the user asked for: backends, targets and searches of ours (None: all there are), and where all run.

    searches: as `s2s_export.load` takes them; only on a GPU is there more than one.
    """

    backends: tuple[str, ...] | None = None
    targets: tuple[str, ...] | None = None
    device: str = "cpu"
    searches: tuple[str, ...] | None = None

    @property
    def reason_if_for_cpus(self) -> str | None:
        """Why a contestant that is measured on CPUs only takes no part."""
        return None if self.device == "cpu" else "measured on CPUs only"


@dataclass(frozen=True)
class Job:
    """What a worker opens. Paths as text, JSON-able."""

    contestant: str
    bundle: str
    checkpoint: str | None
    threads: int
    options: dict[str, Any]

    def need_checkpoint(self) -> str:
        if self.checkpoint is None:
            raise Absent("needs the checkpoint that the bundle was exported from: --checkpoint DIR")
        return self.checkpoint


class Marks:
    """Moments inside one call, written by the contestant's hooks: seconds of `time.perf_counter`."""

    def __init__(self) -> None:
        self.encoder_seconds: float | None = None
        self.steps: list[float] = []  # when each decoder step began

    def clear(self) -> None:
        self.encoder_seconds = None
        self.steps.clear()

    def step(self) -> None:
        self.steps.append(time.perf_counter())

    def encoder(self, seconds: float) -> None:
        self.encoder_seconds = (self.encoder_seconds or 0.0) + seconds


class System(Protocol):
    """An opened contestant. `marks` stays empty for a system that can't be looked into."""

    versions: dict[str, str]
    marks: Marks

    def decode(self, sources: Sequence[Ids], num_beams: int, new_tokens: int) -> list[Ids]:
        """The best hypothesis of each source, decoded as one batch: `new_tokens` ids, decoder prompt left out."""
        ...

    def translate(
        self, sources: Sequence[Ids], num_beams: int, max_new_tokens: int, setting: dict[str, Any]
    ) -> list[Ids]:
        """Sources of mixed lengths, outputs that end where they end, scheduled the system's own way."""
        ...


def modules() -> dict[str, ModuleType]:
    found = [
        importlib.import_module(f"{__name__}.{i.name}") for i in pkgutil.iter_modules(__path__) if i.name[0] != "_"
    ]
    return {module.NAME: module for module in found}


def peers() -> list[str]:
    return sorted(name for name in modules() if name != OURS)


def without_prompt(row: Sequence[int], n_prompt: int, new_tokens: int) -> Ids:
    return [int(i) for i in row[n_prompt : n_prompt + new_tokens]]


def until_end(row: Sequence[int], n_prompt: int, ends: set[int]) -> Ids:
    """The generated ids of a row up to its end token, that left out."""
    ids: Ids = []
    for i in row[n_prompt:]:
        if int(i) in ends:
            break
        ids.append(int(i))
    return ids
