"""Graphs for ONNX Runtime's CUDA provider: converted to fp16, and still with the nodes that find the best tokens.

Nothing is compiled here: ONNX Runtime chooses its kernels for the GPU at hand when it loads the graphs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...bundle import GRAPHS, Bundle
from ...errors import InvalidOption, MissingExtra
from ...recipes import Recipe

FLAVOURS = ("cuda",)
PRECISIONS = ("fp32", "fp16")


def check(bundle: Bundle, recipe: Recipe) -> None:
    """Raises InvalidOption or MissingExtra before any work is done."""
    try:
        import onnx
    except ImportError as error:
        raise MissingExtra("onnx", "build", "s2s build for a GPU") from error
    del onnx
    from ..gpu import options

    options.read(recipe)
    wrong = []
    if recipe.precision not in PRECISIONS:
        wrong.append(f"precision is {recipe.precision}, expected {' or '.join(PRECISIONS)}")
    if recipe.plugins:
        wrong.append("plugins is true, but ONNX Runtime can't use our plugins")
    if recipe.ranges:
        wrong.append("has ranges, but ONNX Runtime takes any shape; remove them")
    if wrong:
        raise InvalidOption(f"target '{recipe.name}': {'; '.join(wrong)}")


def version(recipe: Recipe) -> str:
    """The opset of the graphs. They do not depend on the version of ONNX Runtime."""
    from ...exporting.graphs.functions import OPSET

    return f"onnx opset {OPSET}"


def build(bundle: Bundle, recipe: Recipe, folder: Path, progress: Callable[[str], None]) -> dict[str, Any]:
    from ..gpu import lower, options

    lowered = lower.lower(bundle, recipe, None, options.read(recipe), folder, progress, search=True)
    return {
        "graphs": {name: {"file": f"{name}.onnx", **lowered.described[name]} for name in GRAPHS},
        "made_from": bundle.hashes(),
        "has_run": False,
        "lowering": lowered.report,
        "agreement": lowered.agreement,
        "summary": lowered.summary,
    }
