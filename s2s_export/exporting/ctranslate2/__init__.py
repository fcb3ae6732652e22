"""Reads models in CTranslate2's format, so that people who have only that can export them.

A folder becomes a checkpoint in Hugging Face's format, in a temporary folder, which is exported like any other. One
file a kind of model, named after the specification that model.bin names: it holds `SPEC` and `convert`.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from pathlib import Path
from typing import Any

from ...errors import CheckpointError, UnsupportedModel
from . import _model_file as model_file


def is_one(folder: Path) -> bool:
    """Whether a folder holds a model of CTranslate2."""
    return any(path.is_file() and model_file.is_one(path) for path in parts(folder)[:1])


def parts(folder: Path) -> list[Path]:
    """model.bin, or the parts that it was cut into, in their order."""
    whole = folder / "model.bin"
    return [whole] if whole.is_file() else sorted(folder.glob("model.bin.part*"))


def convert(folder: Path, target: Path) -> None:
    """Write the model as a checkpoint into the folder `target`. Raises CheckpointError, UnsupportedModel."""
    model = model_file.read(parts(folder))
    known = {}
    for info in pkgutil.iter_modules(__path__):
        if not info.name.startswith("_"):
            module = importlib.import_module(f"{__name__}.{info.name}")
            known[module.SPEC] = module
    if model.spec not in known:
        raise UnsupportedModel(
            f"{folder}: model.bin holds a {model.spec}; expected one of {', '.join(sorted(known))}; convert the "
            "original checkpoint"
        )
    known[model.spec].convert(model, folder, target)


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: can't be read as JSON ({error}); restore the folder") from error


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
