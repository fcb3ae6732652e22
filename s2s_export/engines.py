"""Engines: what `s2s build` stores in a bundle, and whether one can run here. Builders write them, backends read them.

`building/` says what is in engine.json where it writes it: `build.py` of every engine, `builders/` of each kind.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .bundle import Bundle, first_changed, inside
from .errors import BackendError, BundleError, EngineError, InvalidOption, nearest

PORTABLE = "portable"  # the target that is always there: the bundle's own graphs


def engines(bundle: Bundle) -> dict[str, dict[str, Any]]:
    """engine.json of every engine that `s2s build` made, by target. Raises BundleError for one that can't be read."""
    found = {}
    for file in sorted((bundle.path / "engines").glob("[!.]*/engine.json")):  # a hidden one is not finished
        try:
            found[file.parent.name] = json.loads(file.read_bytes())
        except (OSError, ValueError) as error:
            raise BundleError(f"{file}: not readable as JSON ({error}); build this target again") from error
    return found


# Of CPUs


def unfit(bundle: Bundle, target: str | None, flavour: str) -> str | None:
    """Why no engine of this flavour can be had for a target, or None."""
    if target in (None, PORTABLE):
        return None
    built = engines(bundle)
    if target not in built:
        fitting = [PORTABLE, *(name for name, engine in built.items() if engine.get("flavour") == flavour)]
        return f"the bundle has no engine '{target}'{nearest(str(target), fitting)}; {_rebuild(bundle, str(target))}"
    if built[target].get("flavour") != flavour:
        return f"the engine '{target}' is one of flavour '{built[target].get('flavour')}'; expected '{flavour}'"
    return None


def choose(bundle: Bundle, target: str | None, default: str, version: str) -> tuple[dict[str, Any], Path] | None:
    """The engine of a target and its folder, None for the portable graphs. Raises EngineError for one that is stale.

    default: used when it is built and no target is named. version: of the ONNX Runtime that is installed.
    """
    if target == PORTABLE:
        return None
    name = target or default
    engine = engines(bundle).get(name)
    if engine is None:
        return None
    folder = bundle.path / "engines" / name
    _check(bundle, name, engine, folder, version)
    return engine, folder


def _check(bundle: Bundle, name: str, engine: dict[str, Any], folder: Path, version: str) -> None:
    if "made_from" not in engine or "graphs" not in engine:
        raise EngineError(f"{folder}: engine.json lacks what a CPU engine needs; {_rebuild(bundle, name)}")
    now = {file: entry["sha256"] for file, entry in bundle.manifest["files"].items()}
    if engine["made_from"] != now:
        raise EngineError(f"{folder}: was built from another version of this bundle; {_rebuild(bundle, name)}")
    if engine["onnxruntime"] != version:
        raise EngineError(
            f"{folder}: was built for ONNX Runtime {engine['onnxruntime']}, this is {version}; {_rebuild(bundle, name)}"
        )
    if engine.get("operators") and engine["processor"] != platform.machine():
        raise EngineError(
            f"{folder}: its operators were compiled for {engine['processor']}, this is {platform.machine()}; "
            f"{_rebuild(bundle, name)}"
        )
    check_hashes(bundle, folder, engine, _rebuild(bundle, name))


def check_hashes(bundle: Bundle, folder: Path, engine: Mapping[str, Any], again: str) -> None:
    """Raises EngineError for a file that is not what was built. again: the command that builds it.

    Compares the sizes, and every sha256 unless the bundle was opened without `verify`; operators always, as they are
    code that this process is about to run.
    """
    files = engine.get("files", {})
    for name, entry in files.items():
        path = inside(folder, name)
        if not path.is_file() or path.stat().st_size != entry["bytes"]:
            raise EngineError(f"{path}: is missing or has another size than {entry['bytes']}; {again}")
    compared = files if bundle.verify else {name: files[name] for name in files if name == engine.get("operators")}
    if (name := first_changed(folder, compared)) is not None:
        raise EngineError(f"{folder / name}: is not what was built, the file is damaged; {again}")


def _rebuild(bundle: Bundle, name: str) -> str:
    return f"run `s2s build {bundle.path} --target {name}`"


# Of GPUs


def check_record(folder: Path, engine: Mapping[str, Any], library: str, capability: str, bundle: Bundle) -> None:
    """Raises EngineError for an engine of another bundle, library version or GPU, with the command that rebuilds it.

    library: flavour and version of the one that is installed.
    """
    again = rebuild(folder, engine)
    if engine.get("made_from") != bundle.hashes():
        raise EngineError(f"{folder}: was built from another version of this bundle; {again}")
    built_with = str(engine.get("built_with", {}).get("library", ""))
    if built_with != library:
        raise EngineError(
            f"{folder}: built with {built_with or 'an unknown library'}, but {library} is installed; {again}"
        )
    served = engine.get("device", {}).get("compute_capabilities", [])
    if capability not in served:
        raise EngineError(
            f"{folder}: built for compute capability {', '.join(served) or 'unknown'}, but this GPU has {capability}; "
            f"{again}"
        )
    check_hashes(bundle, folder, engine, again)


def rebuild(folder: Path, engine: Mapping[str, Any]) -> str:
    """The command that builds an engine again. folder: the engine's."""
    return f"run: s2s build {folder.parent.parent} --target {engine.get('target', folder.name)} --force"


def beams_for(record: Mapping[str, Any], wanted: int) -> int:
    """The number of beams that the engine runs for `wanted`: it divides the slots of its caches."""
    limits, slots = record["ranges"]["K"], int(record["slots"])
    for beams in range(max(wanted, limits["min"]), limits["max"] + 1):
        if not slots or slots % beams == 0:
            return int(beams)
    raise InvalidOption(
        f"{wanted} beams wanted, but the engine was built for at most {limits['max']}; "
        "raise ranges.K in its recipe and build it again"
    )


def bucket(record: Mapping[str, Any], length: int) -> int:
    """The source length that is run for `length`: the next bucket, so that few shapes exist; or `length` itself."""
    limits = record["ranges"]["S"]
    if length > limits["max"]:
        raise BackendError(
            f"a source has {length} tokens, but the engine was built for at most {limits['max']}; "
            "raise ranges.S in its recipe and build it again"
        )
    fitting = [size for size in record["recipe"]["buckets"] if length <= size <= limits["max"]]
    return int(max(min(fitting, default=length), limits["min"]))
