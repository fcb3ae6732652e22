"""Round-robin timing: every contestant does a piece of work once, then all do it again.

All contestants with the same number of threads are open at the same time, each in its process; one works at a time.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from ...bundle import Bundle
from . import noise
from .contestants import Absent, Entry, Job, modules
from .remote import WORKER, Worker
from .work import Ids, Work, random_sources

REST = 0.02  # seconds between two contestants, in which the thread pools of the last one stop spinning
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """The settings of a run, apart from the work. pythons: interpreters of peers, by name."""

    bundle: Bundle
    checkpoint: str | None
    repeats: int
    pythons: dict[str, str] = field(default_factory=dict)


class Racer:
    """An entry and its state. `reason` is set once it can't continue.

    found: the modules of the systems, of which one is the entry's. worker: the module that its process runs.
    """

    def __init__(
        self,
        entry: Entry,
        settings: Settings,
        threads: int,
        found: Mapping[str, ModuleType] | None = None,
        worker: str = WORKER,
    ) -> None:
        self.entry = entry
        self._module = (modules() if found is None else found)[entry.contestant]
        self._runs = worker
        self.threads = threads
        self.reason = entry.reason
        self.opened: dict[str, Any] = {}
        self.build_seconds = entry.build_seconds
        self.python = settings.pythons.get(entry.contestant)
        self.worker: Worker | None = None
        self._job = Job(entry.contestant, str(settings.bundle.path), settings.checkpoint, threads, entry.options)

    def prepare(self, folder: Path) -> None:
        """Write what the contestant reads into `folder`, once."""
        if self.reason is not None or not hasattr(self._module, "prepare"):
            return
        try:
            with Worker(self.threads, self.python, module=self._runs) as worker:
                answer = worker.ask("prepare", job=asdict(self._job), folder=str(folder))
                self.build_seconds = answer["seconds"]
        except Absent as reason:
            self.reason = str(reason)

    def open(self, folder: Path, **options: Any) -> None:
        """Start the process and load. options: for the contestant, in addition to those of the entry."""
        if self.reason is not None:
            return
        job = asdict(self._job)
        job["threads"] = options.pop("threads", self.threads)
        job["options"] = {**job["options"], **options}
        environment: Callable[[str], dict[str, str]] = getattr(self._module, "environment", lambda folder: {})
        try:
            self.worker = Worker(job["threads"], self.python, environment(str(folder)), self._runs)
            self.opened = self.worker.ask("open", job=job, folder=str(folder))
        except Absent as reason:
            self.fail(reason)

    def ask(self, do: str, **request: Any) -> dict[str, Any] | None:
        """The answer, or None if the contestant failed, before or now."""
        if self.worker is None:
            return None
        time.sleep(REST)
        try:
            return self.worker.ask(do, **request)
        except Absent as reason:
            self.fail(reason)
            return None

    def fail(self, reason: Absent) -> None:
        self.reason = str(reason)
        self.close()

    def close(self) -> None:
        if self.worker:
            self.worker.close()
            self.worker = None

    def record(self) -> dict[str, Any]:
        return {
            "label": self.entry.label,
            "contestant": self.entry.contestant,
            "precision": self.entry.precision,
            "weight_bytes": self.entry.weight_bytes,
            "threads": self.threads,
            "build_seconds": self.build_seconds,
            "load_seconds": self.opened.get("seconds"),
            "load_memory": self.opened.get("memory"),
            "versions": self.opened.get("versions"),
            "reason": self.reason,
        }


def race(
    settings: Settings,
    entries: Sequence[Entry],
    works: Sequence[Work],
    threads: int,
    progress: Progress,
    done: Callable[[list[Racer], list[dict[str, Any]]], None],
) -> None:
    """Every entry over all work with `threads` threads. done: called after each piece of work, with the state of each
    entry and its result for this work.
    """
    racers = [Racer(entry, settings, threads) for entry in entries]
    with ExitStack() as stack:
        for number, racer in enumerate(racers):
            folder = prepared_folder(stack, number)
            progress(f"{racer.entry.label}: prepare")
            racer.prepare(folder)
            progress(f"{racer.entry.label}: load")
            stack.callback(racer.close)
            racer.open(folder)
        for work in works:
            done(racers, _over(settings, racers, work, threads, progress))


def prepared_folder(stack: ExitStack, number: int) -> Path:
    folder = Path(tempfile.mkdtemp(prefix=f"s2s-bench-{number}-"))
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _over(
    settings: Settings, racers: list[Racer], work: Work, threads: int, progress: Progress
) -> list[dict[str, Any]]:
    if not any(racer.worker for racer in racers):
        return []
    sources = random_sources(settings.bundle, work.batch_size, work.source_length)
    request = {"sources": sources, "num_beams": work.num_beams, "new_tokens": work.new_tokens}
    calls: dict[int, list[dict[str, Any]]] = {}
    tokens: dict[int, list[Ids]] = {}
    warm_up: dict[int, float] = {}
    for number, racer in enumerate(racers):
        progress(f"{work.label}: warm up {racer.entry.label}")
        started = time.perf_counter()
        if answer := racer.ask("work", **request, with_tokens=True):
            tokens[number] = answer["tokens"]
            warm_up[number] = time.perf_counter() - started
    start = noise.Moment.now()
    for repeat in range(settings.repeats):
        progress(f"{work.label}: round {repeat + 1} of {settings.repeats}")
        for number, racer in enumerate(racers):
            if answer := racer.ask("work", **request, with_tokens=False):
                calls.setdefault(number, []).append(answer)
    own_cpu = sum(call["cpu"] * (1 + call["first"] / call["wall"]) for made in calls.values() for call in made)
    around = noise.since(start, own_cpu, _cores())
    found = []
    for number, racer in enumerate(racers):
        made = calls.get(number, [])
        if len(made) == settings.repeats:
            extra = {"tokens": tokens[number], "warm_up_seconds": warm_up[number], "around": around}
            found.append({"label": racer.entry.label, "threads": threads, **work.record(), "calls": made, **extra})
    return found


def _cores() -> int:
    from ...runtime.cores import available_cores

    return available_cores()
