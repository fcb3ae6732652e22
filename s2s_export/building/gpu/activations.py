"""How large every value of the graphs becomes on sample sources, by running the fp32 graphs on ONNX Runtime."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from onnx import helper

from ...bundle import Bundle
from ...runtime.sources import Source
from ..graphs.graph import FLOAT, Graph
from .running import Runner, Trace

SEED = 1712
KEPT = 65536  # values kept of each tensor
KEPT_A_CALL = 2048
MASKED = 1e8  # scores of masked positions are constants, not activations


@dataclass
class Observed:
    """largest: the greatest absolute value. kept: a sample of the values' absolute sizes."""

    largest: float = 0.0
    kept: list[Any] = field(default_factory=list)
    rng: Any = field(default_factory=lambda: np.random.default_rng(SEED))

    def add(self, array: Any) -> None:
        flat = np.abs(array.reshape(-1))
        flat = flat[np.isfinite(flat) & (flat < MASKED)]
        if not flat.size:
            return
        self.largest = max(self.largest, float(flat.max()))
        if sum(part.size for part in self.kept) < KEPT:
            # Chosen at random: evenly spaced values would come from the same few channels of each row.
            chosen = flat if flat.size <= KEPT_A_CALL else self.rng.choice(flat, KEPT_A_CALL, replace=False)
            self.kept.append(chosen.astype(np.float32))

    @property
    def values(self) -> Any:
        return np.concatenate(self.kept) if self.kept else np.zeros(0, np.float32)


@dataclass(frozen=True)
class Activations:
    """by_value: (graph, value's name) -> what was seen. traces: what was decoded, to compare with."""

    by_value: Mapping[tuple[str, str], Observed]
    traces: list[Trace]

    def largest(self, graph: str, value: str) -> float:
        found = self.by_value.get((graph, value))
        return found.largest if found else 0.0


def measure(bundle: Bundle, graphs: Mapping[str, Graph], sources: Iterable[Source], n_steps: int) -> Activations:
    """Run the (fp32, specialised) graphs with every float value of theirs as an output."""
    seen: dict[tuple[str, str], Observed] = {}

    def observe(graph: str, name: str, array: Any) -> None:
        if array.dtype == np.float32 and not name.startswith(
            "self_"
        ):  # the values in a cache were measured when they were computed
            seen.setdefault((graph, name), Observed()).add(array)

    with tempfile.TemporaryDirectory(prefix="s2s-activations-") as scratch:
        paths = {name: Path(scratch) / f"{name}.onnx" for name in graphs}
        for name, graph in graphs.items():
            tapped = graph.copy()
            _widen_weights(tapped)
            present = set(tapped.outputs)
            for node in tapped.nodes:
                for value in node.output:
                    if tapped.types.get(value) == FLOAT and value not in present:
                        tapped.model.graph.output.append(helper.make_tensor_value_info(value, FLOAT, None))
            tapped.save(paths[name])
        described = {name: graph.describe() for name, graph in graphs.items()}
        runner = Runner(bundle, paths, described)
        traces = runner.run(list(sources), n_steps, observe)
    return Activations(seen, traces)


def _widen_weights(graph: Graph) -> None:
    """Weights that are stored in half precision, converted to fp32, in which the graph computes."""
    for name, array in graph.weights.items():
        if graph.types.get(name) == FLOAT or array.dtype.name in {"float16", "bfloat16"}:
            graph.weights[name] = np.asarray(array, np.float32)
            graph.types[name] = FLOAT
