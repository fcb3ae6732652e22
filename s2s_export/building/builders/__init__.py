"""What `s2s build` calls: one file for each kind of target, found by listing this directory.

A builder module defines

    FLAVOURS                  the recipe flavours that it serves
    check(bundle, recipe)     raises BuildError, InvalidOption or MissingExtra before any work is done
    version(recipe)           name and version of the library that builds; an engine of another version is built again
    build(bundle, recipe, folder, progress) -> dict
                              writes the engine's files into `folder` and returns what engine.json records of them;
                              progress is called with the name of each stage as it begins

and, where it builds for bundles of other kinds than encoder-decoders, KINDS, all that it builds for.

A builder whose engines are compiled on another machine than the one that has onnx also defines

    check_prepare(bundle, recipe), prepare(bundle, recipe, folder, progress)
                              what needs onnx; see ../prepared.py. `check` and `build` then take `prepared` as well
    try_out(bundle, recipe, folder, prepared) -> dict
                              runs the samples on a finished engine, and returns what engine.json gets besides

and one whose engines serve only shapes within ranges has RANGES, those of a recipe that names none.

It may import onnx and torch (inside functions); an engine, once built, needs neither.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from ...errors import InvalidOption


def find(flavour: str) -> ModuleType:
    """The builder of a flavour. Raises InvalidOption where none serves it."""
    names = [info.name for info in pkgutil.iter_modules(__path__) if not info.name.startswith("_")]
    by_flavour = {
        served: module
        for module in (importlib.import_module(f"{__name__}.{name}") for name in names)
        for served in module.FLAVOURS
    }
    if flavour not in by_flavour:
        raise InvalidOption(
            f"flavour is {flavour!r}, expected one of {', '.join(sorted(by_flavour))}; change it in the target's recipe"
        )
    return by_flavour[flavour]
