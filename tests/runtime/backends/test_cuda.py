"""ONNX Runtime on CUDA: the same code bound to the CPU's memory, since that is what there is here."""

from __future__ import annotations

import ctypes
import hashlib
import json

import numpy as np
import pytest
from tiny_names import EACH_FAMILY, RECURRENT, STRUCTURES, in_the_long_run

import s2s_export
from s2s_export import bundle
from s2s_export.building.build import build
from s2s_export.engines import engines
from s2s_export.errors import BackendError, EngineError, InvalidOption
from s2s_export.measuring import gpu_memory
from s2s_export.runtime.backends import _cuda_step as cuda_step
from s2s_export.runtime.backends import onnxruntime_cuda as cuda
from s2s_export.runtime.decoding.state import StepQuery
from s2s_export.runtime.session import Session

SOURCES = [[5, 9, 3], [7, 8, 9, 10, 11, 12, 4, 6, 3], [30], [9] * 12, [3, 5, 7, 9]]
RECIPE = 'flavour = "cuda"\nprecision = "{}"\n{}[options]\nn_samples = 4\nn_steps = 6\n{}'


def write(tmp_path, precision="fp16", keys="", options=""):
    file = tmp_path / "mine.toml"
    file.write_text(RECIPE.format(precision, keys, options))
    return str(file)


def on_cpu(path, target=None, search="host"):
    opened = bundle.read(path)
    backend = cuda.OnnxRuntimeCudaBackend(opened, *cuda._choose(opened, target), device="cpu")
    return Session(opened, backend, search=search)


@pytest.mark.parametrize("name", [*EACH_FAMILY, *RECURRENT])
def test_tokens_equal_the_cpu_backends(bundled, name, monkeypatch):
    monkeypatch.setattr(cuda, "FIRST_CAPACITY", 4)  # caches grow on the way
    session, reference = on_cpu(bundled(name)), s2s_export.load(bundled(name), backend="onnxruntime", threads=1)
    for search in (
        {"num_beams": 1},
        {"num_beams": 3, "num_return_sequences": 2},
        {"num_beams": 2, "no_repeat_ngram_size": 2},
    ):
        found = session.generate(SOURCES, max_new_tokens=18, **search)
        expected = reference.generate(SOURCES, max_new_tokens=18, **search)
        assert [[h.token_ids for h in of] for of in found] == [[h.token_ids for h in of] for of in expected]


@pytest.fixture
def emulated():
    """The emulation's kernels, which take a compiler."""
    from device_helpers import missing_compiler

    if reason := missing_compiler():
        pytest.skip(reason)


@pytest.mark.parametrize("name", in_the_long_run(STRUCTURES, ["marian"]))
def test_the_search_on_the_device_finds_the_same_tokens(emulated, bundled, name):
    """Steps that the host runs, and a graph of the search behind each; on the CPU's memory."""
    reference = s2s_export.load(bundled(name), backend="onnxruntime", threads=1)
    for where in ("auto", "device-queue"):
        session = on_cpu(bundled(name), search=where)
        assert session.searcher.where == "device"
        for search in ({"num_beams": 1}, {"num_beams": 3, "num_return_sequences": 2, "no_repeat_ngram_size": 2}):
            found = session.generate(SOURCES, max_new_tokens=18, batch_size=3, **search)
            expected = reference.generate(SOURCES, max_new_tokens=18, batch_size=3, **search)
            assert [[h.token_ids for h in of] for of in found] == [[h.token_ids for h in of] for of in expected]


class CopiesWhatTheLoopWrites:
    """ONNX Runtime's binding as it is on a GPU: an input that a node needs on the host is copied when it is bound, so
    that what a kernel writes there afterwards is not seen."""

    def __init__(self, binding):
        self._binding = binding
        self.n_bound = 0

    def __getattr__(self, name):
        return getattr(self._binding, name)

    def bind_input(self, name, device, index, dtype, shape, address):
        if name in cuda_step.BY_THE_LOOP:
            self.n_bound += 1
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            there = (ctypes.c_ubyte * size).from_address(address)
            self._binding.bind_cpu_input(name, np.frombuffer(there, dtype).reshape(shape).copy())
        else:
            self._binding.bind_input(name, device, index, dtype, shape, address)


