"""This project: the portable graphs and every built target, on every backend that works here."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from ....bundle import Bundle
from ....engines import BYTES_OF, PORTABLE, bytes_of_weight, engines
from ....errors import S2SError, UnknownOption
from ....runtime import backends
from ....runtime.backends import Declaration
from ....runtime.decoding.state import DecodeState, Ints, StepQuery, StepResult
from ....runtime.native_graphs import library
from ....runtime.native_search import loop
from ....runtime.shortlist import state as shortlist
from ..work import NEUTRAL, Ids, end_id
from . import OURS, Absent, Choice, Entry, Job, Marks, until_end, without_prompt

NAME = OURS
SEARCHES = ("device", "host")  # where the search runs, on a GPU


def entries(bundle: Bundle, choice: Choice) -> list[Entry]:
    known = backends.declared()
    built = engines(bundle)
    for name in choice.backends or ():
        if name not in known:
            raise UnknownOption(name, known, "backend")
    found = []
    for name in choice.backends or [name for name, backend in known.items() if _takes_part(backend, choice)]:
        targets = [PORTABLE] if known[name].runs_portable_graphs else []
        targets += [target for target, engine in built.items() if engine["flavour"] in known[name].flavours]
        reason = known[name].unavailable()
        if not targets and (choice.targets is None or reason):
            found.append(_absent(name, reason or "no engine of it in the bundle; see `s2s build`"))
        for target in targets:
            if choice.targets is None or target in choice.targets:
                found += _entries_of(bundle, known[name], target, built.get(target), reason, choice)
    missing = [t for t in choice.targets or () if t != PORTABLE and t not in built]
    return found + [_absent(t, f"not built: s2s build {bundle.path} --target {t}") for t in missing]


def _takes_part(backend: Declaration, choice: Choice) -> bool:
    """Unasked: those that `auto` may take, and on a GPU those that compute there."""
    return backend.preference is not None and not (choice.device == "cuda" and backend.computes_on_cores)


def _entries_of(
    bundle: Bundle, backend: Declaration, target: str, engine: dict[str, Any] | None, reason: str | None, choice: Choice
) -> list[Entry]:
    precision = engine.get("precision", "fp32") if engine else bundle.manifest["precision"]
    label = f"s2s {target}" if backend.computes_on_cores or engine else f"s2s {backend.name} {target}"
    options = {"backend": backend.name, "target": target}
    bytes_ = bytes_of_weight(engine or {}) or BYTES_OF.get(precision, 4.0)
    seconds = engine.get("seconds") if engine else None
    if choice.device == "cuda":
        return [
            Entry(NAME, f"{label} {search}", precision, bytes_, {**options, "search": search}, reason, seconds)
            for search in choice.searches or SEARCHES
        ]
    found = [Entry(NAME, label, precision, bytes_, options, reason, seconds)]
    if target in _shortlist_targets(bundle) and backend.computes_on_cores:
        found.append(Entry(NAME, f"{label} shortlist", precision, bytes_, {**options, "shortlist": True}, reason))
    return found


def _shortlist_targets(bundle: Bundle) -> list[str]:
    """Targets for which the bundle has a shortlist."""
    folder = bundle.path / shortlist.FOLDER
    return list(shortlist.read_record(folder)["targets"]) if (folder / shortlist.RECORD).is_file() else []


def _absent(name: str, reason: str) -> Entry:
    return Entry(NAME, f"s2s {name}", "", 0.0, {}, reason)


def open(job: Job, folder: str) -> Ours:
    from ....runtime.session import load

    options = dict(job.options)
    backend, target = options.pop("backend"), options.pop("target")
    try:
        # The hashes were compared when the run began; a service that loads a bundle it trusts does not do it either.
        # Backends for GPUs run the bundle's own graphs when no target is named, and have no name for them.
        has_name = backends.declared()[backend].computes_on_cores
        target = None if target == PORTABLE and not has_name else target
        session = load(job.bundle, backend, target, job.threads, verify=False, **options)
    except S2SError as error:
        raise Absent(str(error)) from error
    return Ours(session)


class Ours:
    def __init__(self, session: Any) -> None:
        from ....version import __version__

        self.versions = {"s2s-export": __version__, **_library(session.backend.name), **_search(session)}
        self.marks = Marks()
        self.session = session
        self._ends = end_id(session.bundle)
        self._begin = session.begin
        session.begin = self._timed_begin

    def _timed_begin(self, *arguments: Any) -> DecodeState:
        started = time.perf_counter()
        state = self._begin(*arguments)
        self.marks.encoder(time.perf_counter() - started)
        # The loop in C++ makes all steps in one call, which a state around this one would prevent.
        return state if loop.serves(state) else TimedState(state, self.marks)

    def screened(self) -> tuple[int, int, int] | None:
        """As `library.screened`; None without our own operators."""
        operators = getattr(self.session.backend, "operators", None)
        return None if operators is None else library.screened(operators)

    def decode(self, sources: Sequence[Ids], num_beams: int, new_tokens: int) -> list[Ids]:
        session = self.session
        options = session.options(
            **{**NEUTRAL, "num_beams": num_beams, "min_new_tokens": new_tokens, "max_new_tokens": new_tokens}
        )
        found = session.decode([list(source) for source in sources], options, batch_size=len(sources))
        return [without_prompt(best[0].token_ids, len(options.prompt), new_tokens) for best in found]

    def translate(
        self, sources: Sequence[Ids], num_beams: int, max_new_tokens: int, setting: dict[str, Any]
    ) -> list[Ids]:
        session = self.session
        options = session.options(**{**NEUTRAL, "num_beams": num_beams, "max_new_tokens": max_new_tokens})
        found = session.decode([list(source) for source in sources], options, batch_size=setting["batch_size"])
        ends = set(options.eos_token_id)
        return [until_end(best[0].token_ids, len(options.prompt), ends) for best in found]


def settings(cores: int) -> list[dict[str, Any]]:
    """Settings to try for a file, of which the fastest is used."""
    shapes = sorted({(1, cores), (cores, 1)})
    return [
        {"threads": threads, "workers": workers, "batch_size": size}
        for threads, workers in shapes
        for size in (8, 16, 32)
    ]


def _library(backend: str) -> dict[str, str]:
    if backend.startswith("onnxruntime"):
        from ....runtime.backends.onnxruntime import installed_version

        return {"onnxruntime": installed_version()}  # which is imported where a graph needs it
    return {}


def _search(session: Any) -> dict[str, str]:
    """Which search of the host runs: C++, or numpy where it can't be had."""
    native = getattr(session.searcher, "native", None)
    return {} if native is None else {"search": "numpy" if native.why_python else "C++"}


class TimedState:
    """A decode state that records when each step begins."""

    def __init__(self, state: DecodeState, marks: Marks) -> None:
        self._state = state
        self._marks = marks

    def __getattr__(self, name: str) -> Any:
        return getattr(self._state, name)

    def step(self, tokens: Ints, parents: Ints, query: StepQuery) -> StepResult:
        self._marks.step()
        return self._state.step(tokens, parents, query)
