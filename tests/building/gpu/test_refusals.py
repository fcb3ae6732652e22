"""What goes wrong says what was found, what was expected, what to do; a failed build leaves the older engine."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import threading
import time

import onnx
import pytest
from fake_tensorrt import VERSION, FakeDevice, fake_library
from fake_tensorrt import build as fake_build
from onnx import helper
from small import recipe

import s2s_export
from s2s_export import bundle, plugin_sources
from s2s_export.building import build as building
from s2s_export.building.builders import tensorrt as tensorrt_builder
from s2s_export.building.gpu import compile as compiling
from s2s_export.building.gpu import gates
from s2s_export.cli import main
from s2s_export.errors import BackendUnavailable, BuildError, EngineError, InvalidOption
from s2s_export.recipes import Range
from s2s_export.runtime.backends import declared
from s2s_export.runtime.backends._tensorrt import library as libraries
from s2s_export.runtime.backends._tensorrt.backend import TensorRTBackend
from s2s_export.runtime.backends._tensorrt.library import Library
from s2s_export.runtime.backends._tensorrt.messages import Messages
from s2s_export.runtime.cuda import driver as memory

SMALL = "[ranges]\nT = { min = 1, opt = 8, max = 16 }\n[options]\nn_samples = 2\nn_steps = 4\n"
has_gpu = memory.unavailable() is None


def write(tmp_path, lines, name="mine"):
    file = tmp_path / f"{name}.toml"
    file.write_text(lines + SMALL)
    return str(file)


RTX = 'flavour = "tensorrt-rtx"\nprecision = "fp16"\ncompute_capabilities = ["8.9"]\n'

# The library and the machine


def test_an_absent_library_is_one_sentence_with_the_pip_line(copied, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(
        BackendUnavailable, match=r"TensorRT-RTX can't be imported .*; pip install 's2s-export\[rtx\]'$"
    ):
        libraries.load("tensorrt-rtx")
    with pytest.raises(BuildError, match=r"pip install 's2s-export\[rtx\]'"):
        building.build(copied("t5"), write(tmp_path, RTX))


@pytest.mark.skipif(libraries.unavailable("tensorrt") is None, reason="TensorRT is installed")
def test_backends_without_their_library_say_what_to_install():
    reason = declared()["tensorrt"].unavailable()
    assert reason.startswith("TensorRT is not installed; pip install 's2s-export[tensorrt]'")
    assert reason.count(". ") == 0


@pytest.mark.skipif(has_gpu, reason="this machine has a GPU")
def test_without_a_gpu_the_backends_say_so(bundled, trt):
    reason = declared()["tensorrt-rtx"].unavailable()
    assert "no CUDA driver" in reason or "GPU" in reason
    with pytest.raises(BackendUnavailable, match="tensorrt-rtx: "):
        s2s_export.load(bundled("t5"), backend="tensorrt-rtx")
    reason = declared()["onnxruntime-cuda"].unavailable()
    assert "CUDAExecutionProvider" in reason
    assert "s2s-export[cuda]" in reason


@pytest.mark.skipif(has_gpu, reason="this machine has a GPU")
def test_full_tensorrt_is_built_on_its_gpu(copied, tmp_path, monkeypatch):
    fake = dataclasses.replace(fake_library(), flavour="tensorrt")
    del fake.trt.ComputeCapability
    fake.trt.LayerType = type("LayerType", (), {"__members__": {"KV_CACHE_UPDATE": 1}})
    monkeypatch.setattr(libraries, "load", lambda flavour: fake)
    target = write(tmp_path, 'flavour = "tensorrt"\nprecision = "fp16"\ncompute_capabilities = ["9.0"]\n')
    with pytest.raises(BuildError, match="is built on the GPU that runs it.*copy the bundle to that machine"):
        building.build(copied("t5"), target)


def test_an_old_library_without_cache_layers_asks_for_our_kernels(copied, tmp_path, monkeypatch):
    fake = dataclasses.replace(fake_library(), flavour="tensorrt")
    fake.trt.LayerType = type("LayerType", (), {"__members__": {}})
    monkeypatch.setattr(libraries, "load", lambda flavour: fake)
    target = write(tmp_path, 'flavour = "tensorrt"\nprecision = "fp16"\ncompute_capabilities = ["8.7"]\n')
    with pytest.raises(BuildError, match="no layer for K/V caches.*set plugins = true"):
        building.build(copied("t5"), target)


def test_a_missing_library_link_is_found_before_the_parser_aborts(copied, tmp_path, trt, monkeypatch):
    """Without it the process would die with "terminate called without an active exception"."""

    library = plugin_sources.module("glue.parser_library")
    fake = tmp_path / "tensorrt_rtx_libs"
    fake.mkdir()
    (fake / "libtensorrt_rtx.so.1").touch()
    monkeypatch.setattr(library, "wheel_libraries", lambda: fake)
    monkeypatch.setattr(os, "symlink", lambda *args: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    with pytest.raises((BuildError, BackendUnavailable), match=r"is missing, .*the ONNX parser aborts.*ln -s"):
        building.build(copied("t5"), write(tmp_path, RTX + "plugins = true\n"))


# Recipes that can't be built


def test_a_compute_capability_that_the_library_lacks(copied, tmp_path, trt):
    with pytest.raises(BuildError, match=r"compiles for .*SM89.*, not for SM90; change compute_capabilities"):
        building.build(copied("t5"), write(tmp_path, RTX.replace('"8.9"', '"8.9", "9.0"')))


def test_no_compute_capability(copied, tmp_path, trt):
    with pytest.raises(InvalidOption, match="compute_capabilities is empty"):
        building.build(copied("t5"), write(tmp_path, RTX.replace('"8.9"', "")))


def test_a_range_that_the_model_cannot_serve(copied, tmp_path):
    target = tmp_path / "mine.toml"
    target.write_text(RTX + "[ranges]\nS = { min = 64, opt = 64, max = 64 }\n")
    with pytest.raises(InvalidOption, match=r"ranges\.S begins at 64, but .*limit is 48"):
        building.build(copied("marian"), str(target))


def test_hardware_without_fp8(copied, tmp_path, trt):
    lines = RTX.replace("fp16", "fp8").replace("8.9", "8.6")
    with pytest.raises(BuildError, match="can't build the engine .*sm86"):
        building.build(copied("t5"), write(tmp_path, lines))


def test_attention_without_a_kernel_may_be_refused(copied, tmp_path, trt):
    target = tmp_path / "mine.toml"
    target.write_text(RTX + SMALL + "decompose_attention = false\n")
    with pytest.raises(BuildError, match="set decompose_attention = true"):
        building.build(copied("t5"), str(target))


def test_a_workspace_that_is_too_small_says_what_to_raise(trt, monkeypatch, tmp_path):
    """TensorRT-RTX plans without timing and takes any workspace; the library's words are put in its mouth."""
    model = _save(tmp_path, [helper.make_node("Relu", ["x"], ["y"])])
    said = "Insufficient workspace: requested 3145728 but only 1048576 is available"

    def fails(library, name, builder, network, config, messages, progress):
        messages.add("ERROR", said)

    monkeypatch.setattr(compiling, "_build", fails)
    target = recipe("fp16", workspace_mib=1)
    with pytest.raises(BuildError, match=r"Insufficient workspace.*raise workspace_mib \(now 1\)"):
        compiling.compile_graph(
            Library("tensorrt-rtx", trt), "g", model, tmp_path / "e", {"B": Range(1, 1, 2)}, target, print
        )


