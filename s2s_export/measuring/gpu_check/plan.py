"""The parts of a check in their order: first what every other result rests on, then the numbers that matter most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

OK, FAILED, SKIPPED, UNFINISHED = "ok", "failed", "skipped", "unfinished"  # states of a part


@dataclass(frozen=True)
class Model:
    """What is measured. checkpoint: what the bundle is exported from and other systems read; None for a user's."""

    name: str
    bundle: Path
    checkpoint: Path | None = None


@dataclass(frozen=True)
class Part:
    """function: of parts.py, called with `arguments`, which are JSON-able. minutes: after which it is stopped.
    needs: a part without whose success this one is skipped.
    """

    name: str
    function: str
    arguments: dict[str, Any] = field(default_factory=dict)
    minutes: float = 5.0
    needs: str | None = None


def random_models(folder: Path) -> list[Model]:
    return [Model(name, folder / f"{name}.bundle", folder / name) for name in ("opus-mt", "t5-small")]


def parts(models: Sequence[Model], targets: Sequence[str], capability: str, folder: Path, *, quick: bool) -> list[Part]:
    """folder: where results go, for tools that write files of their own."""
    found = [Part(name, name, {"quick": quick}) for name in ("search", "rules")]
    for number, model in enumerate(models):
        found += _of_model(model, targets, capability, quick)
        if number == 0:
            found += [Part(name, name, {"quick": quick}) for name in ("kernels", "attention")]
    return [*found, Part("sanitizers", "sanitizers", {"folder": str(folder / "parts")}, minutes=8.0)]


def _of_model(model: Model, targets: Sequence[str], capability: str, quick: bool) -> list[Part]:
    name, at = model.name, {"bundle": str(model.bundle)}
    found, exported = [], None
    if model.checkpoint is not None:
        exported = f"{name}: export"
        arguments = {**at, "name": name, "checkpoint": str(model.checkpoint), "quick": quick}
        found.append(Part(exported, "export", arguments))
    for target in targets:
        built = f"{name}: build {target}"
        arguments = {**at, "target": target, "capability": capability}
        found.append(Part(built, "build", arguments, needs=exported))
        arguments = {**at, "target": target, "quick": quick}
        found.append(Part(f"{name}: tokens {target}", "tokens", arguments, needs=built))
    race = {**at, "targets": list(targets), "quick": quick}
    found.append(Part(f"{name}: steps", "steps", race, needs=exported))
    checkpoint = str(model.checkpoint) if model.checkpoint else None
    found.append(Part(f"{name}: speed", "speed", {**race, "checkpoint": checkpoint}, minutes=9.0, needs=exported))
    return found
