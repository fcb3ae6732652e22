"""Ourselves: the portable graphs and every built target, on every backend that works here."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from ... import backends
from ...bundle import Bundle, engines
from ...decoding.state import DecodeState, Ints, StepQuery, StepResult
from ...errors import S2SError, UnknownOption
from ..work import NEUTRAL, Ids, end_id
from . import OURS, Absent, Choice, Entry, Job, Marks, until_end, without_prompt

NAME = OURS
WEIGHT_BYTES = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0, "int8": 1.0, "fp8": 1.0}
# Which backend runs the engine of a target's flavour, and which run the bundle's graphs as they are.
BACKEND_OF_FLAVOUR = {
    "cpu": "onnxruntime", "cuda": "onnxruntime-cuda", "tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt-rtx",
}  # fmt: skip
RUN_PORTABLE_GRAPHS = ("onnxruntime", "onnxruntime-cuda")
PORTABLE = "portable"  # a target's name that stands for the bundle's graphs as they are
SHORTLIST = "shortlist"  # the suffix of a label


def entries(bundle: Bundle, choice: Choice) -> list[Entry]:
    known = backends.modules()
    built = engines(bundle)
    for name in choice.backends or ():
        if name not in known:
            raise UnknownOption(name, known, "backend")
    found = []
    for name in choice.backends or known:
        targets = [PORTABLE] if name in RUN_PORTABLE_GRAPHS else []
        targets += [target for target, engine in built.items() if _backend(engine) == name]
        reason = known[name].unavailable()
        if not targets and (choice.targets is None or reason):
            found.append(_absent(name, reason or "no engine of it in the bundle; see `s2s build`"))
        for target in targets:
            if choice.targets is None or target in choice.targets:
                found += _entries_of(bundle, name, target, built.get(target), reason)
    missing = [t for t in choice.targets or () if t != PORTABLE and t not in built]
    return found + [_absent(t, f"not built: s2s build {bundle.path} --target {t}") for t in missing]


def _entries_of(
    bundle: Bundle, backend: str, target: str, engine: dict[str, Any] | None, reason: str | None
) -> list[Entry]:
    precision = engine["precision"] if engine else bundle.manifest["precision"]
    label = f"s2s {target}" if engine else f"s2s {backend} portable"
    entry = Entry(
        NAME,
        label,
        precision,
        WEIGHT_BYTES.get(precision, 4.0),
        {"backend": backend, "target": target},
        reason,
        engine.get("seconds") if engine else None,
    )
    return [entry]


def _backend(engine: dict[str, Any]) -> str:
    return str(engine.get("backend") or BACKEND_OF_FLAVOUR.get(engine.get("flavour", ""), ""))


def _absent(name: str, reason: str) -> Entry:
    return Entry(NAME, f"s2s {name}", "", 0.0, {}, reason)


def open(job: Job, folder: str) -> Ours:
    from ...runtime import load

    options = dict(job.options)
    backend, target = options.pop("backend"), options.pop("target")
    try:
        # The hashes were compared when the run began; a service that loads a bundle it trusts does not do it either.
        session = load(job.bundle, backend, target, job.threads, verify=False, **options)
    except S2SError as error:
        raise Absent(str(error)) from error
    return Ours(session)


class Ours:
    def __init__(self, session: Any) -> None:
        from ... import __version__

        self.versions = {"s2s-export": __version__, **_library(session.backend.name)}
        self.marks = Marks()
        self.session = session
        self._ends = end_id(session.bundle)
        session.backend = TimedBackend(session.backend, self.marks)

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
        scheduling = {name: value for name, value in setting.items() if name != "threads"}
        found = session.decode([list(source) for source in sources], options, **scheduling)
        ends = set(options.eos_token_id)
        return [until_end(best[0].token_ids, len(options.prompt), ends) for best in found]


def settings(cores: int) -> list[dict[str, Any]]:
    """Ways to translate a file, of which the fastest is taken."""
    found = [{"threads": 1, "batch_size": size} for size in (8, 16, 32)]
    if cores > 1:
        found += [{"threads": cores, "batch_size": size} for size in (16, 32, 64)]
    return found


def _library(backend: str) -> dict[str, str]:
    if backend.startswith("onnxruntime"):
        import onnxruntime

        return {"onnxruntime": onnxruntime.__version__}
    return {}


class TimedBackend:
    """A backend that marks when sources were encoded and when each decoder step began."""

    def __init__(self, backend: Any, marks: Marks) -> None:
        self._backend = backend
        self._marks = marks

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def begin(self, *arguments: Any, **options: Any) -> TimedState:
        started = time.perf_counter()
        state = self._backend.begin(*arguments, **options)
        self._marks.encoder(time.perf_counter() - started)
        return TimedState(state, self._marks)


class TimedState:
    """A decode state that marks when each of its steps begins."""

    def __init__(self, state: DecodeState, marks: Marks) -> None:
        self._state = state
        self._marks = marks

    def __getattr__(self, name: str) -> Any:
        return getattr(self._state, name)

    def step(self, tokens: Ints, parents: Ints, query: StepQuery) -> StepResult:
        self._marks.step()
        return self._state.step(tokens, parents, query)
