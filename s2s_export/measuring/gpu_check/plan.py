"""The parts of a check in order: first those on which all others depend, then the most important numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

OK, FAILED, SKIPPED, UNFINISHED = "ok", "failed", "skipped", "unfinished"  # states of a part


@dataclass(frozen=True)
class Model:
    """A model to measure. checkpoint: from which the bundle is exported, and for other systems; None for a user's."""

    name: str
    bundle: Path
    checkpoint: Path | None = None


@dataclass(frozen=True)
class Part:
    """function: a name in parts.py, called with `arguments`, which are JSON values. minutes: after which it is stopped.
    needs: the part that must have succeeded, or this one is skipped.
    """

    name: str
    function: str
    arguments: dict[str, Any] = field(default_factory=dict)
    minutes: float = 2.5
    needs: str | None = None


def random_models(folder: Path) -> list[Model]:
    return [Model(name, folder / f"{name}.bundle", folder / name) for name in ("opus-mt", "t5-small")]


def parts(models: Sequence[Model], targets: Sequence[str], capability: str, folder: Path, *, quick: bool) -> list[Part]:
    """All parts of a check. folder: for tools that write files of their own."""
    found = [Part("search", "search", {"quick": quick})]
    for number, model in enumerate(models):
        found += _of_model(model, targets, capability, quick)
        if number == 0:
            found += [Part(name, name, {"quick": quick}) for name in ("rules", "attention", "kernels")]
    return [*found, Part("sanitizers", "sanitizers", {"folder": str(folder / "parts")}, minutes=8.0)]


def only(parts: Sequence[Part], words: Sequence[str]) -> list[Part]:
    """The parts whose names, after that of the model, have one of the words, and the parts that they need."""
    found: list[Part] = []
    for part in reversed(parts):
        word = part.name.rpartition(": ")[2].partition(" ")[0]
        if word in words or any(one.needs == part.name for one in found):
            found.append(part)
    return found[::-1]


def _of_model(model: Model, targets: Sequence[str], capability: str, quick: bool) -> list[Part]:
    name, at = model.name, {"bundle": str(model.bundle)}
    found, exported = [], None
    if model.checkpoint is not None:
        exported = f"{name}: export"
        arguments = {**at, "name": name, "checkpoint": str(model.checkpoint), "quick": quick}
        found.append(Part(exported, "export", arguments))
    checkpoint = str(model.checkpoint) if model.checkpoint else None
    arguments = {**at, "checkpoint": checkpoint, "quick": quick}
    found.append(Part(f"{name}: torch steps", "torch_steps", arguments, needs=exported))
    found.append(Part(f"{name}: onnxruntime steps", "onnxruntime_steps", {**at, "quick": quick}, needs=exported))
    found.append(Part(f"{name}: native", "native", {**at, "quick": quick}, needs=exported))
    for target in targets:
        built = f"{name}: build {target}"
        arguments = {**at, "target": target, "capability": capability}
        found.append(Part(built, "build", arguments, needs=exported))
        arguments = {**at, "target": target, "quick": quick}
        found.append(Part(f"{name}: tokens {target}", "tokens", arguments, needs=built))
    race = {**at, "targets": list(targets), "quick": quick}
    found.append(Part(f"{name}: steps", "steps", race, needs=exported))
    found.append(Part(f"{name}: speed", "speed", {**race, "checkpoint": checkpoint}, minutes=9.0, needs=exported))
    return found
