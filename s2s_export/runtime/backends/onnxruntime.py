"""ONNX Runtime on the CPU: the default that works on every machine.

It runs the bundle's own graphs, or those of an engine that `s2s build` made for a CPU. An engine may have several
decoder steps: one with `max_rows` serves batches of at most so many rows, and is opened when there is such a batch.

Graphs whose operators are all our own, or nearly, are called without ONNX Runtime (native_graphs), which is imported
when a graph needs it.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import threading
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from ... import plugin_sources
from ...bundle import PREFILL, Bundle, Tensor, difference, inside, output_of
from ...engines import PORTABLE, RECORD, folder_of, read, rebuild, refuse_stale, why_no_engine
from ...engines import names as engine_names
from ...errors import BackendError, BackendUnavailable, BuildError, BundleError, EngineError, InvalidOption
from ...schema import shown
from .. import cores, free_memory
from ..decoding.state import DecodeState, Ints, StepQuery, StepResult
from ..native_graphs import NativeGraph, NativeGraphs
from ..sources import Source, kind_of
from ._declaration import Declaration
from ._open_attention import AttentionBatch, OwnSteps
from ._open_recurrent import RecurrentBatch, why_whole_batches
from ._recurrent import RecurrentState
from ._slots import Ancestors, Positions, Slots

NAME = "onnxruntime"
FLAVOURS = ("cpu",)
DEFAULT = "cpu-fp32"  # used when it is built and no target is named: its numbers are those of the portable graphs
WEIGHTS = "weights.bin"  # of an engine that brings its own
OF_SOURCE = ("encoder", "cross_kv_init")  # graphs that run once for each source; an encoder's bundle has the first
OLDEST = (1, 25)  # the first ONNX Runtime whose CPU kernels include TensorScatter-24
# ONNX Runtime's names of types.
DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(bfloat16)": "bfloat16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(bool)": "bool",
}
# What ONNX Runtime, its allocator and the dynamic loader say where memory, or room for a thread's stack, is short.
NO_ROOM = (
    "failed to map segment", "annot allocate memory", "bad_alloc", "bad allocation", "Failed to allocate memory",
    "PosixThread",
)  # fmt: skip
# docs/reliability.md: in how much the smallest bundle was opened and decoded.
ROOM = (
    "free some, or raise the limit on this process (400 MB of address space, `ulimit -v`, are the least that was tried)"
)
LEAST_ROOM = 225 << 20  # bytes of address space: what importing it and opening the smallest bundle took
PLACING = "a position and a place for each source"  # the pass of building/cpu/own/placing.py
QUIET = 4  # ONNX Runtime's log level: what ends the process. Errors are raised too, and told once, in our sentence


def unavailable() -> str | None:
    # Where it can't allocate a few bytes for a thread, the C library ends the process: so the room is looked at before.
    left = free_memory.left_of_process() if "onnxruntime" not in sys.modules else None
    if left is not None and left < LEAST_ROOM:
        return f"there is not enough memory to load onnxruntime; {ROOM}"
    try:
        version = installed_version()
    except ImportError as error:
        return _not_imported(error)
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        return (
            f"ONNX Runtime {version} does not run opset 24, expected {OLDEST[0]}.{OLDEST[1]} or newer; "
            "pip install -U onnxruntime (its packages for Python 3.10 end before that: use Python 3.11 or newer)"
        )
    return None


def broken() -> str | None:
    try:
        import onnxruntime  # noqa: F401
    except ImportError as error:
        return _not_imported(error)
    return None


def _not_imported(error: ImportError) -> str:
    if _lacks_memory(error):
        return f"there is not enough memory to load onnxruntime; {ROOM}"
    return f"onnxruntime can't be imported ({error}); pip install onnxruntime"


def installed_version() -> str:
    """Of the installed ONNX Runtime, without importing its 20 MB where that can be avoided. Raises ImportError."""
    if "onnxruntime" not in sys.modules:
        spec = importlib.util.find_spec("onnxruntime")
        if spec is None:
            raise ImportError("No module named 'onnxruntime'")
        if spec.origin and (
            found := re.search(r'^__version__ = "([^"]+)"', Path(spec.origin).read_text("utf-8"), re.M)
        ):
            return found[1]
    import onnxruntime

    return str(onnxruntime.__version__)


def incompatible_reason(bundle: Bundle, target: str | None) -> str | None:
    """Any bundle's own graphs will do; of a target there must be an engine."""
    return None if target in (None, PORTABLE) else why_no_engine(bundle, target, FLAVOURS, (PORTABLE,))


