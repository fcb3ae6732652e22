"""Engines for TensorRT and TensorRT-RTX: converts the three graphs, compiles each, and records what was measured.

The engines are stored as `<graph>.engine`. The converted ONNX files are kept only where a target is prepared for
another machine (../prepared.py); otherwise they can be made again from the bundle and the recipe.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Collection
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

from ... import bundle as bundles
from ...bundle import DECODER, ENCODER_DECODER, GRAPHS, Bundle
from ...errors import BackendUnavailable, BuildError, InvalidOption, MissingExtra
from ...recipes import Recipe
from ...runtime.backends._tensorrt import library as libraries
from ...runtime.backends._tensorrt.library import Library
from ...runtime.cuda import driver
from .. import prepared as prepared_module
from ..gpu import dimensions as dimensions_module
from ..gpu.dimensions import Dimensions
from ..prepared import Prepared

FLAVOURS = ("tensorrt", "tensorrt-rtx")
KINDS = (ENCODER_DECODER, DECODER)
RANGES = dimensions_module.DEFAULTS  # of a recipe that names none
SHOWN = ("ATTENTION_INPUT", "KV_CACHE_UPDATE", "PLUGIN_V3", "QUANTIZE", "DEQUANTIZE")  # layers in the summary


def check(bundle: Bundle, recipe: Recipe, prepared: Prepared | None = None) -> None:
    """Raises BuildError, InvalidOption or MissingExtra before any work is done. prepared: what is compiled, if any."""
    from ..gpu import dimensions, options

    if recipe.flavour == "tensorrt" and (missing := libraries.unavailable(recipe.flavour)):
        raise BuildError(_prepare_here(bundle, recipe) if prepared is None else _compile_there(bundle, recipe, missing))
    if prepared is None:
        _require_onnx()
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
        if prepared is None or not _kernels_of(prepared):
            _plugin_module("build").find_nvcc()
    elif not library.has_cache_layer and _has_caches(bundle):
        raise BuildError(
            f"{library.name} {library.version} has no layer for K/V caches; expected one, or our kernels; "
            "set plugins = true in the recipe, or update the library"
        )
    if not library.compiles_ahead_of_time:
        _require_gpu(library, recipe)


def check_prepare(bundle: Bundle, recipe: Recipe) -> None:
    """Raises InvalidOption or MissingExtra before a target is prepared. The target's library is not asked for."""
    from ..gpu import dimensions, options

    _require_onnx()
    try:
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise MissingExtra("onnxruntime", "build", "s2s build --prepare") from error
    options.read(recipe)
    dimensions.check(bundle, recipe)


def version(recipe: Recipe) -> str:
    library = _library(recipe)
    return f"{library.flavour} {library.version}"


def prepare(bundle: Bundle, recipe: Recipe, folder: Path, progress: Callable[[str], None]) -> Prepared:
    """All of a build before the library is needed (../prepared.py): fills `folder`."""
    from ...runtime.backends.onnxruntime import OnnxRuntimeBackend
    from .. import samples, trial
    from ..gpu import expand, options, trtexec

    chosen = options.read(recipe)
    # Operators that some version lacks are written out: which version compiles it is not known here.
    lowered, fitted = _lower(bundle, recipe, folder, progress, tuple(expand.EXPANSIONS))
    notes = [*fitted.notes, *lowered.summary]
    if recipe.plugins:
        progress("compile our kernels")
        try:
            _copy_kernels(recipe, folder)
        except BuildError as error:
            notes.append(f"our kernels are compiled on the device, which needs nvcc there ({error})")
    progress("decode the samples")
    sources, origin = samples.sources(bundle, chosen.n_samples, chosen.samples)
    limits = {"K": fitted.ranges["K"].max, "S": fitted.ranges["S"].max, "T": fitted.target_length}
    count = trial.write(bundle, OnnxRuntimeBackend(bundle, 1), sources, limits, folder / prepared_module.SAMPLES)
    notes.append(f"to compare on the device: {count} of {origin}")
    graphs = _prepared_graphs(lowered)
    notes += trtexec.lines({name: graph["inputs"] for name, graph in graphs.items()}, fitted.ranges, recipe)
    facts = {"lowering": lowered.report, "agreement": lowered.agreement, "summary": notes}
    return prepared_module.write_record(folder, bundle, recipe, graphs, facts)


def build(
    bundle: Bundle,
    recipe: Recipe,
    folder: Path,
    progress: Callable[[str], None],
    prepared: Prepared | None = None,
) -> dict[str, Any]:
    from ...runtime.backends._tensorrt.messages import Messages

    library = _library(recipe)
    if prepared is not None:
        from ..gpu import dimensions

        if recipe.plugins:
            _register_plugins(library)
            progress("copy our kernels")
            _take_kernels(recipe, prepared, folder)
        return _compile(bundle, library, recipe, dimensions.fit(bundle, recipe), prepared, folder, progress)
    if recipe.plugins:
        _register_plugins(library)
        progress("compile our kernels")
        _copy_kernels(recipe, folder)
    with tempfile.TemporaryDirectory(prefix="s2s-build-") as scratch:
        from ..gpu import expand

        lacking = library.lacking(expand.EXPANSIONS, Messages(library).logger)
        lowered, fitted = _lower(bundle, recipe, Path(scratch), progress, lacking)
        facts = {"lowering": lowered.report, "agreement": lowered.agreement, "summary": lowered.summary}
        record = {"graphs": _prepared_graphs(lowered), **facts}
        ready = Prepared(Path(scratch), recipe, record)
        return _compile(bundle, library, recipe, fitted, ready, folder, progress)


