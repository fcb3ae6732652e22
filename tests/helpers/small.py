"""Recipes of a size for tests."""

from __future__ import annotations

import dataclasses
from typing import Any

from s2s_export import recipes
from s2s_export.recipes import Range, Recipe

RANGES = {"B": Range(1, 1, 3), "K": Range(1, 4, 8), "S": Range(1, 8, 16), "T": Range(1, 8, 24)}
OPTIONS = {"n_samples": 4, "n_steps": 6}


def recipe(precision: str = "fp16", **changes: Any) -> Recipe:
    options = {**OPTIONS, **changes.pop("options", {})}
    values: dict[str, Any] = {
        "name": f"small-{precision}",
        "flavour": "tensorrt-rtx",
        "precision": precision,
        "compute_capabilities": ("8.9",),
        "ranges": RANGES,
        "buckets": (8, 16),
        "options": options,
    }
    return Recipe(**(values | changes))


def shrunk(target: str) -> Recipe:
    """A target of engines/ with small ranges and few samples."""
    return dataclasses.replace(recipes.load(target), ranges=RANGES, buckets=(8, 16), options=OPTIONS)
