"""Reads models in CTranslate2's format, so that people who have only that can export them.

Text models (`TransformerSpec`) have a family of their own, `families/ctranslate2.py`, whose parts are the files here
that begin with an underscore. A folder with another kind becomes a checkpoint in Hugging Face's format, in a temporary
folder, which is exported like any other. One file a kind, named after the specification that model.bin names: it holds
`SPEC` and `convert`.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from pathlib import Path
from typing import Any

from ...errors import CheckpointError, UnsupportedModel
from . import _model_file as model_file

TEXT_SPEC = "TransformerSpec"


def spec_of(folder: Path) -> str | None:
    """The specification of a folder's model, or None if it holds no model of CTranslate2."""
    return next((model_file.spec_of(path) for path in parts(folder)[:1] if path.is_file()), None)


def is_converted(folder: Path) -> bool:
    """Whether a folder holds a model that becomes a checkpoint before it is exported, or one that is refused."""
    return spec_of(folder) not in (None, TEXT_SPEC)


def parts(folder: Path) -> list[Path]:
    """model.bin, or the parts that it was cut into, in their order."""
    whole = folder / "model.bin"
    return [whole] if whole.is_file() else sorted(folder.glob("model.bin.part*"))


def convert(folder: Path, target: Path) -> None:
    """Write the model as a checkpoint into the folder `target`. Raises CheckpointError, UnsupportedModel."""
    spec = spec_of(folder) or model_file.read(parts(folder)).spec  # reading says what is wrong with its beginning
    known = {}
    for info in pkgutil.iter_modules(__path__):
        if not info.name.startswith("_"):
            module = importlib.import_module(f"{__name__}.{info.name}")
            known[module.SPEC] = module
    if spec not in known:
        raise UnsupportedModel(
            f"{folder}: model.bin holds a {spec}; expected one of {', '.join(sorted([*known, TEXT_SPEC]))}; export the "
            "original checkpoint"
        )
    known[spec].convert(model_file.read(parts(folder)), folder, target)


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: can't be read as JSON ({error}); restore the folder") from error


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
