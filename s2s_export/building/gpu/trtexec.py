"""The command lines with which NVIDIA's trtexec compiles prepared graphs, for those who prefer it to `s2s build`.

Its engines are not put into the bundle: only `s2s build` runs the samples and writes engine.json.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from ...bundle import GRAPHS
from ...recipes import Range, Recipe
from .compile import profile_shapes

PLUGIN_LIBRARY = "libs2s_plugins.so"  # what plugins/glue/cpp builds


def lines(inputs: Mapping[str, Sequence[Any]], ranges: Mapping[str, Range], recipe: Recipe) -> list[str]:
    """One command for each graph, to be run in the prepared folder. inputs: by graph, as the manifest has them."""
    said = ["trtexec, in the prepared folder:"] if recipe.flavour == "tensorrt" else []
    return said + [command(name, inputs[name], ranges, recipe) for name in GRAPHS if said]


def command(name: str, inputs: Sequence[Any], ranges: Mapping[str, Range], recipe: Recipe) -> str:
    shapes = {
        entry["name"]: profile_shapes(entry["shape"], ranges)
        for entry in inputs
        if any(isinstance(size, str) for size in entry["shape"])
    }
    words = ["trtexec", f"--onnx={name}.onnx", f"--saveEngine={name}.engine", "--stronglyTyped", "--skipInference"]
    words.append(f"--memPoolSize=workspace:{recipe.workspace_mib}M")
    for i, bound in enumerate(("min", "opt", "max") if shapes else ()):
        given = ",".join(f"{value}:{'x'.join(map(str, sizes[i]))}" for value, sizes in shapes.items())
        words.append(f"--{bound}Shapes={given}")
    if recipe.plugins:
        words += [f"--staticPlugins={PLUGIN_LIBRARY}", "--preview=+aliasedPluginIO1003"]
    return shlex.join(words)
