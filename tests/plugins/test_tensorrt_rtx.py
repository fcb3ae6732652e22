"""TensorRT-RTX compiles a step with our nodes ahead of time, without a GPU, and takes the plugins for them."""

from __future__ import annotations

import os
import types
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from s2s_export import plugin_sources
from s2s_export.errors import BackendUnavailable, BuildError

glue = plugin_sources.module("glue.tensorrt_plugins")
parser_library = plugin_sources.module("glue.parser_library")
OPERATIONS = plugin_sources.module().operations()
RANGES = {"B": (1, 2, 4), "K": (1, 4, 16), "C": (4, 16, 64), "S": (1, 16, 64)}


@pytest.fixture
def trt() -> Iterator[types.ModuleType]:
    module = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is missing: pip install tensorrt-rtx-cu13")
    pytest.importorskip("onnx", reason="onnx is missing: pip install onnx")
    parser_library.ensure_parser_can_load_plugins(module)
    yield module
    glue.unregister(module)
    glue.refusals()


class ParserError(Exception):
    pass


class Compiled:
    """A parsed and compiled step, with everything TensorRT said."""

    def __init__(self, trt: types.ModuleType, model: object, capabilities: list[str], aliasing: bool = True) -> None:
        said: list[tuple[object, str]] = []

        class Log(trt.ILogger):
            def log(self, severity: object, text: str) -> None:
                said.append((severity, text))

        self.log = Log()
        self.builder = trt.Builder(self.log)
        network = self.builder.create_network(0)
        parser = trt.OnnxParser(network, self.log)
        if not parser.parse(model.SerializeToString()):
            raise ParserError(" ".join(parser.get_error(i).desc() for i in range(parser.num_errors)))
        config = self.builder.create_builder_config()
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        config.set_preview_feature(trt.PreviewFeature.ALIASED_PLUGIN_IO_10_03, aliasing)
        config.num_compute_capabilities = len(capabilities)
        for i, name in enumerate(capabilities):
            config.set_compute_capability(getattr(trt.ComputeCapability, name), i)
        profile = self.builder.create_optimization_profile()
        for given in model.graph.input:
            dims = given.type.tensor_type.shape.dim
            shapes = [[RANGES[d.dim_param][i] if d.dim_param else d.dim_value for d in dims] for i in range(3)]
            profile.set_shape(given.name, *shapes)
        config.add_optimization_profile(profile)
        self.engine = self.builder.build_serialized_network(network, config)
        self.network_layers = Counter(network.get_layer(i).type.name for i in range(network.num_layers))
        self.errors = [text for severity, text in said if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR)]
        self.warnings = [text for severity, text in said if severity == trt.ILogger.WARNING]
        # The inspector wants a deserialised engine, which wants a driver; the build prints the same list.
        lists = [text for _, text in said if text.startswith("Layers:")]
        self.engine_layers = [line for text in lists for line in text.splitlines() if line.startswith("Name: ")]

    def layers_of(self, name: str) -> list[str]:
        return [line for line in self.engine_layers if f"[ONNX Layer: {name}]" in line]


@pytest.mark.parametrize("element", ["fp32", "fp16", "bf16"])
def test_plugins_are_taken(trt: types.ModuleType, element: str) -> None:
    import plugin_model

    assert glue.register(trt) == sorted(OPERATIONS)
    compiled = Compiled(trt, plugin_model.step(element), ["SM80", "SM86", "SM89", "SM120"])
    assert compiled.engine is not None, compiled.errors
    assert compiled.network_layers["PLUGIN_V3"] == 2 * plugin_model.LAYERS
    assert not [text for text in compiled.warnings if "Unused Input" in text]
    assert not glue.refusals()
    for layer, name in enumerate(["BeamSelfAttention", "BeamSelfAttentionBias"]):
        (line,) = compiled.layers_of(f"self_attention_{layer}")
        assert f"LayerType: PluginV3, Inputs: [ {{ Name: query{layer}" in line
        assert f"PluginType: {name}, " in line
        assert "key_cache_out is key_cache; value_cache_out is value_cache" in line
        # Without aliased tensors, the compiler takes a plugin into its own graph, as a custom layer.
        assert any("LayerType: custom_layer" in line for line in compiled.layers_of(f"cross_attention_{layer}"))


