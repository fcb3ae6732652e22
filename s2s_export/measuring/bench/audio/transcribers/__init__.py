"""The systems that are measured: one file for each, found by listing this directory.

A module defines

    NAME                              its name for --peers, or "s2s" for this project
    BATCHED                           whether it can decode the parts of one audio side by side
    entries(bundle, choice, folders)  its entries, which may be several. folders: those given with --peer-model
    prepare(job, folder)              optional, as in `bench.contestants`
    open(job, folder) -> Transcriber  in the worker process. Raises Absent with the reason if it can't run here

The system itself is imported inside functions, so that it need not be installed.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from types import ModuleType
from typing import Any, Protocol

from .....bundle import Bundle
from ...contestants import Absent, Choice, Entry, Job
from ..plan import Setting

__all__ = ["Absent", "Bundle", "Choice", "Entry", "Job", "Setting", "Transcriber", "model_of", "modules", "peers"]

OURS = "s2s"
MODEL = "model"  # the option of an entry: the folder that it reads in place of the checkpoint


class Transcriber(Protocol):
    """An opened system."""

    versions: dict[str, str]

    def transcribe(self, samples: Any, setting: Setting) -> str:
        """The text of samples [L] at 16 kHz."""
        ...


def modules() -> dict[str, ModuleType]:
    found = [
        importlib.import_module(f"{__name__}.{i.name}") for i in pkgutil.iter_modules(__path__) if i.name[0] != "_"
    ]
    return {module.NAME: module for module in found}


def peers() -> list[str]:
    return sorted(name for name in modules() if name != OURS)


def model_of(job: Job) -> str:
    """The folder that a peer reads: its own if there is one, else the checkpoint. Raises Absent."""
    return str(job.options.get(MODEL) or job.need_checkpoint())


def per_folder(folders: Sequence[str]) -> list[dict[str, Any]]:
    """The options of one entry for each of its own folders, or of one that reads the checkpoint."""
    return [{MODEL: folder} for folder in folders] or [{}]
