"""A lowered graph -> an engine: parse, check the layers, build, with progress and Ctrl-C.

TensorRT is asked to compute each attention with one kernel. If it has no kernel for a head size or type, it may compute
that attention with separate products. This is correct but slower, so the result reports it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import BuildError
from ...recipes import Range, Recipe
from ...runtime.backends._tensorrt.library import Library
from ...runtime.backends._tensorrt.messages import Messages, shortened
from . import gates

NO_KERNEL = "not supported by a dedicated kernel"
LOOPS = {"LSTM", "GRU", "RNN", "Loop", "Scan"}  # operators whose memory is known only at run time
Progress = Callable[[str], None]


@dataclass
class Compiled:
    """An engine in `path`: its bytes, its layers by type before fusion, how many attentions are separate products."""

    path: Path
    n_bytes: int
    seconds: float
    layers: dict[str, int]
    decomposed: int
    warnings: list[str] = field(default_factory=list)


def compile_graph(
    library: Library,
    name: str,
    onnx_path: Path,
    engine_path: Path,
    ranges: Mapping[str, Range],
    recipe: Recipe,
    progress: Progress,
    *,
    decompose: bool = True,
    calls_and_inputs: tuple[Mapping[str, int], Mapping[str, list[int | str]]] | None = None,
) -> Compiled:
    """Build the engine of one graph. ranges: by letter. decompose: allow attention by separate products.
    calls_and_inputs: what `read_calls` says of the graph, where that is known; reading it needs onnx.

    Raises BuildError with the library's reason, KeyboardInterrupt when the user cancels.
    """
    begin = time.perf_counter()
    messages = Messages(library)
    calls, inputs = calls_and_inputs or read_calls(onnx_path)
    for taken_apart in (False, True):
        messages.clear()
        builder = library.trt.Builder(messages.logger)
        if builder is None:
            raise BuildError(f"{library.name} made no builder ({messages.last_error()}); is its GPU driver working?")
        network = library.create_network(builder)
        native = _parse(library, name, onnx_path, network, messages)
        expected = gates.expected_layers(calls, native, library, recipe.plugins)
        layers = gates.check(name, network, messages, expected)
        attentions = gates.attentions(network, library)
        if taken_apart:
            for attention in attentions:
                attention.decomposable = True
        config = _config(library, builder, recipe, inputs, ranges)
        if not LOOPS & calls.keys():
            library.require_user_allocation(config)
        with contextlib.nullcontext() if taken_apart else quiet():
            engine = _build(library, name, builder, network, config, messages, progress)
        if engine is not None:
            gates.check_inputs(name, messages)
            break
        reason = messages.last_error()
        lacks_kernel = any(NO_KERNEL in text for text in messages.errors)
        if taken_apart or not lacks_kernel or not decompose or not attentions:
            raise BuildError(_why(library, name, reason, lacks_kernel, recipe))
    engine_path.write_bytes(engine)
    size = engine_path.stat().st_size
    seconds = round(time.perf_counter() - begin, 3)
    return Compiled(engine_path, size, seconds, layers, len(attentions) if taken_apart else 0, messages.remarkable[:20])


def _why(library: Library, name: str, reason: str, lacks_kernel: bool, recipe: Recipe) -> str:
    if lacks_kernel:
        todo = "set decompose_attention = true under [options], or plugins = true"
    elif "workspace" in reason.lower() or "memory" in reason.lower():
        todo = f"raise workspace_mib (now {recipe.workspace_mib}), or lower the ranges"
    else:
        todo = "change the recipe, or report this graph"
    return f"{name}: {library.name} {library.version} can't build the engine ({reason}); {todo}"


def read_calls(onnx_path: Path) -> tuple[Counter[str], dict[str, list[int | str]]]:
    """How many nodes of each type a graph has; the shape of each input in letters and numbers."""
    import onnx

    model = onnx.load_model(onnx_path, load_external_data=False)
    calls = Counter(node.op_type for node in model.graph.node)
    inputs = {
        value.name: [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in model.graph.input
    }
    return calls, inputs


def _parse(library: Library, name: str, path: Path, network: Any, messages: Messages) -> set[str]:
    """Fills `network`. Returns those of our functions that the parser replaces by native layers."""
    parser = library.trt.OnnxParser(network, messages.logger)
    if parser.parse_from_file(str(path)):
        return gates.natives(parser)
    reasons = []
    for i in range(parser.num_errors):
        error = parser.get_error(i)
        reasons.append(f"{error.node_operator() or 'graph'} '{error.node_name()}': {shortened(error.desc(), 200)}")
    raise BuildError(
        f"{name}: {library.name} {library.version} can't read the graph "
        f"({'; '.join(reasons) or messages.last_error()}); "
        "update the library, or build a target of another flavour"
    )


def _config(library: Library, builder: Any, recipe: Recipe, inputs: Any, ranges: Mapping[str, Range]) -> Any:
    """A configuration with one profile for all shapes: a second one would double the engine's size."""
    config = builder.create_builder_config()
    library.set_workspace(config, recipe.workspace_mib)
    library.set_compute_capabilities(config, recipe.compute_capabilities)
    if recipe.plugins:
        library.allow_aliased_plugins(config)
    config.profiling_verbosity = library.trt.ProfilingVerbosity.DETAILED
    profile = builder.create_optimization_profile()
    for name, shape in inputs.items():
        if any(isinstance(size, str) for size in shape):
            profile.set_shape(name, *profile_shapes(shape, ranges))
    config.add_optimization_profile(profile)
    return config


