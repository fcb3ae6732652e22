"""CTranslate2's wheel needs the libraries of cuBLAS 12. If only those of cuBLAS 13 are installed, as with a torch for
CUDA 13, links with the older names work as well: CTranslate2 looks up a dozen functions by name, which both versions
have. Not yet run on a GPU.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

FOLDER = "libraries"
WANTED = {"libcublas.so.12": "libcublas.so.13", "libcublasLt.so.12": "libcublasLt.so.13"}
PLACES = ("nvidia/cu13/lib", "nvidia/cublas/lib")  # of NVIDIA's wheels, below a folder of packages


def link(folder: Path) -> None:
    """Make the links in `folder`, unless the older libraries can be loaded or there are none to link to."""
    if all(_loads(name) for name in WANTED):
        return
    for place in (Path(entry) / place for entry in sys.path for place in PLACES):
        if all((place / newer).is_file() for newer in WANTED.values()):
            folder.mkdir()
            for older, newer in WANTED.items():
                (folder / older).symlink_to((place / newer).resolve())
                (folder / newer).symlink_to((place / newer).resolve())
            return


def environment(folder: Path) -> dict[str, str]:
    """The variables with which the loader finds the links: it reads the path when a process starts."""
    if not folder.is_dir():
        return {}
    return {"LD_LIBRARY_PATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])])}


def _loads(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True
