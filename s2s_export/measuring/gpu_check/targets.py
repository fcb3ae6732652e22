"""The targets for a GPU, with their recipes reduced to that GPU."""

from __future__ import annotations

import json
from pathlib import Path

from ... import recipes
from ...recipes import Recipe
from ...runtime import backends

OWN = "cuda-native"
MOST = {"B": 64, "K": 8}  # sizes that are measured, whatever a recipe's ranges are


def suiting(capability: str) -> list[str]:
    """Targets whose library is installed and that are for this GPU: fp16 first, our own kernels' before others'.

    If an installed library has no target for this GPU, its plain fp16 target, to see whether it runs.
    """
    found: list[str] = []
    usable = [b for b in backends.by_preference() if not b.computes_on_cores and b.unavailable() is None]
    for flavour in [flavour for backend in usable for flavour in backend.flavours]:
        of_flavour = [recipe for recipe in map(recipes.load, recipes.names()) if recipe.flavour == flavour]
        serving = [r for r in of_flavour if not r.compute_capabilities or capability in r.compute_capabilities]
        if not serving:
            serving = [r for r in of_flavour if r.precision == "fp16" and not r.plugins][-1:]
        found += [recipe.name for recipe in serving]
    return sorted(found, key=lambda name: (recipes.load(name).precision != "fp16", not name.startswith(OWN)))


def narrowed(recipe: Recipe, capability: str, folder: Path) -> Path:
    """Write the recipe for this GPU only, so that it builds faster, and with ranges for all that is measured."""
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
