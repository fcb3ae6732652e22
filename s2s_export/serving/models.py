"""What a server serves: bundles, by their names and by their language pairs."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InvalidOption, nearest
from ..runtime import cores
from ..runtime.scheduling import DEFAULT_BATCH_SIZE
from ..runtime.session import Session, load
from . import languages
from .batcher import MOST_WORKERS, Batcher
from .engine_process import WARM_UP_LENGTHS
from .failures import Refused
from .jobs import BatchReport
from .processes import CAN_HAVE_PROCESSES, Processes

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Named:
    """A bundle as it is given to `s2s serve`: PATH, or NAME=PATH."""

    name: str
    path: Path

    @classmethod
    def of(cls, argument: str) -> Named:
        name, separator, path = argument.partition("=")
        if not separator:
            name, path = Path(argument).resolve().name, argument
        if not NAME.fullmatch(name):
            raise InvalidOption(
                f"'{name}' can't be the name of a model; expected letters, digits, dots, dashes and underscores; "
                "write NAME=PATH"
            )
        return cls(name, Path(path))


class Model:
    """A bundle that is open, with its batcher and its languages."""

    def __init__(self, name: str, session: Session, batcher: Batcher | Processes) -> None:
        self.name = name
        self.session = session
        self.batcher = batcher
        self.transcribing: asyncio.Semaphore | None = None  # how many transcriptions may run; made in the event loop
        self.n_waiting_to_transcribe = 0
        self.languages = languages.OfModel(name, session)

    @property
    def is_text_to_text(self) -> bool:
        return self.session.has_tokenizer and self.session.kind.has_ids


class Models:
    """All that a server serves, in the order in which it was given."""

    def __init__(self, models: Sequence[Model]) -> None:
        self.by_name = {model.name: model for model in models}

    def __iter__(self) -> Iterator[Model]:
        return iter(self.by_name.values())

    @property
    def first(self) -> Model:
        return next(iter(self.by_name.values()))

    def named(self, name: str | None) -> Model:
        """The model of a name, the first one for None. Raises Refused."""
        if name is None:
            return self.first
        if name not in self.by_name:
            raise Refused(404, f"there is no model '{name}'{nearest(name, self.by_name)}", "model_not_found")
        return self.by_name[name]

    def sources(self) -> dict[str, list[str]]:
        """Each source language with the languages into which it is translated."""
        found: dict[str, list[str]] = {}
        for model in self:
            for source in model.languages.sources:
                into = found.setdefault(source, [])
                into += [target for target in model.languages.targets if target != source and target not in into]
        return found

    def for_pair(self, source: str, target: str) -> Model:
        """The first model that translates between two languages. Raises Refused."""
        reading = [model for model in self if languages.base(source) in model.languages.sources]
        if not reading:
            raise Refused(400, f"{source} is not supported")
        for model in reading:
            if languages.base(target) in model.languages.targets:
                return model
        raise Refused(400, f"{target} is not supported")

    def close(self, timeout: float | None) -> None:
        for model in self:
            model.batcher.close(timeout)


def open_models(
    bundles: Sequence[str],
    *,
    workers: int | None = None,
    most_workers: int = MOST_WORKERS,
    batch_size: int | None = None,
    max_entries: int = 4096,
    max_tokens: int = 65536,
    max_wait: float | None = None,
    join: bool | None = None,
    on_batch: Callable[[str, BatchReport], None] | None = None,
    progress: Callable[[str], None] = lambda text: None,
    **loading: Any,
) -> Models:
    """Open bundles, warm them up and start their workers.

    workers, batch_size, max_entries, max_tokens, max_wait, join: of `Batcher`; without a number, on CPUs, a worker for
    each core. most_workers: of one process; with more workers on CPUs, all are in processes of their own.
    loading: of `load`, such as `backend`. progress: told what happens, a line each.
    Raises what `load` raises, and InvalidOption.
    """
    named = [Named.of(bundle) for bundle in bundles]
    names = [each.name for each in named]
    if twice := {name for name in names if names.count(name) > 1}:
        raise InvalidOption(f"two bundles have the name '{min(twice)}'; expected different ones; write NAME=PATH")
    found = []
    for each in named:
        progress(f"{each.name}: loading {each.path}")
        loading = {"threads": 1, **loading}  # one thread for each worker
        session = load(each.path, **loading)
        if not session.kind.has_ids and session.speech is None:
            raise InvalidOption(
                f"{each.path}: its model reads '{session.kind.name}', which this server does not take; serve bundles "
                "that read text, or Whisper, and use s2s read for pictures or s2s transcribe for sound"
            )
        sizes: dict[str, Any] = {
            "batch_size": batch_size or DEFAULT_BATCH_SIZE, "max_entries": max_entries, "max_tokens": max_tokens,
            "max_wait": max_wait, "join": join, "on_batch": _named(on_batch, each.name),
        }  # fmt: skip
        n = workers or (cores.available_cores() if session.computes_on_cores else 1)
        if workers is None and not CAN_HAVE_PROCESSES:
            n = min(n, most_workers)
        batcher: Batcher | Processes
        if n > most_workers and session.computes_on_cores:
            progress(f"{each.name}: starting {-(-n // most_workers)} processes for {n} workers")
            batcher = Processes(session, workers=n, most=most_workers, loading=loading, **sizes)
        else:
            progress(f"{each.name}: warming up on {session.backend.name}")
            limit = session.bundle.max_source_length or WARM_UP_LENGTHS[-1]
            session.warm_up([min(length, limit) for length in WARM_UP_LENGTHS])
            batcher = Batcher(session, workers=n, **sizes)
        if batcher.why_whole is not None:
            progress(f"{each.name}: batches are decoded whole, as {batcher.why_whole}")
        found.append(Model(each.name, session, batcher))
    return Models(found)


def _named(on_batch: Callable[[str, BatchReport], None] | None, name: str) -> Callable[[BatchReport], None] | None:
    return None if on_batch is None else lambda report: on_batch(name, report)
