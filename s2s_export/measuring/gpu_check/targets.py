"""Which targets suit a GPU, and their recipes cut down to it."""

from __future__ import annotations

import json
from pathlib import Path

from ... import recipes
from ...recipes import Recipe
from ...runtime import backends

MOST = {"B": 64, "K": 8}  # what is measured, whatever a recipe's ranges are


def suiting(capability: str) -> list[str]:
    """Targets whose library is here and whose GPUs include this one, fp16 first. Of a library that is here and of which
    no target names this GPU, its plain fp16 target: whether it runs is a finding.
    """
    found: list[str] = []
    usable = [b for b in backends.by_preference() if not b.computes_on_cores and b.unavailable() is None]
    for flavour in [flavour for backend in usable for flavour in backend.flavours]:
        of_flavour = [recipe for recipe in map(recipes.load, recipes.names()) if recipe.flavour == flavour]
        serving = [r for r in of_flavour if not r.compute_capabilities or capability in r.compute_capabilities]
        if not serving:
            serving = [r for r in of_flavour if r.precision == "fp16" and not r.plugins][-1:]
        found += [recipe.name for recipe in serving]
    return sorted(found, key=lambda name: recipes.load(name).precision != "fp16")


def narrowed(recipe: Recipe, capability: str, folder: Path) -> Path:
    """The recipe as a file: for this GPU alone, so that a build is as quick as can be, and for all that is measured."""
    lines = [f'flavour = "{recipe.flavour}"', f'precision = "{recipe.precision}"']
    if recipe.compute_capabilities:
        lines.append(f'compute_capabilities = ["{capability}"]')
    lines += [f"plugins = {str(recipe.plugins).lower()}", f"workspace_mib = {recipe.workspace_mib}"]
    lines += [f"buckets = {list(recipe.buckets)}", "[ranges]"]
    lines += [
        f"{letter} = {{ min = {r.min}, opt = {r.opt}, max = {max(r.max, MOST.get(letter, 0))} }}"
        for letter, r in recipe.ranges.items()
    ]
    lines += ["[options]", *(f"{name} = {json.dumps(value)}" for name, value in recipe.options.items())]
    file = folder / f"{recipe.name}.toml"
    file.write_text("\n".join(lines) + "\n")
    return file
