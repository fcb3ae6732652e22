"""Graphs that run once for a batch, called without ONNX Runtime: the same numbers, and no library of it."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from tiny_names import STRUCTURES

import s2s_export
from s2s_export import plugin_sources
from s2s_export.building.build import build
from s2s_export.errors import BackendError, BuildError, BundleError
from s2s_export.runtime.backends.onnxruntime import OF_SOURCE, OnnxRuntimeBackend
from s2s_export.runtime.native_graphs import NativeGraphs, direct, library

try:
    library.load()
except BuildError as missing:  # pragma: no cover
    pytest.skip(str(missing).splitlines()[0], allow_module_level=True)

WITHOUT = """
import sys
import s2s_export
session = s2s_export.load({bundle!r}, target="cpu-int8", threads=1)
found = session.generate([[5, 6, 7, 8], [9, 4]], num_beams=3, max_new_tokens=12)
assert "onnxruntime" not in sys.modules, session.backend.natives.why_not
session.generate([[5, 6]], do_sample=True, seed=1, max_new_tokens=4)
print("onnxruntime" in sys.modules, end="")
"""


@pytest.fixture(scope="module", params=["cpu-fp32", "cpu-int8"])
def engine(exported: Any, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> tuple[Path, str]:
    path = tmp_path_factory.mktemp("native-graphs") / "marian.bundle"
    shutil.copytree(exported("marian")[1], path)
    build(path, request.param)
    if opened((path, request.param)).operators is None:
        pytest.skip("this machine has no fast instruction set for our own operators")
    return path, request.param


def opened(engine: tuple[Path, str]) -> OnnxRuntimeBackend:
    backend = s2s_export.load(engine[0], target=engine[1], threads=1).backend
    assert isinstance(backend, OnnxRuntimeBackend)
    return backend


def sources_for(size: int) -> list[list[int]]:
    chance = random.Random(1)
    return [[chance.randrange(4, size) for _ in range(n)] for n in (7, 1, 12, 3)]


def encoded(backend: OnnxRuntimeBackend, sources: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """By our library, and by ONNX Runtime."""
    directly = backend.encode(sources)
    assert not backend.natives.why_not
    with monkeypatch.context() as patched:
        patched.setattr(OnnxRuntimeBackend, "native", lambda self, name: None)
        return directly, backend.encode(sources)


def test_numbers_are_those_of_onnx_runtime(engine: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    backend = opened(engine)
    sources = sources_for(backend.bundle.vocabulary_size)
    for batch in ([sources[0]], sources, sources[1:2]):
        directly, theirs = encoded(backend, batch, monkeypatch)
        assert directly.keys() == theirs.keys() and set(OF_SOURCE) <= backend.graphs.keys()
        for name, array in theirs.items():
            np.testing.assert_array_equal(directly[name], array)
            assert directly[name].dtype == array.dtype


@pytest.mark.slow
@pytest.mark.parametrize("name", [*STRUCTURES, "m2m_100", "led", "umt5", "roberta-gpt2", "fsmt", "longt5"])
def test_numbers_of_other_families(exported: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    path = tmp_path / "bundle"
    shutil.copytree(exported(name)[1], path)
    build(path, "cpu-int8")
    backend = opened((path, "cpu-int8"))
    directly, theirs = encoded(backend, sources_for(backend.bundle.vocabulary_size), monkeypatch)
    for key, array in theirs.items():
        np.testing.assert_array_equal(directly[key], array)


def test_decoding_loads_no_onnx_runtime_until_something_needs_it(engine: tuple[Path, str]) -> None:
    path, target = engine
    code = WITHOUT.format(bundle=str(path)).replace("cpu-int8", target)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "True"), done.stderr


def test_a_graph_that_is_not_as_described_is_refused(engine: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    described = opened(engine).graphs
    entry = described["encoder"]["inputs"][0]
    for changed in ({**entry, "shape": [*entry["shape"], 3]}, {**entry, "name": "others"}):
        wrong = {
            **described,
            "encoder": {**described["encoder"], "inputs": [changed, *described["encoder"]["inputs"][1:]]},
        }
        backend = opened(engine)
        backend.graphs = wrong
        backend._compared.clear()
        with pytest.raises(BundleError, match="its description"):
            backend.native("encoder")


def test_a_failure_is_one_sentence(engine: tuple[Path, str]) -> None:
    backend = opened(engine)
    with pytest.raises(BackendError, match=r"the graph encoder failed \(.*\); build the engine again"):
        mask = np.ones((1, 3), np.int64)
        backend.run("encoder", ["encoder_states"], {"input_ids": np.full((1, 3), 10**9), "source_mask": mask})


INPUTS = {"i": ("int64", [2, 3, 4]), "x": ("float32", [2, 3, 4]), "b": ("bool", [2, 3, 1])}


def node(op: str, inputs: str, **attributes: Any) -> tuple[str, str, dict[str, Any]]:
    return op, inputs, attributes


@pytest.mark.parametrize(
    "case",
    [
        node("Cast", "i", to=9), node("Cast", "i", to=1), node("Cast", "b", to=7),
        node("Where", "b x one"), node("Where", "b i two"),
        node("Concat", "i i i", axis=1), node("Concat", "x x", axis=-1), node("Concat", "x", axis=0),
        node("Split", "x", axis=1, num_outputs=2), node("Split", "i sizes", axis=-1),
        node("Transpose", "x", perm=[2, 0, 1]), node("Transpose", "x", perm=[1, 0, 2]),
        node("CumSum", "i last"), node("CumSum", "i first"),
        node("Less", "i two"), node("Greater", "i two"), node("Or", "b b"),
    ],
)  # fmt: skip
def test_operators_of_onnx(tmp_path: Path, case: Any) -> None:
    """Each alone, in a graph of its own, against ONNX's reference."""
    op, inputs, attributes = case
    outputs = ["y", "z"] if op == "Split" else ["y"]
    weights = {"one": np.float32(1.5), "two": np.int64(2), "sizes": np.array([1, 3]),
               "last": np.array(-1), "first": np.array(0)}  # fmt: skip
    made = helper.make_node(op, inputs.split(), outputs, **attributes)
    values = [
        helper.make_tensor_value_info(name, getattr(TensorProto, {"float32": "FLOAT"}.get(kind, kind.upper())), shape)
        for name, (kind, shape) in INPUTS.items()
    ]
    given = [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    graph = helper.make_graph([made], "g", values, results, given)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    chance = np.random.default_rng(0)
    feed = {
        "i": chance.integers(-4, 4, (2, 3, 4)), "x": chance.normal(size=(2, 3, 4)).astype(np.float32),
        "b": chance.random((2, 3, 1)) < 0.5,
    }  # fmt: skip
    wanted = ReferenceEvaluator(model).run(None, feed)
    path = tmp_path / "one.onnx"
    path.write_bytes(model.SerializeToString())
    described = {"inputs": [{"name": n, "dtype": kind} for n, (kind, _) in INPUTS.items()],
                 "outputs": [{"name": name} for name in outputs]}  # fmt: skip
    try:
        operators = Path(plugin_sources.module("cpu.build").library())
    except BuildError as missing:
        pytest.skip(str(missing).splitlines()[0])
    natives = NativeGraphs(operators, tmp_path, 1)
    found = natives.get("one", path, described, None)
    assert found is not None, natives.why_not
    for ours, theirs in zip(found.run(outputs, feed), wanted, strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == theirs.dtype


def test_what_is_made_twice_is_not_called() -> None:
    """It could be written into weights, which are mapped."""
    twice = [direct.Node("Add", ["x", "x"], ["x"])]
    assert direct.why_not(twice, {}, {"x": "float32"}) == "x is made twice"
    assert direct.why_not([], {}, {"x": "float32"}, ["y"]) == "there is no y"
