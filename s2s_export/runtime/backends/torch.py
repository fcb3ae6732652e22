"""PyTorch, running the bundle's own graphs operator by operator: the reference, for comparison and not for speed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...bundle import GRAPHS, Bundle, difference, output_of
from ...engines import PORTABLE
from ...errors import BackendError, BundleError
from ..decoding.ancestors import AncestorTable
from ..decoding.state import Ints, StepQuery, StepResult
from ..sources import Source, kind_of
from ._declaration import Declaration

NAME = "torch"
CAPACITY_STEP = 32  # positions by which a cache grows


def unavailable() -> str | None:
    for package in ("torch", "onnx"):
        try:
            __import__(package)
        except ImportError:
            return f"the package '{package}' is not installed: pip install 's2s-export[export]'"
    return None


def incompatible_reason(bundle: Bundle, target: str | None) -> str | None:
    if target in (None, PORTABLE):
        return None
    return "runs the portable graphs only, not a built engine; leave out the target"


def open(bundle: Bundle, target: str | None = None, threads: int | None = None) -> TorchBackend:
    """On the GPU where there is one. threads: of torch as a whole, as it has no others."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    return TorchBackend(bundle, torch.device("cuda" if torch.cuda.is_available() else "cpu"))


class TorchBackend:
    name = NAME
    target: str | None = None

    def __init__(self, bundle: Bundle, device: Any) -> None:
        from ._torch_graph import TorchGraph

        self.bundle = bundle
        self.kind = kind_of(bundle)
        self.device = device
        self.graphs = {name: TorchGraph(bundle.graph_path(name), device) for name in GRAPHS}
        for name, graph in self.graphs.items():
            if reason := difference(bundle.manifest["graphs"][name], graph.inputs, graph.outputs):
                raise BundleError(f"{bundle.graph_path(name)}: {reason}; export the bundle again")

    def begin(self, sources: Sequence[Source], n_beams: int) -> TorchState:
        return TorchState(self, self.encode(sources), n_beams)

    def encode(self, sources: Sequence[Source]) -> dict[str, Any]:
        """Inputs and outputs of encoder and cross-KV-init, by name."""
        import torch

        prepared = self.kind.prepare(sources)
        values: dict[str, Any] = {name: torch.from_numpy(array).to(self.device) for name, array in prepared.items()}
        for name in ("encoder", "cross_kv_init"):
            entries = self.bundle.manifest["graphs"][name]
            found = self.graphs[name].run({entry["name"]: values[entry["name"]] for entry in entries["inputs"]})
            values.update({entry["name"]: found[entry["name"]] for entry in entries["outputs"]})
        return values


class TorchState:
    """See `decoding.state.DecodeState`. Caches [B,H,N,D] or states [B,K,U] are values like others, new each step."""

    def __init__(self, backend: TorchBackend, values: dict[str, Any], n_beams: int) -> None:
        graph = backend.bundle.manifest["graphs"]["decoder_step"]
        self.vocabulary_size = backend.bundle.vocabulary_size
        self.n_beams = n_beams
        self.n_sources = int(values["source_mask"].shape[0])
        self._graph = backend.graphs["decoder_step"]
        self._limit = backend.bundle.max_target_length
        self._inputs = {entry["name"]: entry["shape"] for entry in graph["inputs"]}
        self._outputs = {entry["name"] for entry in graph["outputs"]}
        self._carried = [name for name in self._inputs if output_of(name) in self._outputs]
        self._values = {name: value for name, value in values.items() if name in self._inputs}
        for name in self._carried:
            if name in values:  # a first state, one a source
                self._values[name] = values[name][:, None].expand(-1, n_beams, -1)
        self._ancestors = AncestorTable.of(self.n_sources, n_beams, 0)
        self._step = 0

    def step(self, tokens: Ints, parents: Ints, query: StepQuery) -> StepResult:
        t = self._step
        if self._limit is not None and t >= self._limit:
            raise BackendError(f"the decoder has no position {t}: the model's limit is {self._limit} tokens")
        parents = parents if t else np.zeros_like(tokens)
        small = self._small_inputs(tokens, parents, query)
        found = self._graph.run({**self._values, **small})
        self._values |= {name: found[output_of(name)] for name in self._carried}
        self._step = t + 1

        def host(name: str, wanted: bool = True) -> Any:
            return found[name].cpu().numpy() if wanted and name in self._outputs else None

        return StepResult(
            candidate_ids=host("candidate_ids"),
            candidate_log_probs=host("candidate_log_probs"),
            log_normalizer=host("log_normalizer"),
            probe_log_probs=host("probe_log_probs", query.probe_ids is not None),
            log_probs=host("log_probs", query.dense),
            attention=host("attention", query.attention),
        )

    def _small_inputs(self, tokens: Ints, parents: Ints, query: StepQuery) -> dict[str, Any]:
        import torch

        small: dict[str, Any] = {"token": tokens, "n_candidates": np.array([query.n_candidates])}
        no_probes = np.zeros((self.n_sources, self.n_beams, 1), dtype=np.int64)
        small["probe_ids"] = no_probes if query.probe_ids is None else query.probe_ids
        if "parents" in self._inputs:
            small["parents"] = parents
        else:
            self._make_room()
            self._ancestors.follow(parents)
            small |= {"position": np.array([self._step]), "ancestors": self._ancestors.array}
        return {name: torch.from_numpy(np.array(value)).to(self._graph.device) for name, value in small.items()}

    def _make_room(self) -> None:
        import torch

        if not self._ancestors.is_full:
            return
        self._ancestors.grow(self._ancestors.capacity + CAPACITY_STEP)
        for name in self._carried:
            _, heads, _, size = self._inputs[name]
            more = torch.zeros(self.n_sources, heads, CAPACITY_STEP * self.n_beams, size, device=self._graph.device)
            self._values[name] = torch.cat([self._values[name], more], dim=2) if name in self._values else more

    def keep(self, sources: Ints) -> None:
        self.n_sources = len(sources)
        self._values = {name: value[sources] for name, value in self._values.items()}
        self._ancestors.keep(sources)


BACKEND = Declaration(
    name=NAME,
    preference=None,
    flavours=(),
    runs_portable_graphs=True,
    computes_on_cores=False,  # on the GPU where there is one; and a call on CPUs takes as many cores as torch has
    unavailable=unavailable,
    incompatible_reason=incompatible_reason,
    open=open,
)