def test_function_bodies_are_taken_without_plugins(trt: types.ModuleType) -> None:
    import plugin_model

    glue.register(trt)
    glue.unregister(trt)
    compiled = Compiled(trt, plugin_model.step("fp16"), ["SM86"])
    assert compiled.engine is not None, compiled.errors
    assert compiled.network_layers["PLUGIN_V3"] == 0
    assert compiled.network_layers["SOFTMAX"] == 2 * plugin_model.LAYERS


def test_aliasing_needs_the_preview_feature(trt: types.ModuleType) -> None:
    import plugin_model

    glue.register(trt)
    compiled = Compiled(trt, plugin_model.step("fp16"), ["SM86"], aliasing=False)
    assert compiled.engine is None
    assert any("ALIASED_PLUGIN_IO_10_03" in text for text in compiled.errors)


def test_head_size_without_a_kernel_is_refused_by_the_parser(trt: types.ModuleType) -> None:
    import plugin_model

    glue.register(trt)
    with pytest.raises(ParserError, match="output shape computation failed"):
        Compiled(trt, plugin_model.step("fp16", head_size=136), ["SM86"])
    (reason,) = glue.refusals()
    assert "no kernel for head size 136 (expected a multiple of 8 up to 128)" in reason


def test_range_of_beams_without_a_kernel_is_noted(trt: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    import plugin_model

    monkeypatch.setitem(RANGES, "K", (1, 4, 17))
    glue.register(trt)
    Compiled(trt, plugin_model.step("fp16"), ["SM86"])
    reasons = glue.refusals()
    assert len(reasons) == len(OPERATIONS)
    assert all("no kernel for 17 beams (expected 1 to 16)" in reason for reason in reasons)
    assert not glue.refusals()


def test_scale_survives_serialising(trt: types.ModuleType) -> None:
    import numpy as np

    creator = glue.make_creator(trt, OPERATIONS["CrossAttention"], glue.Kernels("cross_attention", None))
    plugin = creator.create_plugin("x", [types.SimpleNamespace(name="scale", data=np.float32(0.3))], None)
    assert creator.create_plugin("x", list(plugin.clone().get_fields_to_serialize()), None).scale == np.float32(0.3)
    with pytest.raises(BuildError, match="lacks the attribute 'scale'"):
        creator.create_plugin("x", [], None)


class TestParserLibrary:
    rtx = types.SimpleNamespace(ComputeCapability=None)

    def folder(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setattr(parser_library, "wheel_libraries", lambda: path)
        (path / "libtensorrt_rtx.so.1").write_text("")
        return path / "libtensorrt_rtx.so"

    def test_link_is_added_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        link = self.folder(tmp_path, monkeypatch)
        assert str(link) in parser_library.ensure_parser_can_load_plugins(self.rtx)
        assert os.readlink(link) == "libtensorrt_rtx.so.1"
        assert parser_library.ensure_parser_can_load_plugins(self.rtx) is None

    def test_dead_link_is_replaced(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        link = self.folder(tmp_path, monkeypatch)
        link.symlink_to("libtensorrt_rtx.so.0")
        assert parser_library.ensure_parser_can_load_plugins(self.rtx)
        assert link.exists()

    def test_command_is_named_when_not_repaired(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        link = self.folder(tmp_path, monkeypatch)
        with pytest.raises(BackendUnavailable, match=rf"run: ln -s libtensorrt_rtx.so.1 {link}$"):
            parser_library.ensure_parser_can_load_plugins(self.rtx, repair=False)
        assert not link.exists()

    def test_folder_that_can_not_be_written(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder(tmp_path, monkeypatch)

        def refuse(*_: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(os, "symlink", refuse)
        with pytest.raises(BackendUnavailable, match=r"\(Permission denied\); run, with the rights"):
            parser_library.ensure_parser_can_load_plugins(self.rtx)

    def test_library_that_is_missing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder(tmp_path, monkeypatch)
        (tmp_path / "libtensorrt_rtx.so.1").unlink()
        with pytest.raises(BackendUnavailable, match="pip install --force-reinstall"):
            parser_library.ensure_parser_can_load_plugins(self.rtx)

    def test_without_the_wheel_the_system_is_asked(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(parser_library, "wheel_libraries", lambda: None)
        monkeypatch.setattr(parser_library, "LIBRARY", "libnowhere.so")
        with pytest.raises(BackendUnavailable, match="LD_LIBRARY_PATH"):
            parser_library.ensure_parser_can_load_plugins(self.rtx)

    def test_full_tensorrt_needs_nothing(self) -> None:
        assert parser_library.ensure_parser_can_load_plugins(types.SimpleNamespace()) is None
