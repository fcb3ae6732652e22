"""ONNX Runtime on an NVIDIA GPU: the graphs of target `cuda-fp16`, or the bundle's own. Everything stays on the device.

The search on the device (_cuda_step.py) is the default. With the host's, a step uploads tokens, position and the
ancestor table, and brings back the best tokens that the graph found. Caches are updated in place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...bundle import GRAPHS, Bundle, inside, output_of
from ...engines import PORTABLE, folder_of, read, refuse_stale, targets_of, why_no_engine
from ...errors import BackendError, EngineError, InvalidOption
from ..cuda import device as cuda
from ..cuda.emulation import HostDevice
from ..decoding.ancestors import AncestorTable
from ..decoding.state import NO_ATTENTION, DecodeState, Ints, StepQuery, StepResult
from ..device_search.loop import NO_WHILE, Mode
from ..device_search.searcher import DeviceSearcher
from ..device_search.step_executor import incompatible_reason as search_incompatible_reason
from ..sources import Source, kind_of
from ._cuda_step import CudaSlotFactory
from ._declaration import Declaration
from .onnxruntime import refuse_difference, tensors_of

NAME = "onnxruntime-cuda"
SEARCH = "on the device, of recurrent models on the host"
FLAVOURS = ("cuda",)
PROVIDER = "CUDAExecutionProvider"
# TF32 rounds the factors of fp32 products to 10 bits. ONNX Runtime uses it by default, and scores were up to 0.035 off.
PROVIDER_OPTIONS: dict[str, dict[str, str]] = {"cuda": {"use_tf32": "0"}, "cpu": {}}
PIP = "pip uninstall onnxruntime, then pip install 's2s-export[cuda]'"
FIRST_CAPACITY = 64  # positions a cache has room for at first
GROWTH = 2  # a full cache grows by this factor; large, since growing copies it through the host
QUIET = 3  # ONNX Runtime's log level: errors only


def unavailable() -> str | None:
    from ..cuda import driver as memory

    try:
        import onnxruntime
    except ImportError as error:
        return f"onnxruntime-gpu can't be imported ({error}); {PIP}"
    if PROVIDER not in onnxruntime.get_available_providers():
        return f"this onnxruntime {onnxruntime.__version__} has no {PROVIDER}; {PIP}"
    return memory.unavailable()


def incompatible_reason(bundle: Bundle, target: str | None) -> str | None:
    """Any bundle's own graphs will do; of a target there must be an engine."""
    return None if target in (None, PORTABLE) else why_no_engine(bundle, target, FLAVOURS)


def open(bundle: Bundle, target: str | None = None, threads: int | None = None) -> OnnxRuntimeCudaBackend:
    """threads: checked and not used; a GPU does the work."""
    if threads is not None and threads < 1:
        raise InvalidOption(f"threads is {threads}; expected at least 1")
    import onnxruntime

    if hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()  # CUDA's libraries from their pip packages
    return OnnxRuntimeCudaBackend(bundle, *_choose(bundle, target))


def _choose(bundle: Bundle, target: str | None) -> tuple[Path, Mapping[str, Any]]:
    """Folder and description of the graphs: the target's, the only engine's, or the bundle's own."""
    built = [] if target else targets_of(bundle, FLAVOURS)
    name = target or (built[0] if len(built) == 1 else PORTABLE)
    if name == PORTABLE:
        return bundle.path, {name: bundle.manifest["graphs"][name] for name in GRAPHS}
    folder = folder_of(bundle, name)
    engine = read(folder)
    refuse_stale(bundle, folder, engine)
    return folder, engine["graphs"]