def test_a_step_sees_what_the_search_wrote_though_bindings_copy(emulated, bundled, monkeypatch):
    session, reference = on_cpu(bundled("t5"), search="device"), on_cpu(bundled("t5"))
    step, bindings = session.backend.sessions["decoder_step"], []

    class Copying:
        def io_binding(self):
            bindings.append(CopiesWhatTheLoopWrites(step.io_binding()))
            return bindings[-1]

        def run_with_iobinding(self, binding, options=None):
            step.run_with_iobinding(binding._binding, options)

    monkeypatch.setitem(session.backend.sessions, "decoder_step", Copying())
    settings = {"num_beams": 2, "max_new_tokens": 8, "min_new_tokens": 8}
    found, expected = session.generate(SOURCES, **settings), reference.generate(SOURCES, **settings)
    assert [of[0].token_ids for of in found] == [of[0].token_ids for of in expected]
    assert bindings[0].n_bound >= 8 * len(cuda_step.BY_THE_LOOP)


def test_alignments_and_streams_on_the_device(emulated, bundled):
    session, reference = on_cpu(bundled("marian"), search="device"), on_cpu(bundled("marian"))
    settings = {"num_beams": 2, "max_new_tokens": 8, "alignments": True}
    found, expected = session.generate(SOURCES, **settings), reference.generate(SOURCES, **settings)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours[0].alignment, theirs[0].alignment, atol=1e-5)
    options = session.options(num_beams=2, max_new_tokens=8)
    parts = list(session.searcher.stream(SOURCES[1], options))
    assert [token for part in parts for token in part] == found[1][0].token_ids
    assert len(parts) > 1


def test_the_fp16_target_on_the_device(emulated, copied, tmp_path):
    path = copied("marian")
    build(path, write(tmp_path, options="attention = true\n"))
    found = [on_cpu(path, "mine", where).generate(SOURCES, num_beams=2, max_new_tokens=6, alignments=True)
             for where in ("device", "host")]  # fmt: skip
    for ours, theirs in zip(*found, strict=True):
        assert ours[0].token_ids == theirs[0].token_ids
        np.testing.assert_allclose(ours[0].alignment, theirs[0].alignment, atol=1e-5)


def test_the_plan_says_what_the_caches_take(emulated, copied, tmp_path):
    path = copied("marian")
    build(path, write(tmp_path, options="attention = true\n"))
    opened = bundle.read(path)
    plan = gpu_memory.of_bundle(opened, engines(opened))["mine"]
    assert [shape["sources"] for shape in plan["shapes"]] == [1, 16] and plan["buckets"] == []
    session = on_cpu(path, "mine", "device")
    for shape in plan["shapes"]:
        session.warm_up([shape["source_length"]], n_sources=shape["sources"], num_beams=shape["beams"], alignments=True)
        (slot,) = session.searcher._idle
        sizes = {name: size for name, (_, size) in slot.slot._buffers._blocks.items()}
        assert sum(size for name, size in sizes.items() if name.startswith("self_")) == shape["bytes"]["caches"]
        assert sizes["logits"] == shape["bytes"]["logits"]
        gap = next(iter(slot.search._kept.values()))._arena.n_bytes - shape["bytes"]["search"]
        assert 0 <= gap < 256 * len(shape["tables"])
        session.searcher.release()


def test_a_step_that_no_graph_holds(emulated, bundled):
    """Of a step the graph has what follows the decoder: each kernel is captured once and repeated."""
    session = on_cpu(bundled("t5"), search="device")
    session.generate(SOURCES[:1], max_new_tokens=6, min_new_tokens=6)
    (buffers,) = session.searcher._idle[0].search._kept.values()
    assert list(buffers._graphs) == ["replay"]
    assert len(buffers._graphs["replay"].calls) == len(buffers._launches.queue())
    with pytest.raises(BackendError, match="no WHILE graph; expected the mode 'replay' or 'queue'"):
        on_cpu(bundled("t5"), search="device-while")


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_decoders_are_searched_by_the_host_which_says_so(bundled, name):
    session = on_cpu(bundled(name), search="auto")
    assert session.searcher.where == "host"
    assert "states and no caches" in session.searcher.why
    with pytest.raises(InvalidOption, match="search is 'device', but this model's decoder has states and no caches"):
        on_cpu(bundled(name), search="device")


