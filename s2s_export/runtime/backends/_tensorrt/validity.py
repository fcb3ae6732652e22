"""Whether an engine can run here, said before it is loaded: for which GPUs and by which version it was built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ....engines import rebuild
from ....errors import EngineError
from ....recipes import Recipe
from .library import Library


def describe_target(library: Library, recipe: Recipe) -> dict[str, Any]:
    """What engine.json records under "device"."""
    if library.compiles_ahead_of_time:
        return {"compute_capabilities": list(recipe.compute_capabilities), "built_for": "any of these"}
    from ...cuda.driver import Device

    device = Device()
    return {"compute_capabilities": [device.capability], "built_for": device.name}


def check_header(folder: Path, name: str, data: bytes, engine: dict[str, Any], library: Library, runtime: Any) -> None:
    """Where the library can tell from an engine's first bytes that it will not run: EngineError with its diagnosis."""
    again = rebuild(folder, engine)
    if not data:
        raise EngineError(f"{folder}/{name}.engine: empty; {again}")
    if not library.tells_validity:
        return
    size = int(runtime.engine_header_size)
    if len(data) < size:
        raise EngineError(f"{folder}/{name}.engine: {len(data)} bytes, expected at least its header of {size}; {again}")
    validity, diagnosis = runtime.get_engine_validity(data[:size])
    if validity == library.trt.EngineValidity.INVALID:
        reasons = diagnoses(library, int(diagnosis))
        raise EngineError(f"{folder}/{name}.engine: can't run here ({', '.join(reasons)}); {again}")


def diagnoses(library: Library, bits: int) -> list[str]:
    """The reasons in a diagnosis, in words."""
    known = library.trt.EngineInvalidityDiagnostics.__members__
    found = [name.lower().replace("_", " ") for name, member in known.items() if bits & int(member)]
    return found or ["the library gives no reason; is there a GPU with a driver?"]
