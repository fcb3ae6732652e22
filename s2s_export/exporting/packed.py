"""Checkpoints that are no folder as it stands: a package of Argos Translate, or one model file among several.

They are laid out as a folder in a temporary place, by links where that is enough. An `.argosmodel` is a zip with one
folder, which has `model/` as CTranslate2 keeps it, metadata.json, and sentencepiece.model or bpe.model.
"""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path, PurePosixPath

from ..errors import CheckpointError

MODEL_SUFFIXES = (".pt", ".npz")  # of files that hold a whole model
PACKAGE_SUFFIX = ".argosmodel"
SUFFIXES = (*MODEL_SUFFIXES, PACKAGE_SUFFIX)
METADATA = "metadata.json"
BESIDE = ("sentencepiece.model", "bpe.model")
LARGEST = 64 << 30  # bytes of an unpacked package


def is_packed(given: Path) -> bool:
    return is_package(given) or (given.is_file() and given.suffix in MODEL_SUFFIXES)


def lay_out(given: Path, target: Path) -> None:
    """Fill the empty folder `target`. Raises CheckpointError for a package that is damaged."""
    if is_package(given):
        unpack(given, target)
        return
    for path in given.resolve().parent.iterdir():
        if path.is_file() and (path.name == given.resolve().name or path.suffix not in MODEL_SUFFIXES):
            (target / path.name).symlink_to(path.resolve())


def is_package(path: Path) -> bool:
    """Whether it is an .argosmodel, or a folder into which one was unpacked."""
    if path.is_dir():
        return (path / METADATA).is_file() and (path / "model" / "model.bin").is_file()
    return path.suffix == PACKAGE_SUFFIX and path.is_file()


def unpack(package: Path, target: Path) -> None:
    """Lay out a package as a folder of CTranslate2, with its metadata and its sentencepiece model beside.

    Raises CheckpointError for a file that is damaged or no package.
    """
    if package.is_dir():
        for path in [*(package / "model").iterdir(), *(package / name for name in (METADATA, *BESIDE))]:
            if path.is_file():
                (target / path.name).symlink_to(path.resolve())
        return
    try:
        with zipfile.ZipFile(package) as archive:
            wanted = [info for info in archive.infolist() if not info.is_dir() and _is_wanted(info.filename)]
            if sum(info.file_size for info in wanted) > LARGEST:
                raise CheckpointError(f"{package}: unpacks to more than {LARGEST >> 30} GiB; restore the file")
            for info in wanted:
                with archive.open(info) as source, (target / PurePosixPath(info.filename).name).open("wb") as file:
                    shutil.copyfileobj(source, file)
    except (OSError, ValueError, NotImplementedError, RuntimeError, EOFError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{package}: can't be unpacked ({error}); restore the file") from error
    if not (target / "model.bin").is_file():
        raise CheckpointError(f"{package}: has no model/model.bin; expected a package of Argos Translate with a model")


def _is_wanted(name: str) -> bool:
    """Files of the package's own folder and of its model/, by their names alone."""
    parts = PurePosixPath(name).parts
    if len(parts) == 3 and parts[1] == "model":
        return True
    return len(parts) == 2 and parts[1] in (METADATA, *BESIDE)