class OnnxRuntimeCudaBackend:
    """Sessions over three graphs. They are shared by threads; every decode has buffers of its own.

    device: "cuda", or "cpu" to run the same code without a GPU.
    """

    name = NAME

    def __init__(self, bundle: Bundle, folder: Path, graphs: Mapping[str, Any], device: str = "cuda") -> None:
        self.target = None if folder == bundle.path else folder.name
        self.bundle = bundle
        self.kind = kind_of(bundle)
        self.graphs = graphs
        self.device = device
        self.sessions = {name: self._session(inside(folder, graph["file"]), graph) for name, graph in graphs.items()}

    def _session(self, path: Path, described: Mapping[str, Any]) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = QUIET
        wanted = PROVIDER if self.device == "cuda" else "CPUExecutionProvider"
        try:
            session = onnxruntime.InferenceSession(
                str(path), options, providers=[(wanted, PROVIDER_OPTIONS[self.device])], enable_fallback=0
            )
        except Exception as error:  # its exceptions have no common base but Exception
            raise EngineError(f"{path}: ONNX Runtime can't load it ({_first_line(error)}); build it again") from error
        if wanted not in session.get_providers():
            raise BackendError(f"ONNX Runtime left {wanted} aside and took {session.get_providers()}; {PIP}")
        refuse_difference(path, described, *tensors_of(session))
        return session

    def begin(self, sources: Sequence[Source], n_beams: int) -> DecodeState:
        return CudaState(self, self.encode(sources), n_beams)

    def encode(self, sources: Sequence[Source]) -> dict[str, Any]:
        """Inputs and outputs of encoder and cross-KV-init on the device, by name."""
        values = {name: self.value(array) for name, array in self.kind.prepare(sources).items()}
        for name in ("encoder", "cross_kv_init"):
            binding = self.sessions[name].io_binding()
            for entry in self.graphs[name]["inputs"]:
                binding.bind_ortvalue_input(entry["name"], values[entry["name"]])
            outputs = [entry["name"] for entry in self.graphs[name]["outputs"]]
            for output in outputs:
                binding.bind_output(output, self.device)
            self.run(name, binding)
            values.update(zip(outputs, binding.get_outputs(), strict=True))
        return values

    def lacks_device_search(self) -> str | None:
        return search_incompatible_reason(self.graphs["decoder_step"])

    def device_search(self, mode: Mode) -> DeviceSearcher:
        if mode == "while":
            raise BackendError(NO_WHILE)
        device = cuda.shared() if self.device == "cuda" else HostDevice()
        return DeviceSearcher(CudaSlotFactory(self, device), mode)

    def run(self, graph: str, binding: Any, options: Any = None) -> None:
        """Runs a graph as it is bound, and waits. options: onnxruntime.RunOptions."""
        try:
            self.sessions[graph].run_with_iobinding(binding, options)
        except Exception as error:
            raise BackendError(f"ONNX Runtime failed in {graph} ({_first_line(error)})") from error

    def value(self, array: Any) -> Any:
        """A numpy array on the device."""
        from onnxruntime import OrtValue

        return OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), self.device, 0)