def open(bundle: Bundle, target: str | None = None, threads: int | None = None) -> OnnxRuntimeBackend:
    """threads: of one call, see cores.threads_for."""
    if threads is not None and threads < 1:
        raise InvalidOption(f"threads is {threads}; expected at least 1")
    return OnnxRuntimeBackend(bundle, cores.threads_for(threads, bundle.n_bytes), *_choose(bundle, target))


def _choose(bundle: Bundle, target: str | None) -> tuple[Mapping[str, Any] | None, Path | None]:
    """engine.json and folder of the target's engine, by default that of DEFAULT; none for the portable graphs."""
    name = target or (DEFAULT if DEFAULT in engine_names(bundle) else PORTABLE)
    if name == PORTABLE:
        return None, None
    folder = folder_of(bundle, name)
    engine = read(folder)
    refuse_stale(bundle, folder, engine, library=f"onnxruntime {installed_version()}")
    return engine, folder


class OnnxRuntimeBackend:
    """A bundle's graphs, as sessions or called directly. Threads share them; every decode has buffers of its own.

    engine, folder: engine.json and where it lies; the bundle's own graphs without them. prepack: whether weights are
    laid out anew for the kernels, which costs their size in memory; without it a step is many times slower. spin:
    whether threads that wait for work go on computing: they begin sooner, and take a core that others may want.
    """

    name = NAME

    def __init__(
        self,
        bundle: Bundle,
        threads: int,
        engine: Mapping[str, Any] | None = None,
        folder: Path | None = None,
        *,
        prepack: bool = True,
        spin: bool = False,
    ) -> None:
        self.bundle = bundle
        self.kind = kind_of(bundle)
        self.threads = threads
        self.target = engine["target"] if engine and "target" in engine else None
        self.graphs: Mapping[str, Any] = engine["graphs"] if engine else bundle.manifest["graphs"]
        self._folder = folder or bundle.path
        self.weights = self._folder if engine and engine["weights"] == "engine" else bundle.path
        self._prepack = prepack
        self.spin = spin
        passes = (engine or {}).get("passes", {}).get("decoder_step", [])
        self._left = [reason for done in passes if done.get("pass") == PLACING for reason in done.get("left", ())]
        operators = engine.get("operators") if engine else None
        self.operators = _operators(self._folder, operators["sources"]) if operators else None
        self._lock = threading.Lock()
        steps = [name for name in self.graphs if name.startswith("decoder_step")]
        self._steps = sorted(steps, key=self._max_rows)
        self._sessions: dict[str, Any] = {}
        self.natives = NativeGraphs(self.operators, self.weights, threads)
        self._compared: set[str] = set()  # those of `natives` that were opened, and are as described
        self.shared = _map_shared(self.weights / WEIGHTS, engine.get("shared") or {}) if engine else {}
        # The largest first: while a session is opened its weights are in memory twice.
        self._of_source = [name for name in OF_SOURCE if name in self.graphs]
        for name in (*(self._steps if len(self._steps) == 1 else ()), *self._of_source):
            if self.native(name) is None:
                self.session(name)

    def native(self, name: str) -> NativeGraph | None:
        """A graph that is called without ONNX Runtime, or None where that has to run it: `natives.why_not`."""
        if name in self._compared:
            return self.natives.opened(name)
        found = self.natives.get(name, self.file_of(name), self.graphs[name], self.shared.get(name))
        if found is not None:
            self._refuse_difference(name, found.inputs, found.outputs)
        self._compared.add(name)
        return found

    def session(self, name: str) -> Any:
        """The session of a graph, opened when it is first wanted."""
        with self._lock:
            if name not in self._sessions:
                path = self.file_of(name)
                session = open_session(
                    path, self.weights, self.threads, self._prepack, self.operators, self.shared.get(name), self.spin
                )
                self._refuse_difference(name, *tensors_of(session))
                self._sessions[name] = session
            return self._sessions[name]

    def _refuse_difference(self, name: str, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> None:
        # Whichever decoder step serves a batch is fed as the first is described.
        for graph in {name, "decoder_step"} if name in self._steps else {name}:
            refuse_difference(self.file_of(name), self.graphs[graph], inputs, outputs)

    def release_steps(self) -> None:
        """Close the decoder steps, for whoever decodes with others; one opens again when it is wanted."""
        with self._lock:
            for name in self._steps:
                self._sessions.pop(name, None)

    def release_graphs(self) -> None:
        """Close all graphs, for whoever decodes elsewhere; one opens again when it is wanted."""
        with self._lock:
            self._sessions.clear()
            self._compared.clear()
            self.natives.clear()

    def step_for(self, n_rows: int) -> Any:
        """The session of the decoder step for so many rows."""
        return self.session(self.step_name(n_rows))

    def file_of(self, name: str) -> Path:
        """Where a graph lies."""
        return inside(self._folder, self.graphs[name]["file"])

    def step_name(self, n_rows: int) -> str:
        """The graph of the decoder step for so many rows."""
        name: str = next(name for name in self._steps if n_rows <= self._max_rows(name))
        return name

    def _max_rows(self, name: str) -> float:
        return float(self.graphs[name].get("max_rows", float("inf")))

    @property
    def has_prefill(self) -> bool:
        return PREFILL in self.graphs

    def prefill(self, values: Mapping[str, Any], tokens: Ints) -> dict[str, Any]:
        """Keys and values of a prompt's tokens [B,P], by the names of the decoder step's caches: [B,H,P,D].

        values: inputs of the decoder step by name."""
        entry = self.graphs[PREFILL]
        feed = {one["name"]: tokens if one["name"] == "tokens" else values[one["name"]] for one in entry["inputs"]}
        names = [one["name"] for one in entry["outputs"]]
        found = self.run(PREFILL, names, feed)
        return {name.replace("prompt_", "self_"): value for name, value in zip(names, found, strict=True)}

    def encode(self, sources: Sequence[Source]) -> dict[str, Any]:
        """Inputs and outputs of the graphs that run once for each source, by name."""
        values = self.kind.prepare(sources)
        for name in self._of_source:
            wanted = {entry["name"]: values[entry["name"]] for entry in self.graphs[name]["inputs"]}
            names = [entry["name"] for entry in self.graphs[name]["outputs"]]
            values.update(zip(names, self.run(name, names, wanted), strict=True))
        return values

    def run(self, name: str, names: list[str], feed: dict[str, Any]) -> list[Any]:
        """These outputs of a graph that runs once for a batch. Raises BackendError."""
        graph = self.native(name)
        if graph is None:
            return run(self.session(name), names, feed)
        try:
            return graph.run(names, feed)
        except (RuntimeError, MemoryError) as error:
            if isinstance(error, MemoryError) or _lacks_memory(error):
                raise _failure(f"the graph {name}", error) from error
            raise BackendError(f"the graph {name} failed ({_first_line(error)}); build the engine again") from error

    def begin(self, sources: Sequence[Source], n_beams: int) -> DecodeState:
        return self.start(self.encode(sources), n_beams)

    def why_no_open_batch(self) -> str | None:
        """Why sources can't join a batch that is being decoded, in one sentence, or None."""
        inputs = {entry["name"] for entry in self.graphs["decoder_step"]["inputs"]}
        if self._is_recurrent:
            return why_whole_batches(self.graphs["decoder_step"])
        if "places" in inputs:
            return None
        build = f"s2s build {self.bundle.path} --target {self.target or DEFAULT}"
        if self.target is None:
            return f"the portable graphs have one position for all sources of a batch; run: {build}"
        if self.operators is None:
            return f"the engine '{self.target}' has ONNX Runtime's kernels, which have one position for a batch"
        if self._left:
            return f"the engine '{self.target}' has one position for all sources of a batch, as {self._left[0]}"
        return f"the engine '{self.target}' was built when a batch had one position for all; run: {build} --force"

    def open_batch(self, n_beams: int, n_places: int, steps: OwnSteps | None = None) -> AttentionBatch | RecurrentBatch:
        """A batch without sources, for at most n_places of them at a time. See decoding/joining.py.

        steps: makes the steps of a Transformer without ONNX Runtime.
        """
        kind = RecurrentBatch if self._is_recurrent else partial(AttentionBatch, steps=steps)
        return kind(
            partial(self.step_for, n_beams * n_places),
            self.graphs["decoder_step"],
            n_beams,
            n_places,
            self.bundle.vocabulary_size,
            self.bundle.max_target_length,
            _failure,
        )

    @property
    def _is_recurrent(self) -> bool:
        return bool(self.bundle.manifest["decoder"] == "recurrent")

    def start(self, values: dict[str, Any], n_beams: int) -> DecodeState:
        """A batch's first step, from what `encode` gave."""
        if self._is_recurrent:
            return RecurrentState(
                self.step_for,
                self.graphs["decoder_step"],
                values,
                n_beams,
                self.bundle.vocabulary_size,
                self.bundle.max_target_length,
            )
        return OnnxRuntimeState(self, values, n_beams)


def _map_shared(path: Path, shared: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Weights that several graphs read, mapped once, by graph and name."""
    mapped: dict[int, Any] = {}
    found: dict[str, dict[str, Any]] = {name: {} for name in shared}
    for name, weights in shared.items():
        for weight, at in weights.items():
            if at["offset"] not in mapped:
                try:
                    array = np.memmap(path, at["dtype"], "r", at["offset"], tuple(at["shape"]))
                except (OSError, ValueError, TypeError, OverflowError) as error:
                    raise EngineError(
                        f"{path.parent}/{RECORD}: shared.{name}.{weight} is not in {path.name} ({error}); "
                        f"{rebuild(path.parent, {})}"
                    ) from error
                mapped[at["offset"]] = array
            found[name][weight] = mapped[at["offset"]]
    return found


def _operators(folder: Path, sources: str) -> Path:
    """The package's library of the operators that an engine's graphs use, compiled where the package brings none.

    Raises EngineError where the package has other operators, BackendUnavailable where they can't be compiled here.
    """
    maker = plugin_sources.module("cpu.build")
    if sources not in (maker.sources(), *maker.EARLIER):
        raise EngineError(
            f"{folder}: was built for operators {shown(sources)}, and this s2s-export has {maker.sources()}; "
            f"run: s2s build {folder.parent.parent} --target {folder.name} --force"
        )
    try:
        return Path(maker.library())
    except BuildError as error:
        raise BackendUnavailable(
            f"{folder}: its operators come with a wheel of s2s-export for this platform or are compiled, and here is "
            f"{str(error).splitlines()[0].removesuffix('; it said:')}; or choose target 'portable'"
        ) from error


def open_session(
    path: Path,
    weights: Path,
    threads: int,
    prepack: bool = True,
    operators: Path | None = None,
    shared: Mapping[str, Any] | None = None,
    spin: bool = False,
) -> Any:
    """weights: the folder that holds the file of weights, which a graph names without a folder. operators: a library
    of our own operators that the graph uses. shared: weights that are in memory, by name.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendUnavailable(_not_imported(error)) from error

    onnxruntime.set_default_logger_severity(QUIET)  # of what belongs to no session, such as the allocator
    options = onnxruntime.SessionOptions()
    options.log_severity_level = QUIET
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.fsencode(weights))
    values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in (shared or {}).items()}
    for name, value in values.items():
        options.add_initializer(name, value)
    if not prepack:
        options.add_session_config_entry("session.disable_prepacking", "1")
    if operators is not None:
        try:
            options.register_custom_ops_library(str(operators))
        except Exception as error:
            raise EngineError(
                f"{operators}: can't be loaded ({_first_line(error)}), expected the package's operators for this "
                "machine; delete the file and they are compiled again, or choose target 'portable'"
            ) from error
    try:
        # Without its fallback, which tries the same again and prints to stdout that it does.
        session = onnxruntime.InferenceSession(
            path.read_bytes(), options, providers=["CPUExecutionProvider"], enable_fallback=0
        )
        session.s2s_shared = values  # which it reads as long as it lives
        return session
    except Exception as error:  # its exceptions have no common base but Exception
        if _lacks_memory(error):
            raise BackendError(f"{path}: there is not enough memory to open it; {ROOM}") from error
        raise BundleError(
            f"{path}: ONNX Runtime {onnxruntime.__version__} can't load it ({_first_line(error)})"
        ) from error


