"""Opens graphs whose operators are called directly, and runs those that are run once for a batch.

Letters as in docs/architecture.md.
"""

from __future__ import annotations

import ctypes
import functools
import os
import threading
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...bundle import Tensor, output_of
from ...errors import BuildError
from . import direct, library, onnx_file

# ONNXTensorElementDataType of ONNX Runtime's interface.
TYPES = {
    "float32": 1,
    "int8": 3,
    "uint16": 4,
    "int32": 6,
    "int64": 7,
    "bool": 9,
    "float16": 10,
    "bfloat16": 16,
    "uint8": 2,
}
STEP = "decoder_step"
FOUND = ("candidate_ids", "candidate_log_probs", "log_normalizer", "probe_log_probs")  # outputs of a step


class NativeGraph:
    """An open graph. inputs, outputs: its own, by name. Safe to use from several threads.

    handle: of the library, for whoever makes steps with it; valid as long as this object lives.
    """

    def __init__(
        self,
        nodes: list[onnx_file.Node],
        weights: Mapping[str, Any],
        kept: Collection[str],
        operators: Path,
        inputs: Mapping[str, Tensor],
        outputs: Mapping[str, Tensor],
    ) -> None:
        """kept: what is read after a run, of a graph that is run once for a batch. Raises ValueError."""
        self.handle: Any = None
        self.inputs, self.outputs = inputs, outputs
        self._library = library.load()
        self._kept: list[Any] = []
        used = {name: weights[name] for node in nodes for name in node.inputs if name in weights}
        given, listed = tensors(used, self._kept), direct.nodes_of(nodes, self._kept)
        self.handle = self._library.s2s_graph_new(
            os.fsencode(operators), listed, len(listed), given, len(given), direct.lines(kept)
        )
        if self.handle is None:
            raise ValueError(library.error(self._library))

    def __del__(self) -> None:
        if self.handle is not None:
            self._library.s2s_graph_delete(self.handle)

    def run(self, names: Sequence[str], feed: Mapping[str, Any]) -> list[Any]:
        """The arrays of these outputs. Raises RuntimeError."""
        kept: list[Any] = []
        given = tensors({name: np.ascontiguousarray(value) for name, value in feed.items()}, kept)
        made = self._library.s2s_graph_run(self.handle, given, len(given))
        if made is None:
            raise RuntimeError(library.error(self._library))
        try:
            return [self._output(made, name) for name in names]
        finally:
            self._library.s2s_run_delete(made)

    def _output(self, made: Any, name: str) -> Any:
        found = library.Tensor(name.encode())
        if not self._library.s2s_run_output(made, ctypes.byref(found)):
            raise RuntimeError(f"it gave no {name}")
        shape = (ctypes.c_int64 * found.n_dimensions).from_address(found.shape) if found.n_dimensions else ()
        array = np.empty(tuple(shape), _dtype_of(found.type))
        if array.nbytes:
            ctypes.memmove(library.address(array), found.data, array.nbytes)
        return array


class NativeGraphs:
    """The graphs of one backend that are called directly, opened when they are first wanted. Safe to use from several
    threads.

    operators: the library of our own operators, or None where an engine has none. weights: the folder of the file of
    weights. threads: of a call. why_not: why ONNX Runtime runs a graph, in a few words, by name.
    """

    def __init__(self, operators: Path | None, weights: Path, threads: int) -> None:
        self._operators = operators
        self._weights = weights
        self._threads = threads
        self._open: dict[str, NativeGraph | None] = {}
        self._lock = threading.Lock()
        self.why_not: dict[str, str] = {}

    def get(
        self, name: str, path: Path, described: Mapping[str, Any], shared: Mapping[str, Any] | None
    ) -> NativeGraph | None:
        """A graph, or None where ONNX Runtime has to run it. path: its file. described: as engine.json has it. shared:
        weights in memory, by name."""
        with self._lock:
            if name not in self._open:
                try:
                    self._open[name] = self._made(name, path, described, shared or {})
                except (ValueError, OSError, BuildError) as error:
                    self._open[name] = None
                    self.why_not[name] = str(error).splitlines()[0] if str(error) else "its file can't be read"
            return self._open[name]

    def opened(self, name: str) -> NativeGraph | None:
        """As `get`, of a graph that was asked for before."""
        return self._open.get(name)

    def clear(self) -> None:
        with self._lock:
            self._open.clear()

    def _made(self, name: str, path: Path, described: Mapping[str, Any], shared: Mapping[str, Any]) -> NativeGraph:
        if self._operators is None:
            raise ValueError("the engine has no operators of our own")
        if self._threads > 1:
            raise ValueError(f"a call has {self._threads} threads")
        library.load()
        try:
            graph = onnx_file.read(path, self._weights)
        except (ValueError, OSError) as error:
            raise ValueError(f"{path.name} can't be read ({error})") from error
        inputs = {entry["name"]: entry["dtype"] for entry in described["inputs"]}
        is_step = name.startswith(STEP)
        outputs = _of_step(inputs) if is_step else [entry["name"] for entry in described["outputs"]]
        nodes = direct.needed(graph, outputs)
        weights = {key: array for key, array in graph.weights.items() if array is not None} | dict(shared)
        if reason := direct.why_not(nodes, weights, inputs, outputs):
            raise ValueError(reason)
        kept = () if is_step else outputs
        return NativeGraph(nodes, weights, kept, self._operators, graph.inputs, graph.outputs)


def _of_step(inputs: Collection[str]) -> list[str]:
    """The outputs of a step that is called directly."""
    return [*FOUND, *(output_of(name) for name in inputs if name.startswith(("self_key.", "self_value.")))]


def tensors(arrays: Mapping[str, Any], kept: list[Any]) -> Any:
    """An array of S2STensor. kept: what has to live as long as they are used."""
    made = (library.Tensor * len(arrays))()
    sizes = (ctypes.c_int64 * sum(array.ndim for array in arrays.values()))()
    at = 0
    for i, (name, array) in enumerate(arrays.items()):
        n = array.ndim
        sizes[at : at + n] = array.shape
        shape = ctypes.addressof(sizes) + at * ctypes.sizeof(ctypes.c_int64)
        made[i] = library.Tensor(name.encode(), library.address(array), shape, n, _type_of(array.dtype))
        at += n
    kept += [*arrays.values(), sizes, made]
    return made


@functools.cache
def _type_of(dtype: Any) -> int:
    return TYPES[str(dtype)]


@functools.cache
def _dtype_of(kind: int) -> Any:
    return np.dtype(next(name for name, number in TYPES.items() if number == kind))
