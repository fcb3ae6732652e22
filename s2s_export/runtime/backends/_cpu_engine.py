"""Which engine of a bundle ONNX Runtime runs on the CPU: found by target, checked against the bundle and the library.

`builders/cpu.py` writes these engines and says what is in engine.json.
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

from ...bundle import Bundle, engines, sha256
from ...errors import EngineError, nearest

PORTABLE = "portable"  # the target that is always there: the bundle's own graphs
DEFAULT = "cpu-fp32"  # used when it is built and no target is named: its numbers are those of the portable graphs
FLAVOUR = "cpu"


def unfit(bundle: Bundle, target: str | None) -> str | None:
    """Why a target can't be had, or None."""
    if target in (None, PORTABLE):
        return None
    built = engines(bundle)
    if target not in built:
        fitting = [PORTABLE, *(name for name, engine in built.items() if engine.get("flavour") == FLAVOUR)]
        return f"the bundle has no engine '{target}'{nearest(str(target), fitting)}; {_rebuild(bundle, str(target))}"
    if built[target].get("flavour") != FLAVOUR:
        return f"the engine '{target}' is one of flavour '{built[target].get('flavour')}'; expected '{FLAVOUR}'"
    return None


def choose(bundle: Bundle, target: str | None) -> tuple[dict[str, Any], Path] | None:
    """The engine of a target and its folder, None for the portable graphs. Raises EngineError for one that is stale."""
    if target == PORTABLE:
        return None
    name = target or DEFAULT
    engine = engines(bundle).get(name)
    if engine is None:
        return None
    folder = bundle.path / "engines" / name
    _check(bundle, name, engine, folder)
    return engine, folder


def _check(bundle: Bundle, name: str, engine: dict[str, Any], folder: Path) -> None:
    import onnxruntime

    if "made_from" not in engine or "graphs" not in engine:
        raise EngineError(f"{folder}: engine.json lacks what a CPU engine needs; {_rebuild(bundle, name)}")
    now = {file: entry["sha256"] for file, entry in bundle.manifest["files"].items()}
    if engine["made_from"] != now:
        raise EngineError(f"{folder}: was built from another version of this bundle; {_rebuild(bundle, name)}")
    if engine["onnxruntime"] != onnxruntime.__version__:
        raise EngineError(
            f"{folder}: was built for ONNX Runtime {engine['onnxruntime']}, this is {onnxruntime.__version__}; "
            f"{_rebuild(bundle, name)}"
        )
    if engine.get("operators") and engine["processor"] != platform.machine():
        raise EngineError(
            f"{folder}: its operators were compiled for {engine['processor']}, this is {platform.machine()}; "
            f"{_rebuild(bundle, name)}"
        )
    for file, entry in engine["files"].items():
        path = folder / file
        if not path.is_file() or path.stat().st_size != entry["bytes"]:
            raise EngineError(f"{path}: is missing or has another size than {entry['bytes']}; {_rebuild(bundle, name)}")
    if engine.get("operators"):
        path = folder / engine["operators"]  # code that this process is about to run
        if sha256(path) != engine["files"][path.name]["sha256"]:
            raise EngineError(f"{path}: is not what was built, the file is damaged; {_rebuild(bundle, name)}")


def _rebuild(bundle: Bundle, name: str) -> str:
    return f"run `s2s build {bundle.path} --target {name}`"