def tensors_of(session: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The inputs and outputs of a session's graph, by name."""
    inputs, outputs = (
        {value.name: Tensor(DTYPES.get(value.type, value.type), value.shape) for value in values}
        for values in (session.get_inputs(), session.get_outputs())
    )
    return inputs, outputs


def refuse_difference(
    path: Path, described: Mapping[str, Any], inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]
) -> None:
    """Raises BundleError where a graph's inputs and outputs are not as the manifest or engine.json describes them."""
    if reason := difference(described, inputs, outputs):
        raise BundleError(f"{path}: {reason}; export the bundle again, or build the target again")


def run(session: Any, names: list[str], feed: dict[str, Any]) -> list[Any]:
    try:
        return list(session.run(names, feed))
    except Exception as error:
        raise _failure("a graph", error) from error


def _failure(where: str, error: Exception) -> BackendError:
    if _lacks_memory(error):
        return BackendError(
            f"out of memory in {where}; use a smaller batch size, fewer beams or a shorter source "
            f"({_first_line(error)})"
        )
    return BackendError(f"ONNX Runtime failed in {where} ({_first_line(error)})")


def step_failure(error: Exception) -> BackendError:
    """What to raise for an error of ONNX Runtime in a decoder step."""
    return _failure("the decoder step", error)