# Graphs that would be compiled into something else


def _save(folder, nodes, inputs=(("x", 1),), domain=None):
    values = [helper.make_tensor_value_info(name, kind, ["B", 4]) for name, kind in inputs]
    graph = helper.make_graph(nodes, "g", values, [helper.make_tensor_value_info("y", 1, None)])
    opsets = [helper.make_opsetid("", 24), *([helper.make_opsetid(domain, 1)] if domain else [])]
    onnx.save_model(helper.make_model(graph, opset_imports=opsets, ir_version=11), folder / "g.onnx")
    return folder / "g.onnx"


def test_an_input_that_the_parser_drops_fails_the_build(trt, tmp_path):
    """The standard Attention's lengths: parsed, dropped, and the result would be wrong."""
    heads = [helper.make_tensor_value_info(name, 1, [1, 2, 8, 64]) for name in ("q", "k", "v")]
    heads.append(helper.make_tensor_value_info("lengths", onnx.TensorProto.INT64, [1]))
    node = helper.make_node("Attention", ["q", "k", "v", "", "", "", "lengths"], ["y"])
    graph = helper.make_graph([node], "g", heads, [helper.make_tensor_value_info("y", 1, [1, 2, 8, 64])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11)
    onnx.save_model(model, tmp_path / "g.onnx")
    with pytest.raises(BuildError, match="inputs were dropped.*Unused Input: lengths"):
        compiling.compile_graph(
            Library("tensorrt-rtx", trt), "g", tmp_path / "g.onnx", tmp_path / "e", {}, recipe(), print
        )


def test_another_layer_mix_fails_the_build(trt):
    library = Library("tensorrt-rtx", trt)
    messages = Messages(library)
    network = type(
        "Network", (), {"num_layers": 1, "get_layer": lambda self, i: type("L", (), {"type": "X.SOFTMAX"})()}
    )()
    expected = gates.expected_layers({"BeamSelfAttention": 2, "CrossAttention": 2}, {"TRT_Attention"}, library, False)
    assert expected["ATTENTION_INPUT"] == expected["KV_CACHE_UPDATE"] == 4
    with pytest.raises(BuildError, match=r"0 ATTENTION_INPUT layers, expected 4; 0 KV_CACHE_UPDATE layers, expected 4"):
        gates.check("decoder_step", network, messages, expected)


def test_sizes_that_our_kernels_refuse_fail_the_build():
    """The library builds such an engine all the same, and it would fail when the sizes come."""
    glue = plugin_sources.module("glue.tensorrt_plugins")
    glue._refusals.append("head size 99")
    with pytest.raises(BuildError, match=r"decoder_step: our kernels don't serve .*head size 99.* plugins = false"):
        tensorrt_builder._check_plugins("decoder_step")
    tensorrt_builder._check_plugins("decoder_step")  # a refusal is told once


def test_a_graph_that_the_parser_cannot_read_names_the_node(trt, tmp_path):
    model = _save(
        tmp_path, [helper.make_node("MatMulNBits", ["x"], ["y"], name="strange", domain="ours")], domain="ours"
    )
    with pytest.raises(BuildError, match="can't read the graph .*strange"):
        compiling.compile_graph(Library("tensorrt-rtx", trt), "g", model, tmp_path / "e", {}, recipe(), print)


# Builds that end early


def test_ctrl_c_ends_the_build_and_leaves_the_older_engine(copied, tmp_path, trt):
    path, target = copied("bart"), write(tmp_path, RTX)
    before = building.build(path, target).engine["key"]
    record = path / "engines" / "mine" / "engine.json"
    stamp = record.stat().st_mtime_ns

    def interrupt(stage):
        if stage.startswith("decoder_step: "):  # the library is at work
            os.kill(os.getpid(), signal.SIGINT)

    begin = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        building.build(path, target, force=True, progress=interrupt)
    assert time.perf_counter() - begin < 60
    assert json.loads(record.read_text())["key"] == before
    assert record.stat().st_mtime_ns == stamp
    assert [p.name for p in (path / "engines").iterdir()] == ["mine"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_cancelled_monitor_stops_the_library(trt):
    cancelled = threading.Event()
    told = []
    monitor = compiling.make_monitor(trt, "encoder", told.append, cancelled)
    monitor.phase_start("Building Engine", None, 3)
    monitor.phase_start("inner", "Building Engine", 2)
    monitor.phase_start("Building Engine", None, 3)
    assert told == ["encoder: building engine"]
    assert monitor.step_complete("Building Engine", 0)
    cancelled.set()
    assert not monitor.step_complete("Building Engine", 1)


# Engines that can't run here


@pytest.fixture
def engine(copied, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = copied("t5")
    folder = fake_build(bundle.read(path), recipe("fp32"), tmp_path)

    def opening(library=None, device=None, verify=True):
        opened = bundle.read(path, verify=verify)
        return TensorRTBackend("x", opened, folder, library or fake_library(), device or FakeDevice())

    return folder, opening


AGAIN = r"; run: s2s build .*t5\.bundle --target small-fp32 --force"


def test_another_gpu(engine):
    device = FakeDevice()
    device.capability = "7.5"
    with pytest.raises(EngineError, match=f"built for compute capability 8.9, but this GPU has 7.5{AGAIN}"):
        engine[1](device=device)


def test_another_version(engine):
    library = fake_library()
    library.trt.__version__ = "9.9"
    with pytest.raises(
        EngineError, match=f"built with tensorrt-rtx {VERSION}, but tensorrt-rtx 9.9 is installed{AGAIN}"
    ):
        engine[1](library=library)


def test_a_header_that_the_library_refuses(engine):
    file = engine[0] / "encoder.engine"
    file.write_bytes(b"X" * file.stat().st_size)
    with pytest.raises(EngineError, match=f"encoder.engine: is not what was built, the file is damaged{AGAIN}"):
        engine[1]()
    with pytest.raises(EngineError, match=rf"encoder.engine: can't run here \(unsupported cc\){AGAIN}"):
        engine[1](verify=False)


def test_an_engine_cut_short(engine):
    file = engine[0] / "decoder_step.engine"
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(
        EngineError, match=rf"decoder_step.engine: \d+ bytes, \d+ bytes recorded; the engine is damaged{AGAIN}"
    ):
        engine[1]()


def test_an_engine_that_will_not_load(engine):
    with pytest.raises(EngineError, match=f"TensorRT-RTX can't load it .*{AGAIN}"):
        engine[1](library=fake_library(loads=False))


def test_an_engine_of_another_bundle(engine):
    record = engine[0] / "engine.json"
    value = json.loads(record.read_text())
    value["made_from"]["encoder.onnx"] = "0" * 64
    record.write_text(json.dumps(value))
    with pytest.raises(EngineError, match=f"built from another version of this bundle{AGAIN}"):
        engine[1]()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"flavour": "tensorrt-rtx"}'])
def test_a_damaged_record(engine, text):
    (engine[0] / "engine.json").write_text(text)
    with pytest.raises(EngineError, match=r"engine.json: .*; run: s2s build"):
        engine[1]()


@pytest.mark.skipif(has_gpu, reason="this machine has a GPU")
def test_a_real_header_is_asked_for_and_a_real_engine_refused_without_a_gpu(copied, tmp_path, trt):
    path = copied("t5")
    folder = building.build(path, write(tmp_path, RTX)).path
    with pytest.raises(EngineError, match=r"encoder.engine: can't run here \(.+\); run: s2s build"):
        TensorRTBackend("x", bundle.read(path), folder, Library("tensorrt-rtx", trt), FakeDevice())


def test_bundles_without_an_engine_say_how_to_build_one(engine, bundled):
    backend = declared()["tensorrt-rtx"]
    empty = bundle.read(bundled("bart"))
    assert "has no tensorrt-rtx engine; run: s2s build" in backend.incompatible_reason(empty, None)
    assert "for target 'mine'" in backend.incompatible_reason(empty, "mine")
    one = bundle.read(engine[0].parent.parent)
    assert backend.incompatible_reason(one, None) is None
    assert backend.incompatible_reason(one, "small-fp32") is None
    assert "no tensorrt engine" in declared()["tensorrt"].incompatible_reason(one, None)


def test_the_command_line_says_it_in_one_sentence(copied, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["build", str(copied("t5")), "--target", "rtx-fp61"])
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert "did you mean 'rtx-fp16'" in said
    assert "Traceback" not in said
