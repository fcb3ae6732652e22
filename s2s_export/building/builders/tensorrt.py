"""Engines for TensorRT and TensorRT-RTX: converts the three graphs, compiles each, and records what was measured.

The engines are stored as `<graph>.engine`. The converted ONNX files are not kept: they can be made again from the
bundle and the recipe.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

from ...bundle import GRAPHS, Bundle
from ...errors import BackendUnavailable, BuildError, InvalidOption, MissingExtra
from ...recipes import Recipe
from ...runtime.backends._tensorrt import library as libraries
from ...runtime.backends._tensorrt.library import Library

FLAVOURS = ("tensorrt", "tensorrt-rtx")
SHOWN = ("ATTENTION_INPUT", "KV_CACHE_UPDATE", "PLUGIN_V3", "QUANTIZE", "DEQUANTIZE")  # layers in the summary


def check(bundle: Bundle, recipe: Recipe) -> None:
    """Raises BuildError, InvalidOption or MissingExtra before any work is done."""
    _require_onnx()
    from ..gpu import dimensions, options

    options.read(recipe)
    dimensions.check(bundle, recipe)
    library = _library(recipe)
    if library.compiles_ahead_of_time and not recipe.compute_capabilities:
        raise InvalidOption(
            f"target '{recipe.name}': compute_capabilities is empty; expected the GPUs that it compiles for, "
            'such as ["8.9"]'
        )
    if recipe.plugins:
        _register_plugins(library)
        _plugin_module("build").find_nvcc()
    elif not library.has_cache_layer and _has_caches(bundle):
        raise BuildError(
            f"{library.name} {library.version} has no layer for K/V caches; expected one, or our kernels; "
            "set plugins = true in the recipe, or update the library"
        )
    if not library.compiles_ahead_of_time:
        _require_gpu(library, recipe)


def version(recipe: Recipe) -> str:
    library = _library(recipe)
    return f"{library.flavour} {library.version}"


def build(bundle: Bundle, recipe: Recipe, folder: Path, progress: Callable[[str], None]) -> dict[str, Any]:
    from ...runtime.backends._tensorrt import validity
    from ...runtime.backends._tensorrt.messages import Messages
    from ..gpu import dimensions, expand, lower, options
    from ..gpu.compile import compile_graph

    library = _library(recipe)
    chosen = options.read(recipe)
    fitted = dimensions.fit(bundle, recipe)
    if recipe.plugins:
        _register_plugins(library)
        progress("compile our kernels")
        _copy_kernels(recipe, folder)
    with tempfile.TemporaryDirectory(prefix="s2s-build-") as scratch:
        lacking = library.lacking(expand.EXPANSIONS, Messages(library).logger)
        lowered = lower.lower(bundle, recipe, fitted, chosen, Path(scratch), progress, lacking, search=False)
        compiled = {}
        for name in GRAPHS:
            progress(f"compile {name}")
            compiled[name] = compile_graph(
                library, name, lowered.paths[name], folder / f"{name}.engine", fitted.ranges, recipe, progress,
                decompose=chosen.decompose_attention,
            )  # fmt: skip
            if recipe.plugins:
                _check_plugins(name)
    facts = {
        name: {
            "file": f"{name}.engine",
            **lowered.described[name],
            "layers": result.layers,
            "decomposed_attentions": result.decomposed,
            "bytes": result.n_bytes,
            "seconds": result.seconds,
            "warnings": result.warnings,
        }
        for name, result in compiled.items()
    }
    return {
        "graphs": facts,
        "slots": fitted.slots,
        "ranges": {letter: asdict(limits) for letter, limits in fitted.ranges.items()},
        "target_length": fitted.target_length,
        "made_from": bundle.hashes(),
        "device": validity.describe_target(library, recipe),
        "has_run": False,
        "lowering": lowered.report,
        "agreement": lowered.agreement,
        "summary": [*fitted.notes, *lowered.summary, *_summary(compiled)],
    }


def _summary(compiled: dict[str, Any]) -> list[str]:
    lines = []
    for name, result in compiled.items():
        shown = ", ".join(f"{count} {kind}" for kind, count in result.layers.items() if kind in SHOWN)
        apart = f"; {result.decomposed} attentions have no kernel and become products" if result.decomposed else ""
        lines.append(
            f"{name}: {sum(result.layers.values())} layers ({shown or 'no attention'}), "
            f"{result.n_bytes / 2**20:.2f} MiB, {result.seconds:.1f} s{apart}"
        )
    return lines


def _require_onnx() -> None:
    try:
        import ml_dtypes  # noqa: F401
        import onnx  # noqa: F401
    except ImportError as error:
        raise MissingExtra("onnx", "export", "s2s build for a GPU") from error


def _library(recipe: Recipe) -> Library:
    try:
        return libraries.load(recipe.flavour)
    except BackendUnavailable as error:
        raise BuildError(str(error)) from error


def _has_caches(bundle: Bundle) -> bool:
    return any("N" in entry["shape"] for entry in bundle.manifest["graphs"]["decoder_step"]["inputs"])


def _plugin_module(name: str) -> ModuleType:
    from ... import plugin_sources

    return plugin_sources.module(name)


def _register_plugins(library: Library) -> None:
    glue = _plugin_module("glue.tensorrt_plugins")
    glue.register(library.trt)
    glue.refusals()  # forgets those of builds before


def _check_plugins(graph: str) -> None:
    """Raises BuildError where a plugin refused sizes: the library builds the engine all the same, and it would fail."""
    if reasons := _plugin_module("glue.tensorrt_plugins").refusals():
        raise BuildError(
            f"{graph}: our kernels don't serve sizes of this model ({'; '.join(reasons)}); change the ranges, or set "
            "plugins = false in the recipe"
        )


def _copy_kernels(recipe: Recipe, folder: Path) -> None:
    """Copies our kernels for the target's GPUs beside its engines, so that running them needs no compiler."""
    chosen = tuple(int(capability.replace(".", "")) for capability in recipe.compute_capabilities)
    compiler = _plugin_module("build")
    known = [a for a in chosen if a in compiler.ARCHITECTURES]  # others: the driver compiles the PTX
    for name in sorted({operation.folder for operation in _plugin_module("").operations().values()}):
        shutil.copyfile(compiler.fatbin(name, known or compiler.ARCHITECTURES), folder / f"{name}.fatbin")


def _require_gpu(library: Library, recipe: Recipe) -> None:
    """Raises BuildError unless this machine has the target's GPU, on which TensorRT times its kernels."""
    from ...runtime.cuda import driver

    try:
        device = driver.Device()
    except BackendUnavailable as error:
        raise BuildError(
            f"target '{recipe.name}' is built on the GPU that runs it, and {library.name} finds none here ({error}); "
            "copy the bundle to that machine and run s2s build there"
        ) from error
    if recipe.compute_capabilities and device.capability not in recipe.compute_capabilities:
        raise BuildError(
            f"this GPU has compute capability {device.capability}, but target '{recipe.name}' is for "
            f"{', '.join(recipe.compute_capabilities)}; build a target for this GPU"
        )
