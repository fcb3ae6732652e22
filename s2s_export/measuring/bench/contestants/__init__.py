"""The systems that are measured: one file for each, found by listing this directory.

A contestant's module defines

    NAME                        its name for --peers, or "s2s" for this project
    entries(bundle, choice)     its entries, which may be several (of different precisions). Called in the parent
                                process; must not import anything large
    environment(folder)         optional: environment variables for the process of `open`; `folder` has been prepared
    prepare(job, folder)        optional: write into `folder` what `open` reads (a conversion). It runs and is timed in
                                a process of its own, so that its memory does not count
    WHY_TOKENS_DIFFER           optional: what is known of why its tokens in fp32 may be others than generate()'s
    open(job, folder) -> System in the worker process. Raises Absent with the reason if it can't run here

The system itself is imported inside functions, so that it need not be installed.
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
    """A contestant can't run here; the message is one sentence with the reason."""


@dataclass(frozen=True)
class Entry:
    """One line of the table. weight_bytes: bytes in which a weight is stored, which determine the floor.

    options: for its own module, as JSON values. reason: why it can't run, if that is known without trying.
    build_seconds: how long its engine took to build, if it was built earlier.
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
    """What the user asked for: our backends, targets and searches (None: all), and the device on which all systems run.

    searches: as for `s2s_export.load`; there are several on a GPU only.
    """

    backends: tuple[str, ...] | None = None
    targets: tuple[str, ...] | None = None
    device: str = "cpu"
    searches: tuple[str, ...] | None = None

    @property
    def reason_if_for_cpus(self) -> str | None:
        """Why a contestant that is measured on CPUs only is left out, or None."""
        return None if self.device == "cpu" else "measured on CPUs only"


@dataclass(frozen=True)
class Job:
    """What a worker opens, as JSON values; paths are text."""

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
    """Times of events inside one call, recorded by the contestant's hooks, in seconds of `time.perf_counter`."""

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
    """An opened contestant. `marks` stays empty for a system without hooks."""

    versions: dict[str, str]
    marks: Marks

    def decode(self, sources: Sequence[Ids], num_beams: int, new_tokens: int) -> list[Ids]:
        """The best hypothesis of each source, decoded as one batch: `new_tokens` ids without the decoder prompt."""
        ...

    def translate(
        self, sources: Sequence[Ids], num_beams: int, max_new_tokens: int, setting: dict[str, Any]
    ) -> list[Ids]:
        """Decode sources of mixed lengths until their end tokens, scheduled in the system's own way."""
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
    """The generated ids of a row before its end token."""
    ids: Ids = []
    for i in row[n_prompt:]:
        if int(i) in ends:
            break
        ids.append(int(i))
    return ids
