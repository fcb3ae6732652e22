"""Reads what torch.save wrote, without running any of it: weights, plain containers, and classes that are named here.

torch's reader with `weights_only=True` refuses every class that it does not know. Two kinds are let in:
argparse.Namespace, which holds options and does nothing, and stand-ins, which keep the state of an object whose own
class would have to be imported.
"""

from __future__ import annotations

import argparse
import re
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from ...errors import CheckpointError, UnsupportedModel

FIRST = 32 << 20  # bytes of a pickle in which the names of its parts are looked for
GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
REASON = re.compile(r"WeightsUnpickler error:(.*?)(?:Check the documentation|$)", re.DOTALL)
DEFAULT_DICT = "collections.defaultdict"


class StandIn:
    """In place of an object of a class that is not here. It keeps what it is given."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def get(self, name: str) -> Any:
        """An attribute of the object, or None."""
        return self.state.get(name) if isinstance(getattr(self, "state", None), dict) else None


def _dictionary(*_: Any) -> dict[Any, Any]:
    """In place of a defaultdict, whose factory is not called."""
    return {}


def names(file: Path) -> bytes:
    """The beginning of a file's pickle, in which the names of what it holds are found; empty for no pickle of torch."""
    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                name = next((n for n in archive.namelist() if n.endswith("/data.pkl")), None)
                if name is None:
                    return b""
                with archive.open(name) as pickle:
                    return pickle.read(FIRST)
        with file.open("rb") as raw:
            return raw.read(FIRST)
    except (OSError, ValueError, NotImplementedError, RuntimeError, EOFError, zipfile.BadZipFile):
        return b""


def load(file: Path, stand_ins: Collection[str] = ()) -> dict[str, Any]:
    """The dictionary that a file holds. stand_ins: classes and functions, by their whole names, that become StandIns.

    Raises UnsupportedModel for another class, by its name, and CheckpointError for a file that is damaged.
    """
    # A class each, as torch looks them up by identity.
    known: list[Any] = [(type("StandIn", (StandIn,), {}), name) for name in stand_ins]
    known.append((_dictionary, DEFAULT_DICT))
    try:
        with torch.serialization.safe_globals([*known, argparse.Namespace]):
            found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for a damaged file
        if match := GLOBAL.search(str(error)):
            raise UnsupportedModel(
                f"{file}: holds an object of {match[1]}, which is not read, as it could run code; save the checkpoint "
                "again with its weights and options alone"
            ) from error
        reason = match[1] if (match := REASON.search(str(error))) else str(error)
        words = " ".join(reason.split())[:200] or type(error).__name__
        raise CheckpointError(f"{file}: can't be read as a checkpoint of PyTorch ({words}); restore it") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{file}: holds a {type(found).__name__}; expected a dictionary; restore the checkpoint")
    return found


def only_file(folder: Path, *needed: bytes) -> Path | None:
    """The one .pt file of a folder whose pickle names all that is needed. Raises CheckpointError for several."""
    found = [file for file in sorted(folder.glob("*.pt")) if (raw := names(file)) and all(n in raw for n in needed)]
    if len(found) > 1:
        raise CheckpointError(
            f"{folder}: has {len(found)} checkpoints ({found[0].name}, {found[1].name}); name the file to be exported"
        )
    return found[0] if found else None
