"""Checkpoints that are no folder as it stands: a package, or one model file among several.

They are laid out as a folder in a temporary place, by links where that is enough.
"""

from __future__ import annotations

from pathlib import Path

from .ctranslate2 import _folder as argos

MODEL_SUFFIXES = (".pt", ".npz")  # of files that hold a whole model


def is_packed(given: Path) -> bool:
    return argos.is_package(given) or (given.is_file() and given.suffix in MODEL_SUFFIXES)


def lay_out(given: Path, target: Path) -> None:
    """Fill the empty folder `target`. Raises CheckpointError for a package that is damaged."""
    if argos.is_package(given):
        argos.unpack(given, target)
        return
    for path in given.resolve().parent.iterdir():
        if path.is_file() and (path.name == given.resolve().name or path.suffix not in MODEL_SUFFIXES):
            (target / path.name).symlink_to(path.resolve())
