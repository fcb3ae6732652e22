"""What differs between kinds of bundles when one is written: one file for each, named as manifest.json's `kind`.

A file defines

    manifest(source, model, family, limits, graphs)   what the manifest has beside what all kinds have
    expect(bundle, source, model)                     runs PyTorch, and returns what `compare` takes
    compare(bundle, expected)                         the error of every output of the bundle's graphs

The structure that a family describes says in `KIND` which it is; those that say nothing are encoder-decoders.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from ...bundle import ENCODER_DECODER


def of(structure: Any) -> ModuleType:
    return named(getattr(structure, "KIND", ENCODER_DECODER))


def named(kind: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{kind.replace('-', '_')}")
