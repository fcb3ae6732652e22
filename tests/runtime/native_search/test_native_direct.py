"""Decoder steps whose operators are called without ONNX Runtime: the same numbers as with it."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import s2s_export
from s2s_export.errors import BackendError, BuildError
from s2s_export.runtime.backends.onnxruntime import OnnxRuntimeBackend
from s2s_export.runtime.native_graphs import direct, library, onnx_file
from s2s_export.runtime.native_graphs.onnx_file import Node
from s2s_export.runtime.native_search import LOOP, loop

try:
    library.load()
except BuildError as missing:  # pragma: no cover
    pytest.skip(str(missing).splitlines()[0], allow_module_level=True)

STEP = "decoder_step.onnx"
CASES = [{"num_beams": 1}, {"num_beams": 3, "num_return_sequences": 2, "no_repeat_ngram_size": 2}]


@pytest.fixture(scope="module")
def engine(exported: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Marian with an engine of our own operators."""
    from s2s_export.building.build import build

    path = tmp_path_factory.mktemp("direct") / "marian.bundle"
    shutil.copytree(exported("marian")[1], path)
    build(path, "cpu-fp32")
    if s2s_export.load(path, target="cpu-fp32").backend.operators is None:  # type: ignore[attr-defined]
        pytest.skip("this machine has no fast instruction set for our own operators")
    return path


def opened(engine: Path, threads: int = 1) -> tuple[s2s_export.Session, loop.Sessions]:
    session = s2s_export.load(engine, target="cpu-fp32", threads=threads)
    assert isinstance(session.backend, OnnxRuntimeBackend)
    return session, loop.Sessions.of(session.backend)


def outputs(session: s2s_export.Session) -> list[Any]:
    chance = random.Random(5)
    size = session.bundle.vocabulary_size
    sources = [[chance.randrange(4, size) for _ in range(chance.randint(2, 12))] for _ in range(3)]
    found = [session.generate(sources, max_new_tokens=20, **case) for case in CASES]
    assert set(session.searcher.native.counts) == {LOOP}  # type: ignore[attr-defined]
    return [[[(one.token_ids, one.score, one.token_scores) for one in of] for of in case] for case in found]


def test_the_numbers_are_those_of_onnx_runtime(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session, sessions = opened(engine)
    without = outputs(session)
    assert sessions.why_not_direct == ""
    monkeypatch.setattr(OnnxRuntimeBackend, "native", lambda self, name: None)
    assert outputs(opened(engine)[0]) == without


def test_several_threads_are_onnx_runtimes(engine: Path) -> None:
    session, sessions = opened(engine, threads=2)
    if session.backend.threads == 1:  # type: ignore[attr-defined]
        pytest.skip("this machine has one core")
    outputs(session)
    assert sessions.why_not_direct == "a call has 2 threads"


def test_a_file_is_read_as_onnx_reads_it(engine: Path) -> None:
    folder = engine / "engines" / "cpu-fp32"
    graph, wanted = onnx_file.read(folder / STEP, folder), onnx.load(folder / STEP)
    assert [node.op for node in graph.nodes] == [
        f"{node.domain}.{node.op_type}".lstrip(".") for node in wanted.graph.node
    ]
    for node, theirs in zip(graph.nodes, wanted.graph.node, strict=True):
        assert (node.inputs, node.outputs) == (list(theirs.input), list(theirs.output))
        numbers = {one.name: helper.get_attribute_value(one) for one in theirs.attribute if one.type in (1, 2)}
        assert node.attributes == numbers
    for tensor in wanted.graph.initializer:
        np.testing.assert_array_equal(graph.weights[tensor.name], numpy_helper.to_array(tensor))


def test_positions_of_rows(engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that works its positions out with every operator of ONNX that is called directly."""
    wanted = outputs(opened(engine)[0])
    folder = engine / "engines" / "cpu-fp32"
    model = onnx.load(folder / STEP, load_external_data=False)
    nodes = list(model.graph.node)
    assert {node.op_type for node in nodes} >= {"Unsqueeze", "Shape", "Expand", "Reshape"}
    at = next(i for i, node in enumerate(nodes) if node.op_type == "Gather")
    rows, nodes[at].input[1] = nodes[at].input[1], "again"
    made = [
        helper.make_node("Mul", [rows, "two"], ["double"]),
        helper.make_node("Sub", ["double", rows], ["again"]),
    ]
    model.graph.initializer.append(numpy_helper.from_array(np.array(2), "two"))
    del model.graph.node[:]
    model.graph.node.extend([*nodes[:at], *made, *nodes[at:]])
    path = tmp_path / STEP
    path.write_bytes(model.SerializeToString())
    file_of = OnnxRuntimeBackend.file_of
    monkeypatch.setattr(
        OnnxRuntimeBackend, "file_of", lambda self, name: path if name == "decoder_step" else file_of(self, name)
    )
    session, sessions = opened(engine)
    assert outputs(session) == wanted and sessions.why_not_direct == ""


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        (Node("LayerNormalization", ["x"], ["y"]), "there is LayerNormalization"),
        (Node("Add", ["x", "i"], ["y"]), "Add has inputs of other types"),
        (Node("Reshape", ["x", "i"], ["y"], {"allowzero": 1}), "Reshape has other attributes than are understood"),
        (Node("Reshape", ["x", "i"], ["y"], {}, ["shape"]), "Reshape has the attribute shape"),
        (Node("Mul", ["x", "nowhere"], ["y"]), "nowhere comes from nowhere"),
    ],
)
def test_what_is_not_understood_is_onnx_runtimes(node: Node, reason: str) -> None:
    assert direct.why_not([node], {}, {"x": "float32", "i": "int64"}) == reason


def test_wrong_tensors_are_refused_before_they_are_read(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = loop.OnnxRuntimeState.tensors
    for name, changed in {
        "self_key.0": lambda array: array[:1].copy(),
        "cross_key.0": lambda array: array.astype(np.int32),
        "ancestors": lambda array: array + 100,
        "position": lambda array: np.zeros(3, np.int64),
    }.items():
        session, sessions = opened(engine)

        def wrong(self: Any, name: str = name, changed: Any = changed) -> dict[str, Any]:
            found = tensors(self)
            return {**found, name: changed(found[name])}

        monkeypatch.setattr(loop.OnnxRuntimeState, "tensors", wrong)
        with pytest.raises(BackendError, match=r"the decoder step failed \(.*\); build the engine again"):
            session.generate([[5, 6, 7]], max_new_tokens=4)
        assert sessions.why_not_direct == ""


def test_damaged_files_are_value_errors(engine: Path, tmp_path: Path) -> None:
    folder = engine / "engines" / "cpu-fp32"
    whole = (folder / STEP).read_bytes()
    chance = random.Random(3)
    path = tmp_path / STEP
    n_refused = 0
    for _ in range(150):
        damaged = bytearray(whole[: chance.randrange(len(whole))] if chance.random() < 0.3 else whole)
        for _ in range(chance.randint(0, 4)):
            if damaged:
                damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        path.write_bytes(damaged)
        try:
            onnx_file.read(path, folder)
        except (ValueError, OSError):
            n_refused += 1
    assert n_refused > 20