def _lower(
    bundle: Bundle, recipe: Recipe, folder: Path, progress: Callable[[str], None], lacking: Collection[str]
) -> tuple[Any, Dimensions]:
    from ..gpu import dimensions, lower, options

    fitted, chosen = dimensions.fit(bundle, recipe), options.read(recipe)
    return lower.lower(bundle, recipe, fitted, chosen, folder, progress, lacking, search=False), fitted


def _prepared_graphs(lowered: Any) -> dict[str, Any]:
    """What prepared.json says of the lowered graphs."""
    from ..gpu.compile import read_calls

    return {
        name: {"file": path.name, **lowered.described[name], "operators": dict(read_calls(path)[0])}
        for name, path in lowered.paths.items()
    }


def try_out(bundle: Bundle, recipe: Recipe, folder: Path, prepared: Prepared) -> dict[str, Any]:
    """Runs the samples on the engine in `folder`, whose engine.json is written; what that record gets besides.

    Raises BuildError where it fails or computes something else.
    """
    from ...runtime.backends._tensorrt.backend import TensorRTBackend
    from ...runtime.cuda import driver
    from .. import trial

    if (reason := driver.unavailable()) is not None:
        return {"has_run": False, "summary": [f"not run here ({reason}); run s2s build on a machine with the GPU"]}
    library = _library(recipe)
    device = driver.device()
    if recipe.compute_capabilities and device.capability not in recipe.compute_capabilities:
        return {"has_run": False, "summary": [f"not run here: this GPU has compute capability {device.capability}"]}
    backend = TensorRTBackend(library.flavour, bundle, folder, library, device)
    found = trial.run(
        bundle, backend, prepared.folder / prepared_module.SAMPLES, backend.engines.record["target_length"]
    )
    return {"has_run": True, "trial": found, "summary": [trial.line(found)]}


def _compile(
    bundle: Bundle,
    library: Library,
    recipe: Recipe,
    fitted: Dimensions,
    ready: Prepared,
    folder: Path,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Lowered graphs to engines in `folder`. Needs no onnx. Returns what engine.json records."""
    from ...runtime.backends._tensorrt import validity
    from ..gpu import options
    from ..gpu.compile import compile_graph

    chosen = options.read(recipe)
    compiled = {}
    for name in GRAPHS:
        progress(f"compile {name}")
        graph = ready.record["graphs"][name]
        compiled[name] = compile_graph(
            library, name, ready.graph_path(name), folder / f"{name}.engine", fitted.ranges, recipe, progress,
            decompose=chosen.decompose_attention,
            calls_and_inputs=(graph["operators"], {entry["name"]: entry["shape"] for entry in graph["inputs"]}),
        )  # fmt: skip
        if recipe.plugins:
            _check_plugins(name)
    facts = {
        name: {
            "file": f"{name}.engine",
            "inputs": ready.record["graphs"][name]["inputs"],
            "outputs": ready.record["graphs"][name]["outputs"],
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
        "lowering": ready.record["lowering"],
        "agreement": ready.record["agreement"],
        "summary": [*fitted.notes, *_measured(ready), *_summary(compiled)],
    }


def _measured(ready: Prepared) -> list[str]:
    """What the lowering measured; from a prepared folder without what concerned the other machine."""
    if "files" not in ready.record:
        return list(ready.record["summary"])
    best = ready.record["agreement"].get("best_token")
    where = "compiled from what was prepared"
    return [where if best is None else f"{where}: fp32's best token in {best:.1%} of rows on a CPU"]


def _prepare_here(bundle: Bundle, recipe: Recipe) -> str:
    return (
        f"target '{recipe.name}' is compiled on the machine that runs it, and TensorRT is not here; prepare here and "
        f"compile there; run here: s2s build {bundle.path} --prepare {recipe.name}, copy the bundle to the "
        f"device, and run there: s2s build {bundle.path.name} --target {recipe.name}"
    )


def _compile_there(bundle: Bundle, recipe: Recipe, missing: str) -> str:
    return (
        f"target '{recipe.name}' is prepared; copy the bundle to the device, and run there: s2s build "
        f"{bundle.path.name} --target {recipe.name}; if this is the device: {missing}"
    )


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
        raise MissingExtra("onnx", "build", "s2s build for a GPU") from error


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
    _plugin_module("glue.parser_library").ensure_parser_can_load_plugins(library.trt)
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
    here = driver.device().cuda_release if driver.unavailable() is None else None
    for name in sorted({operation.folder for operation in _plugin_module("").operations().values()}):
        shutil.copyfile(compiler.fatbin(name, known or compiler.ARCHITECTURES, here), folder / f"{name}.fatbin")


def _kernels_of(prepared: Prepared) -> list[str]:
    return [name for name in prepared.record["files"] if name.endswith(".fatbin")]


def _take_kernels(recipe: Recipe, prepared: Prepared, folder: Path) -> None:
    names = _kernels_of(prepared)
    if not names:
        _copy_kernels(recipe, folder)
    for name in names:
        shutil.copyfile(bundles.inside(prepared.folder, name), folder / name)


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