class CudaState:
    """See `decoding.state.DecodeState`. values: what encoder and cross-KV-init gave, on the device."""

    def __init__(self, backend: OnnxRuntimeCudaBackend, values: dict[str, Any], n_beams: int) -> None:
        self.vocabulary_size = backend.bundle.vocabulary_size
        n_sources, length = values["source_mask"].shape()
        self.n_sources = n_sources
        self.n_beams = n_beams
        self._backend = backend
        graph = backend.graphs["decoder_step"]
        self._inputs = {entry["name"]: entry for entry in graph["inputs"]}
        self._outputs = {entry["name"]: entry for entry in graph["outputs"]}
        carried = [name for name in self._inputs if output_of(name) in self._outputs]
        self._states = [name for name in carried if "K" in self._inputs[name]["shape"]]
        self._caches = [name for name in carried if name not in self._states]
        self._values = {name: value for name, value in values.items() if name in self._inputs}
        for name in self._states:  # every beam starts from its source's first state
            self._values[name] = backend.value(np.repeat(values[name].numpy()[:, None], n_beams, axis=1))
        self._limit = backend.bundle.max_target_length
        self._letters = {"B": n_sources, "K": n_beams, "S": length}
        self._t = 0
        self._ancestors = AncestorTable.of(n_sources, n_beams, 0)
        self._grow(FIRST_CAPACITY)

    def step(self, tokens: Ints, parents: Ints, query: StepQuery) -> StepResult:
        t = self._t
        if self._limit is not None and t >= self._limit:
            raise BackendError(f"the decoder has no position {t}: the model's limit is {self._limit} tokens")
        if query.attention and "attention" not in self._outputs:
            raise BackendError(NO_ATTENTION)
        if self._ancestors.is_full:
            self._grow(t * GROWTH)
        self._ancestors.follow(parents)
        probes = query.probe_ids
        has_probes = probes is not None and probes.shape[2] > 0
        fed: dict[str, Any] = {
            "token": tokens,
            "position": np.array([t], np.int64),
            "parents": parents if t else np.zeros_like(parents),
            "ancestors": self._ancestors.array,
            "n_candidates": np.array([query.n_candidates], np.int64),
            "probe_ids": probes if has_probes else np.zeros((*tokens.shape, 1), np.int64),
        }
        for name in fed.keys() & self._inputs.keys():
            self._values[name] = self._backend.value(fed[name].astype(np.int64, copy=False))
        wanted = ["candidate_ids", "candidate_log_probs", "log_normalizer"]
        wanted += ["probe_log_probs"] if has_probes else []
        wanted += ["log_probs"] if query.dense else []
        wanted += ["attention"] if query.attention else []
        found = self._run(wanted)
        self._t = t + 1
        return StepResult(
            candidate_ids=found["candidate_ids"],
            candidate_log_probs=found["candidate_log_probs"],
            log_normalizer=found["log_normalizer"],
            probe_log_probs=found.get("probe_log_probs"),
            log_probs=found.get("log_probs"),
            attention=found.get("attention"),
        )

    def _run(self, wanted: list[str]) -> dict[str, Any]:
        """One step; what is wanted comes to the host, caches are written where they were read."""
        session = self._backend.sessions["decoder_step"]
        binding = session.io_binding()
        for name in self._inputs:
            binding.bind_ortvalue_input(name, self._values[name])
        for name in self._caches:
            binding.bind_ortvalue_output(output_of(name), self._values[name])
        made = [output_of(name) for name in self._states]
        for name in (*wanted, *made):
            binding.bind_output(name, self._backend.device)
        self._backend.run("decoder_step", binding)
        values = binding.get_outputs()[len(self._caches) :]
        self._values.update(zip(self._states, values[len(wanted) :], strict=True))
        return {name: value.numpy() for name, value in zip(wanted, values, strict=False)}

    def _grow(self, capacity: int) -> None:
        """Make room for `capacity` positions, keeping what the caches hold."""
        if self._limit is not None:
            capacity = min(capacity, self._limit)
        old = self._ancestors.capacity
        self._ancestors.grow(capacity)
        self._letters |= {"C": capacity, "N": capacity * self.n_beams}
        for name in self._caches:
            array = np.zeros(self._shape(self._inputs[name]), self._inputs[name]["dtype"])
            if old:
                array[:, :, : old * self.n_beams] = self._values[name].numpy()
            self._values[name] = self._backend.value(array)

    def keep(self, sources: Ints) -> None:
        """Through the host: it happens a few times a batch."""
        self.n_sources = self._letters["B"] = len(sources)
        self._ancestors.keep(sources)
        for name, entry in self._inputs.items():
            if name in self._values and entry["shape"][:1] == ["B"]:
                self._values[name] = self._backend.value(self._values[name].numpy()[sources])

    def _shape(self, entry: Any) -> list[int]:
        return [self._letters[size] if isinstance(size, str) else size for size in entry["shape"]]


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300]


BACKEND = Declaration(
    name=NAME,
    preference=30,
    flavours=FLAVOURS,
    runs_portable_graphs=True,
    computes_on_cores=False,
    unavailable=unavailable,
    incompatible_reason=incompatible_reason,
    open=open,
    search=SEARCH,
)