def profile_shapes(shape: list[int | str], ranges: Mapping[str, Range]) -> list[list[int]]:
    """min, opt and max of one input's shape."""
    if missing := [size for size in shape if isinstance(size, str) and size not in ranges]:
        raise BuildError(
            f"no range for {', '.join(missing)}; expected one of {', '.join(sorted(ranges))}; export again"
        )
    return [
        [getattr(ranges[size], bound) if isinstance(size, str) else size for size in shape]
        for bound in ("min", "opt", "max")
    ]


def _build(
    library: Library, name: str, builder: Any, network: Any, config: Any, messages: Messages, progress: Progress
) -> Any:
    """The engine's bytes or None. Ctrl-C ends the build at its next step."""
    cancelled = threading.Event()
    monitor = None
    if library.reports_progress:
        monitor = make_monitor(library.trt, name, progress, cancelled)
        config.progress_monitor = monitor
    try:
        with _interrupts(cancelled):
            return builder.build_serialized_network(network, config)
    except RuntimeError as error:
        messages.add("ERROR", str(error))
        return None
    finally:
        if cancelled.is_set():
            raise KeyboardInterrupt


def make_monitor(trt: Any, name: str, progress: Progress, cancelled: threading.Event) -> Any:
    """A monitor that reports each phase as it begins, but not phases within a phase."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.lock = threading.Lock()
            self.told: set[str] = set()

        def phase_start(self, phase: str, parent: str | None, n_steps: int) -> None:
            with self.lock:
                if parent is None and phase not in self.told:
                    self.told.add(phase)
                    progress(f"{name}: {phase.lower()}")

        def step_complete(self, phase: str, step: int) -> bool:
            return not cancelled.is_set()

        def phase_finish(self, phase: str) -> None:
            pass

    return Monitor()


@contextlib.contextmanager
def _interrupts(cancelled: threading.Event) -> Iterator[None]:
    """Lets Ctrl-C set `cancelled` at once; Python itself would wait until the library returns."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    old = signal.signal(signal.SIGINT, lambda number, frame: cancelled.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, old)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hides what TensorRT's compiler writes to the process's stderr past its logger. Python's own stderr is kept."""
    saved = os.dup(2)
    ours, own = sys.stderr, None
    try:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            if ours.fileno() == 2:
                own = sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        sys.stderr = ours
        if own is not None:
            own.close()