@pytest.mark.parametrize("name", ["marian", "t5", "gru"])
def test_the_fp16_target_is_near(copied, tmp_path, name):
    path = copied(name)
    engine = build(path, write(tmp_path)).engine
    assert engine["agreement"]["best_token"] > 0.9
    session, reference = on_cpu(path, "mine"), s2s_export.load(path, backend="onnxruntime", threads=1)
    found = session.generate(SOURCES, num_beams=1, max_new_tokens=6)
    expected = reference.generate(SOURCES, num_beams=1, max_new_tokens=6)
    assert all(np.isfinite(h[0].score) for h in found)
    assert sum(f[0].token_ids == e[0].token_ids for f, e in zip(found, expected, strict=True)) >= 3


def test_sources_leave(bundled):
    session = on_cpu(bundled("marian"))
    state, alone = session.backend.begin(SOURCES, 2), session.backend.begin([SOURCES[1]], 2)
    tokens, parents = np.full((5, 2), 7), np.zeros((5, 2), np.int64)
    state.step(tokens, parents, StepQuery())
    alone.step(tokens[:1], parents[:1], StepQuery())
    state.keep(np.array([1]))
    found, expected = (s.step(tokens[:1], parents[:1], StepQuery(3, dense=True)) for s in (state, alone))
    np.testing.assert_allclose(found.log_probs, expected.log_probs, atol=1e-5)


def test_alignments_need_an_engine_that_gives_them(copied, tmp_path):
    path = copied("marian")
    build(path, write(tmp_path))
    with pytest.raises(BackendError, match="set attention = true"):
        on_cpu(path, "mine").generate(SOURCES[:1], max_new_tokens=4, alignments=True)
    build(path, write(tmp_path, options="attention = true\n"))
    assert on_cpu(path, "mine").generate(SOURCES[:1], max_new_tokens=4, alignments=True)[0][0].alignment is not None


@pytest.mark.parametrize(
    ("precision", "keys", "message"),
    [
        ("int8", "", "precision is int8, expected fp32 or fp16"),
        ("fp16", "plugins = true\n", "ONNX Runtime can't use our plugins"),
        ("fp16", "[ranges]\nB = { min = 1, opt = 1, max = 1 }\n", "ONNX Runtime takes any shape"),
    ],
)
def test_recipes_that_it_cannot_serve(copied, tmp_path, precision, keys, message):
    with pytest.raises(InvalidOption, match=message):
        build(copied("t5"), write(tmp_path, precision, keys))


def test_engines_that_are_not_what_was_built(copied, tmp_path):
    path = copied("t5")
    folder = build(path, write(tmp_path)).path
    graph = folder / "encoder.onnx"
    whole = graph.read_bytes()
    graph.write_bytes(whole[:-1])
    with pytest.raises(EngineError, match=r"the engine is damaged; run: s2s build .* --target mine --force"):
        on_cpu(path, "mine")
    graph.write_bytes(b"x" * len(whole))
    with pytest.raises(EngineError, match="the file is damaged; run: s2s build"):
        on_cpu(path, "mine")
    record = json.loads((folder / "engine.json").read_text())
    entry = {**record["files"]["encoder.onnx"], "sha256": hashlib.sha256(graph.read_bytes()).hexdigest()}
    (folder / "engine.json").write_text(json.dumps({**record, "files": {**record["files"], "encoder.onnx": entry}}))
    with pytest.raises(EngineError, match="ONNX Runtime can't load it"):
        on_cpu(path, "mine")
    graph.write_bytes(whole)
    (folder / "engine.json").write_text(json.dumps({**record, "made_from": {}}))
    with pytest.raises(EngineError, match="another version of this bundle"):
        on_cpu(path, "mine")
    assert "for target 'other'; known: mine; run: s2s build" in cuda.incompatible_reason(bundle.read(path), "other")
