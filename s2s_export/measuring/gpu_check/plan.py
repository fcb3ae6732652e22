"""The parts of a check in order: first those on which all others depend, then the most important numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

MOST_USED_BEAMS, OTHER_BEAMS = 4, [1, 8]
# States of a part. Unfinished: the time that the whole check has was over; what was measured before is its result.
OK, FAILED, SKIPPED, UNFINISHED = "ok", "failed", "skipped", "unfinished"


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
    """All parts of a check. folder: for tools that write files of their own.

    A check ends after some minutes. So of the first model comes first whether kernels and tokens of the first target
    are right, then its speed beside others at the beams that most use, then what explains that speed; what ran on GPUs
    before, other models and targets follow, and the slowest tools are last.
    """
    found = [Part(name, name, {"quick": quick}) for name in ("search", "rules")]
    for number, model in enumerate(models):
        found += _of_model(model, targets[:1], capability, quick)
        if number == 0:
            found.append(
                Part(
                    "families",
                    "families",
                    {"folder": str(model.bundle.parent / "families"), "quick": quick},
                    minutes=3.0,
                )
            )
        found.append(_speed(model, f"{model.name}: speed", targets[:1], quick, beams=[MOST_USED_BEAMS]))
        if number == 0:
            found.append(Part("products", "products", {"quick": quick}))
            found += _compiled(model, targets[:1], quick)
            found += [Part(name, name, {"quick": quick}) for name in ("kernels", "attention")]
        found += _explained(model, targets[:1], quick)
    if targets[1:]:
        for model in models:
            found += _of_targets(model, targets[1:], capability, quick)
            found.append(_speed(model, f"{model.name}: speed of all targets", targets, quick))
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
    name, at, exported = model.name, {"bundle": str(model.bundle)}, _exported(model)
    found = []
    if exported is not None:
        arguments = {**at, "name": name, "checkpoint": str(model.checkpoint), "quick": quick}
        found.append(Part(exported, "export", arguments))
    # It may wait for its kernels to be compiled; they are, beside the parts before it.
    native = Part(f"{name}: native", "native", {**at, "quick": quick}, minutes=4.0, needs=exported)
    of_target = _of_targets(model, targets, capability, quick)
    return [*found, *of_target[:1], native, *of_target[1:]]


def _explained(model: Model, targets: Sequence[str], quick: bool) -> list[Part]:
    """A step by each way of repeating it, other numbers of beams, and steps by other libraries."""
    name, at, exported = model.name, {"bundle": str(model.bundle)}, _exported(model)
    arguments = {**at, "targets": list(targets), "quick": quick}
    found = [Part(f"{name}: steps", "steps", arguments, needs=exported)]
    if not quick:
        found.append(_speed(model, f"{name}: speed of other beams", targets, quick, beams=OTHER_BEAMS))
    arguments = {**at, "checkpoint": _checkpoint(model), "quick": quick}
    found.append(Part(f"{name}: torch steps", "torch_steps", arguments, needs=exported))
    return [*found, Part(f"{name}: onnxruntime steps", "onnxruntime_steps", {**at, "quick": quick}, needs=exported)]


def _compiled(model: Model, targets: Sequence[str], quick: bool) -> list[Part]:
    """torch.compile beside the first target, which takes it a minute or more to begin; of a checkpoint only."""
    if model.checkpoint is None:
        return []
    part = _speed(model, f"{model.name}: compiled", targets, quick, beams=[MOST_USED_BEAMS], peers=["torch-compile"])
    return [replace(part, minutes=3.0)]


def _of_targets(model: Model, targets: Sequence[str], capability: str, quick: bool) -> list[Part]:
    found = []
    for target in targets:
        at = {"bundle": str(model.bundle), "target": target}
        built = f"{model.name}: build {target}"
        found.append(Part(built, "build", {**at, "capability": capability}, needs=_exported(model)))
        found.append(Part(f"{model.name}: tokens {target}", "tokens", {**at, "quick": quick}, needs=built))
    return found


def _speed(model: Model, name: str, targets: Sequence[str], quick: bool, **more: Any) -> Part:
    arguments = {"bundle": str(model.bundle), "targets": list(targets), "quick": quick, **more}
    return Part(name, "speed", {**arguments, "checkpoint": _checkpoint(model)}, minutes=9.0, needs=_exported(model))


def _exported(model: Model) -> str | None:
    """The part that makes the model's bundle; None for a user's."""
    return None if model.checkpoint is None else f"{model.name}: export"


def _checkpoint(model: Model) -> str | None:
    return None if model.checkpoint is None else str(model.checkpoint)
