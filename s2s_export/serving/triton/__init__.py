"""`s2s triton`: writes a model repository for NVIDIA's Triton Inference Server, which runs a bundle in its python
backend.

    REPOSITORY/
      NAME/                  batches of requests, each decoded together (Triton's dynamic batching)
        config.pbtxt
        1/model.py           two lines: the code is the package's own (model.py), which Triton's Python needs
        bundle/
      NAME_stream/           one request at a time, answered piece by piece (a decoupled model)

Both take what NAME serves under `s2s serve` too: the tensor `text`, and options as the request's parameters.
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ... import bundle as bundles
from ... import replacing
from ...engines import PORTABLE, folder_of, read, targets_of
from ...errors import InvalidOption, UnknownOption, UsageError
from ...runtime import backends
from . import config
from .config import Batching as Batching

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
STREAM_SUFFIX = "_stream"
MODEL = '''"""{what}, written by `s2s triton`. Triton's Python needs the package s2s-export."""

from s2s_export.serving.triton.model import {name} as TritonPythonModel  # noqa: F401
'''


@dataclass(frozen=True)
class Plan:
    """What to write. name: of the batching model, the bundle folder's by default. link: leave the bundle where it is,
    and name its place. loading: arguments of `s2s_export.load` that are not None.
    """

    name: str
    batching: Batching
    stream: bool = True
    link: bool = False
    environment: str | None = None
    loading: dict[str, Any] = field(default_factory=dict)


def write_repository(bundle_path: str | os.PathLike[str], repository: Path, plan: Plan, *, force: bool) -> list[Path]:
    """Write the models of a bundle; returns their folders.

    force: whether models of these names that are there are replaced; else raises UsageError. Raises InvalidOption for
    a name that Triton's clients can't use, BundleError, OSError.
    """
    if not NAME.fullmatch(plan.name):
        raise InvalidOption(
            f"'{plan.name}' can't be the name of a model; expected letters, digits, dots, dashes and underscores; "
            "give another one with --name"
        )
    opened = bundles.read(bundle_path)
    on_gpu = uses_gpu(opened, plan.loading.get("backend"), plan.loading.get("target"))
    kinds = [(plan.name, "BatchingModel", False)]
    if plan.stream and config.can_stream(opened):
        kinds.append((plan.name + STREAM_SUFFIX, "StreamingModel", True))
    for name, _, _ in kinds:
        if (repository / name).exists() and not force:
            raise UsageError(f"{repository / name}: exists already; choose another --name, or replace it with --force")
    written = []
    for name, model, is_stream in kinds:
        with replacing.folder(repository / name, replace=force) as work:
            place = str(opened.path.resolve()) if plan.link else "bundle"
            text = config.text(
                opened, name, plan.batching, is_stream, {"bundle": place, **plan.loading}, on_gpu, plan.environment
            )
            (work / "config.pbtxt").write_text(text, encoding="utf-8")
            (work / "1").mkdir()
            what = "Answers piece by piece" if is_stream else "Answers batches of requests"
            (work / "1" / "model.py").write_text(MODEL.format(what=what, name=model), encoding="utf-8")
            if not plan.link:
                shutil.copytree(opened.path, work / "bundle", copy_function=_link_or_copy, ignore=_hidden)
        written.append(repository / name)
    return written


def uses_gpu(bundle: bundles.Bundle, backend: str | None, target: str | None) -> bool:
    """Whether a GPU is going to run the graphs. Raises UnknownOption for a backend, or a target, that there is not."""
    known = backends.declared()
    if backend is not None and backend not in known:
        raise UnknownOption(backend, known, "backend")
    built = targets_of(bundle, {flavour for each in known.values() for flavour in each.flavours})
    if target is not None and target not in (PORTABLE, *built):
        raise UnknownOption(target, [PORTABLE, *built], "target")
    if backend is not None:
        return not known[backend].computes_on_cores
    if target is None or target == PORTABLE:
        return False
    runs = backends.of_flavour(read(folder_of(bundle, target))["flavour"])
    return runs is not None and not runs.computes_on_cores


def _link_or_copy(source: str, destination: str) -> None:
    """A hard link where the file system allows one: models of the same bundle then take its space once."""
    try:
        os.link(source, destination)
    except OSError:
        shutil.copy2(source, destination)


def _hidden(folder: str, names: list[str]) -> list[str]:
    """Folders of builds that are under way."""
    return [name for name in names if name.startswith(".")]