def _lacks_memory(error: Exception) -> bool:
    return any(words in str(error) for words in NO_ROOM)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300]


class OnnxRuntimeState:
    """One batch in flight. Step inputs live in numpy arrays that ONNX Runtime reads in place.

    Buffers (letters of docs/architecture.md): token, position, what says which slots a beam sees (_slots.py),
    n_candidates, probe_ids, and the caches self_key.l / self_value.l, updated in place.

    listed: the tokens [W], ascending, that a graph with a shortlist gives out by their places; None for all tokens.
    """

    listed: Ints | None = None

    def __init__(self, backend: OnnxRuntimeBackend, values: dict[str, Any], n_beams: int) -> None:
        self.backend = backend
        self.vocabulary_size = backend.bundle.vocabulary_size
        self.n_beams = n_beams
        self._inputs = {entry["name"]: entry for entry in backend.graphs["decoder_step"]["inputs"]}
        self._outputs = {entry["name"]: entry for entry in backend.graphs["decoder_step"]["outputs"]}
        self._limit = backend.bundle.max_target_length
        self._step = 0
        mask = values["source_mask"]
        self.n_sources = int(mask.shape[0])
        # Kept when the batch shrinks: which kernel computes a step should not depend on when others finish.
        self.first_rows = self.n_sources * n_beams
        self._values: Mapping[str, Any] = values
        self._fixed = {name: value for name, value in values.items() if name in self._inputs}
        self._caches = [name for name in self._inputs if output_of(name) in self._outputs]
        self._letters = {"B": self.n_sources, "P": self.n_sources, "K": n_beams, "S": int(mask.shape[1])}
        self._buffers: dict[str, Any] = {}
        self._bindings: dict[tuple[int, int, bool, bool], tuple[Any, dict[str, Any]]] = {}
        self._table = self._form()(self.n_sources, n_beams, self._limit)
        self._count_slots()
        self._allocate_rows()
        for name in self._caches:
            entry = self._inputs[name]
            self._buffers[name] = self._table.new(self._shape(entry), entry["dtype"])

    @cached_property
    def _session(self) -> Any:
        return self.backend.step_for(self.first_rows)

    def _form(self) -> type[Slots | Ancestors]:
        """How the graph wants its caches kept."""
        if "self_mask" in self._inputs:
            return Slots
        has_positions_first = any(self._inputs[name]["shape"][0] == "C" for name in self._caches)
        return Positions if has_positions_first else Ancestors

    def _count_slots(self) -> None:
        self._letters["N"] = self._table.n_slots
        self._letters["C"] = self._table.n_slots // self.n_beams

    def prefill(self, tokens: Ints) -> bool:
        """See `decoding.state.Prefills`."""
        n = tokens.shape[1]
        if self._step or not self.backend.has_prefill or (self._limit is not None and n >= self._limit):
            return False
        found = self.backend.prefill(self._values, tokens)
        self._values = {}
        self._table.begin(n)
        self._count_slots()
        for name in self._caches:
            entry = self._inputs[name]
            self._buffers[name] = self._table.new(self._shape(entry), entry["dtype"])
            self._table.place(self._buffers[name], found[name])
        self._bindings.clear()
        self._step = n
        return True

    def step(self, tokens: Ints, parents: Ints, query: StepQuery) -> StepResult:
        t = self._step
        if not t:
            self._values = {}  # what only a prompt would have needed
        if self._limit is not None and t >= self._limit:
            raise self.no_position(t)
        if self._table.is_full:
            self.make_room()
        buffers = self._buffers
        buffers["token"][...] = tokens
        if "position" in buffers:
            buffers["position"][...] = t
        self._table.follow(parents)
        n_probes = 0 if query.probe_ids is None else query.probe_ids.shape[2]
        key = (query.n_candidates, n_probes, query.dense, query.attention)
        binding, out = self._bindings.get(key) or self._bind(key)
        if query.probe_ids is not None and n_probes:
            out["probe_ids"][...] = query.probe_ids
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:
            raise step_failure(error) from error
        self._step = t + 1
        return StepResult(
            candidate_ids=out["candidate_ids"],
            candidate_log_probs=out["candidate_log_probs"],
            log_normalizer=out["log_normalizer"],
            probe_log_probs=out["probe_log_probs"] if n_probes else None,
            log_probs=out.get("log_probs"),
            attention=out.get("attention"),
        )

    def keep(self, sources: Ints) -> None:
        self.n_sources = len(sources)
        self._letters["B"] = self._letters["P"] = self.n_sources
        self._fixed = {name: np.ascontiguousarray(value[sources]) for name, value in self._fixed.items()}
        for name in self._caches:
            self._buffers[name] = self._table.kept(self._buffers[name], sources)
        self._table.keep(sources)
        self._allocate_rows()
        self._bindings.clear()

    # What follows is for whoever makes the steps without `step`, in the memory of this state: native_search/loop.py.

    @property
    def inputs(self) -> list[str]:
        """The names of the graph's inputs."""
        return list(self._inputs)

    @property
    def caches(self) -> list[str]:
        return self._caches

    @property
    def limit(self) -> int | None:
        return self._limit

    def tensors(self) -> dict[str, Any]:
        """Every input but those of a query, by name: the same memory until `make_room` or `keep`."""
        wanted = {"want_log_probs": np.array(False), "want_attention": np.array(False)}
        found = {**self._fixed, **self._buffers, **self._table.inputs, **wanted}
        return {name: found[name] for name in self._inputs if name in found}

    def made_steps(self, n_positions: int) -> None:
        """So many positions are written by now."""
        self._step = n_positions
        if isinstance(self._table, Ancestors):
            self._table.made_steps(n_positions)

    def no_position(self, t: int) -> BackendError:
        return BackendError(f"the decoder has no position {t}: the model's limit is {self._limit} tokens")

    def make_room(self) -> None:
        self._table.make_room()
        self._count_slots()
        for name in self._caches:
            self._buffers[name] = self._table.move(self._buffers[name])
        self._bindings.clear()

    def _shape(self, entry: Any) -> list[int]:
        return [self._letters[size] if isinstance(size, str) else size for size in entry["shape"]]

    def _allocate_rows(self) -> None:
        """Buffers of what a step says about its sources."""
        for name in ("token", "position", "places"):
            if name in self._inputs:
                entry = self._inputs[name]
                self._buffers[name] = np.zeros(self._shape(entry), dtype=entry["dtype"])
        if "places" in self._buffers:
            self._buffers["places"][:] = np.arange(self.n_sources)

    def _bind(self, key: tuple[int, int, bool, bool]) -> tuple[Any, dict[str, Any]]:
        """Bind every input and the wanted outputs for one kind of query; reused until a buffer changes."""
        from onnxruntime import OrtValue

        n_candidates, n_probes, dense, attention = key
        if n_candidates > self.vocabulary_size:
            raise BackendError(f"{n_candidates} candidates wanted of a vocabulary of {self.vocabulary_size}")
        self._letters |= {"M": n_candidates, "Q": max(1, n_probes)}
        session = self._session
        binding = session.io_binding()
        inputs = {
            **self._fixed,
            **self._buffers,
            **self._table.inputs,
            "n_candidates": np.array([n_candidates], dtype=np.int64),
            "probe_ids": np.zeros((self.n_sources, self.n_beams, max(1, n_probes)), dtype=np.int64),
            "want_log_probs": np.array(dense),
            "want_attention": np.array(attention),
        }
        values = {name: OrtValue.ortvalue_from_numpy(inputs[name]) for name in self._inputs}
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
        out: dict[str, Any] = {"probe_ids": inputs["probe_ids"], "n_candidates": inputs["n_candidates"]}
        wanted = ["candidate_ids", "candidate_log_probs", "log_normalizer", "probe_log_probs"]
        wanted += ["log_probs"] if dense else []
        wanted += ["attention"] if attention and "attention" in self._outputs else []
        for name in wanted:
            entry = self._outputs[name]
            out[name] = np.empty(self._shape(entry), dtype=entry["dtype"])
            binding.bind_ortvalue_output(name, OrtValue.ortvalue_from_numpy(out[name]))
        for name in self._caches:
            binding.bind_ortvalue_output(output_of(name), values[name])  # the same memory: updated in place
        out["_keep_alive"] = (inputs, values)
        self._bindings[key] = (binding, out)
        return binding, out


BACKEND = Declaration(
    name=NAME,
    preference=40,
    flavours=FLAVOURS,
    runs_portable_graphs=True,
    computes_on_cores=True,
    unavailable=unavailable,
    incompatible_reason=incompatible_reason,
    open=open,
    broken=broken,
)
