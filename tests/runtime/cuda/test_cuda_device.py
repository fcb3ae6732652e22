"""The CUDA device, against a library with the driver's functions: the whole loop through ctypes, captures and libcuda.

The library is compiled with cuda.h, so its prototypes, structures and constants are the driver's. What no test here can
show is how a GPU behaves.
"""

from __future__ import annotations

import ctypes
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")

import fake_tensorrt
import small
from device_helpers import (
    ScriptedExecutor,
    by_definition,
    missing_compiler,
    random_options,
    random_script,
    random_sources,
    resolved,
)

import s2s_export
from s2s_export import bundle, plugin_sources
from s2s_export.building.build import build as make_engine
from s2s_export.errors import BackendError, BackendUnavailable, BuildError
from s2s_export.runtime.backends._cuda_native.backend import NativeBackend
from s2s_export.runtime.backends._cuda_native.encoder import EncoderProgram
from s2s_export.runtime.backends._tensorrt.backend import TensorRTBackend
from s2s_export.runtime.cuda import cublaslt, libcuda
from s2s_export.runtime.cuda import driver as memory
from s2s_export.runtime.cuda.device import CudaDevice
from s2s_export.runtime.cuda.emulation import HostDevice
from s2s_export.runtime.device_search import DeviceLost, DeviceSearch
from s2s_export.runtime.device_search.narrow import NarrowExecutor
from s2s_export.runtime.session import Session
from s2s_export.runtime.sources import kind_of

build = plugin_sources.module("build")


def header_folder() -> Path | None:
    try:
        folder = build.toolkit() / "include"
    except BuildError:
        return None
    return folder if (folder / "cuda.h").is_file() else None


if missing_compiler() or header_folder() is None:
    pytest.skip(missing_compiler() or "no CUDA toolkit with cuda.h", allow_module_level=True)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("driver") / "libfake.so"
    sources = [Path(__file__).with_name(f"fake_{name}.cpp") for name in ("driver", "cublaslt")]
    includes = [f"-I{header_folder()}", f"-I{build.ROOT}"]
    compiler = build.find_compiler("c++", "g++", "clang++")
    command = [compiler, "-std=c++17", "-shared", "-fPIC", *includes, *sources, "-o", output, "-ldl"]
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return output


class FakeCuda(CudaDevice):
    """A CUDA device on the stand-in, which can also queue a Python function: what a scripted executor needs."""

    def __init__(self, binary: Path) -> None:
        super().__init__(binary=binary)
        self._functions: list[Any] = []

    def call(self, function: Callable[[], object]) -> None:
        queued = ctypes.CFUNCTYPE(None)(lambda: function() and None)
        self._functions.append(queued)
        self._cu.fake_call(ctypes.c_void_p(7), queued)


@pytest.fixture
def make(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., FakeCuda]]:
    monkeypatch.setattr(libcuda, "LIBRARY", str(library))
    libcuda.driver.cache_clear()
    monkeypatch.setattr(cublaslt, "found", lambda: None)  # it would be kept for the process, with the stand-in
    # The "binary" is the name of the host build, which the stand-in opens.
    binary = tmp_path / "beam_search.fatbin"
    binary.write_bytes(str(build.host_library("beam_search")).encode() + b"\0")

    def made(version: int = 13000, fail_at: int = -1) -> FakeCuda:
        ctypes.CDLL(str(library)).fake_reset(version, fail_at)
        return FakeCuda(binary)

    yield made
    ctypes.CDLL(str(library)).fake_reset(13000, -1)
    libcuda.driver.cache_clear()


def case(seed: int, **fixed: Any) -> tuple[Any, Any, list[list[int]]]:
    chance = random.Random(seed)
    options = resolved(random_options(chance, 23, **fixed), 23)
    sources = random_sources(chance, chance.randint(1, 2), 23)
    return options, random_script(seed, 23, options.eos_token_id, "plain"), sources


@pytest.mark.parametrize("mode", ["while", "replay", "queue"])
def test_the_loop_through_the_driver(make: Callable[..., FakeCuda], mode: Any) -> None:
    for seed in range(6):
        options, script, sources = case(seed)
        device = make()
        executor = ScriptedExecutor(device, script, (len(sources), options.n_rows, 23), options.max_length - 1)  # type: ignore[arg-type]
        search = DeviceSearch(device, executor)
        expected = by_definition(script, sources, options, 23)
        for _ in range(2):  # the second time on the graph that the first one made
            found = search.run(sources, options, mode=mode)
            assert [[h.token_ids for h in of] for of in found] == [[h.token_ids for h in of] for of in expected]
        search.close()


@pytest.mark.parametrize("mode", ["while", "replay", "queue"])
def test_fewer_beams_than_an_executor_runs(make: Callable[..., FakeCuda], mode: Any) -> None:
    """Three and five of six, by copies of rows that the graphs hold too."""
    for seed, n_beams in ((3, 3), (5, 5)):
        options, script, sources = case(seed, num_beams=n_beams)
        device = make()
        inner = ScriptedExecutor(device, script, (len(sources), 6, 23), options.max_length - 1)  # type: ignore[arg-type]
        beams = np.broadcast_to(np.arange(6)[:, None], (len(sources), 6, inner.capacity)).copy()
        device.to_device(inner.ancestors, beams, 7)
        buffers = memory.Buffers(device, 7)
        search = DeviceSearch(device, NarrowExecutor(inner, n_beams, device, buffers.get))
        expected = by_definition(script, sources, options, 23)
        for _ in range(2):
            found = search.run(sources, options, mode=mode)
            assert [[h.token_ids for h in of] for of in found] == [[h.token_ids for h in of] for of in expected]


def test_a_session_through_the_driver(
    make: Callable[..., FakeCuda], exported: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Engines, search and graphs by the driver's own calls; a stream; then the GPU goes away."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "t5.bundle"
    shutil.copytree(exported("t5")[1], path, ignore=shutil.ignore_patterns("engines"))
    folder = fake_tensorrt.build(bundle.read(path), small.recipe("fp32", options={"attention": True}), tmp_path)
    device = make()
    device.capability = fake_tensorrt.CAPABILITY
    library = fake_tensorrt.fake_library(queue=device.call)
    backend = TensorRTBackend("tensorrt-rtx", bundle.read(path), folder, library, device, lambda: device)
    session = Session(bundle.read(path), backend)
    reference = s2s_export.load(path, backend="onnxruntime", threads=1)
    sources = [[5, 9, 3], [7, 8, 9, 10, 11, 12, 4, 6, 3]]
    for beams in (1, 4, 7, 4):
        found = session.generate(sources, num_beams=beams, max_new_tokens=8, alignments=True)
        expected = reference.generate(sources, num_beams=beams, max_new_tokens=8, alignments=True)
        for ours, theirs in zip(found, expected, strict=True):
            assert ours[0].token_ids == theirs[0].token_ids
            np.testing.assert_allclose(ours[0].alignment, theirs[0].alignment, atol=1e-5)
    options = session.options(num_beams=4, max_new_tokens=8)
    told = [token for part in session.searcher.stream(sources[0], options) for token in part]
    assert told == reference.decode(sources[:1], options)[0][0].token_ids
    ctypes.CDLL(libcuda.LIBRARY).fake_reset(13000, 3)
    for _ in range(2):
        with pytest.raises(DeviceLost, match="fake GPU was lost .* start a new one"):
            session.decode(sources, options)


def test_an_encoder_by_cublaslt_through_the_driver(
    make: Callable[..., FakeCuda], library: Path, exported: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its products lie between our launches, in a graph too, and write what our own products do."""
    path = shutil.copytree(exported("marian")[1], tmp_path / "marian.bundle", ignore=shutil.ignore_patterns("engines"))
    folder = make_engine(path, "cuda-native-fp16").path
    kernels = tmp_path / "transformer.fatbin"
    kernels.write_bytes(str(build.host_library("transformer")).encode() + b"\0")
    monkeypatch.setattr(build, "binary_for", lambda folder, capability, driver=None: kernels)
    monkeypatch.setattr(cublaslt, "found", lambda: cublaslt.Library(str(library)))
    opened, device, products = bundle.read(path), make(), ctypes.CDLL(str(library)).fake_cublaslt_products
    loaded = NativeBackend(opened, folder, device).loaded
    values = kind_of(opened).prepare([[5, 9, 3], [7, 8, 9, 10], [30], [9] * 12])
    results = []
    for uses_library in (True, False):
        buffers = memory.Buffers(device, 7)
        encoder = EncoderProgram(loaded, 4, 16, buffers.get, uses_library=uses_library)
        encoder.upload(values, device, 7)
        found = np.zeros((4 * 16, loaded.model.cross.outputs), np.float16)
        before = products()
        encoder.program.run(7)
        graph = device.capture(7, lambda: encoder.program.run(7))  # noqa: B023
        n = products() - before
        assert n == (2 * 9 if uses_library else 0)  # 2 layers of 4, and keys and values
        for _ in range(2):
            device.zero(encoder.cross, found.nbytes, 7)
            graph.launch(7)
            device.to_host(found, encoder.cross, 7)
            device.synchronize(7)
            results.append(found.copy())
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_allclose(results[0], results[2], atol=0.02 * np.abs(results[2]).max())
    assert not np.array_equal(results[0], results[2])  # else it would be the same kernel


@pytest.mark.parametrize(
    "search",
    ["device-while", *(pytest.param(s, marks=pytest.mark.slow) for s in ("device-replay", "device-queue", "host"))],
)
def test_a_session_with_packed_weights_through_the_driver(
    make: Callable[..., FakeCuda], exported: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, search: str
) -> None:
    """The backend `cuda` with nothing but the driver: kernels of two folders, weights, a step in the search's graph."""
    path = shutil.copytree(exported("marian")[1], tmp_path / "marian.bundle", ignore=shutil.ignore_patterns("engines"))
    folder = make_engine(path, "cuda-native-fp16").path
    kernels = tmp_path / "transformer.fatbin"
    kernels.write_bytes(str(build.host_library("transformer")).encode() + b"\0")
    monkeypatch.setattr(build, "binary_for", lambda folder, capability, driver=None: kernels)
    opened, device = bundle.read(path), make()
    session = Session(opened, NativeBackend(opened, folder, device), search=search)
    emulated = Session(opened, NativeBackend(opened, folder, HostDevice()), search="device-queue")
    sources = [[5, 9, 3], [7, 8, 9, 10, 11, 12, 4, 6, 3]]
    driver = ctypes.CDLL(libcuda.LIBRARY)
    for beams in (1, 3):
        found = session.generate(sources, num_beams=beams, max_new_tokens=8)
        expected = emulated.generate(sources, num_beams=beams, max_new_tokens=8)
        assert [of[0].token_ids for of in found] == [of[0].token_ids for of in expected]
    # All launches of encoder and step but each first one begin early; before Hopper none does.
    assert driver.fake_early_launches() > 20
    driver.fake_capability(89)
    try:
        before, older = (
            driver.fake_early_launches(),
            Session(opened, NativeBackend(opened, folder, make()), search=search),
        )
        found = older.generate(sources, num_beams=3, max_new_tokens=8)
        assert [of[0].token_ids for of in found] == [of[0].token_ids for of in expected]
        assert driver.fake_early_launches() == before
    finally:
        driver.fake_capability(99)
    driver.fake_reset(13000, 3)
    with pytest.raises(DeviceLost, match=r"fake GPU was lost .* start a new one"):
        session.generate(sources, num_beams=3, max_new_tokens=8)


def test_old_drivers(make: Callable[..., FakeCuda]) -> None:
    assert make(13000).while_graphs and make(12040).while_graphs
    device = make(12030)
    assert not device.while_graphs
    options, script, sources = case(1)
    executor = ScriptedExecutor(device, script, (len(sources), options.n_rows, 23), options.max_length - 1)  # type: ignore[arg-type]
    search = DeviceSearch(device, executor)
    with pytest.raises(BackendError, match=r"no WHILE graphs; expected a driver of CUDA 12\.4 or later"):
        search.run(sources, options, mode="while")
    with pytest.raises(BackendUnavailable, match=r"of CUDA 12\.3 and can't load .*update the driver"):
        search.run(sources, options)
    with pytest.raises(BackendUnavailable, match=r"of CUDA 12\.3 and can't load .*update the driver"):
        device.load_kernels()  # as a session does before it decodes


def test_no_driver(make: Callable[..., FakeCuda], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libcuda, "LIBRARY", "libnothing.so.1")
    libcuda.driver.cache_clear()
    with pytest.raises(BackendUnavailable, match=r"no CUDA driver on this machine"):
        CudaDevice()


def test_out_of_memory(make: Callable[..., FakeCuda]) -> None:
    with pytest.raises(BackendError, match=r"room for the tables: 96\.0 MiB asked for, 1\.0 MiB are free; lower"):
        make().allocate(96 << 20, "the tables")


@pytest.mark.parametrize("mode", ["while", "replay"])
def test_a_device_lost_in_mid_decode(make: Callable[..., FakeCuda], mode: Any) -> None:
    options, script, sources = case(4, num_beams=3, max_new_tokens=6, min_new_tokens=6)
    device = make(fail_at=15)
    executor = ScriptedExecutor(device, script, (len(sources), options.n_rows, 23), options.max_length - 1)  # type: ignore[arg-type]
    search = DeviceSearch(device, executor)
    with pytest.raises(DeviceLost, match=r"fake GPU was lost while .* \(CUDA error 700"):
        search.run(sources, options, mode=mode)
    with pytest.raises(DeviceLost, match="start a new one"):  # and it stays lost, without asking the driver
        search.run(sources, options)


def test_layouts_and_constants(tmp_path: Path) -> None:
    checks = {
        "sizeof(CUgraphNodeParams)": ctypes.sizeof(libcuda.NodeParameters),
        "offsetof(CUgraphNodeParams, conditional)": libcuda.NodeParameters.of.offset,
        "sizeof(CUDA_CONDITIONAL_NODE_PARAMS)": ctypes.sizeof(libcuda.ConditionalNode),
        "offsetof(CUDA_CONDITIONAL_NODE_PARAMS, phGraph_out)": libcuda.ConditionalNode.graphs.offset,
        "offsetof(CUDA_CONDITIONAL_NODE_PARAMS, ctx)": libcuda.ConditionalNode.context.offset,
        "CU_STREAM_CAPTURE_MODE_RELAXED": libcuda.RELAXED,
        "CU_GRAPH_NODE_TYPE_CONDITIONAL": libcuda.CONDITIONAL,
        "CU_GRAPH_COND_TYPE_WHILE": libcuda.WHILE,
        "CU_GRAPH_COND_ASSIGN_DEFAULT": libcuda.ASSIGN_DEFAULT,
        "CU_MEMHOSTALLOC_DEVICEMAP": libcuda.DEVICE_MAP,
        "CUDA_ERROR_NOT_READY": libcuda.NOT_READY,
        "sizeof(CUlaunchAttribute)": ctypes.sizeof(libcuda.LaunchAttribute),
        "offsetof(CUlaunchAttribute, value)": libcuda.LaunchAttribute.value.offset,
        "sizeof(CUlaunchConfig)": ctypes.sizeof(libcuda.LaunchConfiguration),
        "offsetof(CUlaunchConfig, hStream)": libcuda.LaunchConfiguration.stream.offset,
        "offsetof(CUlaunchConfig, attrs)": libcuda.LaunchConfiguration.attributes.offset,
        "offsetof(CUlaunchConfig, numAttrs)": libcuda.LaunchConfiguration.n_attributes.offset,
        "CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION": libcuda.OVERLAPS,
        "sizeof(CUDA_MEMCPY2D)": ctypes.sizeof(libcuda.RowCopy),
        "offsetof(CUDA_MEMCPY2D, dstPitch)": libcuda.RowCopy.dst_pitch.offset,
        "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR": libcuda.CAPABILITY_MAJOR,
        "CU_STREAM_NON_BLOCKING": libcuda.NON_BLOCKING,
        "CU_MEMORYTYPE_DEVICE": libcuda.DEVICE,
    }
    lines = [f'static_assert({name} == {value}, "{name}");' for name, value in checks.items()]
    source = tmp_path / "layouts.cpp"
    source.write_text("#include <cuda.h>\n#include <cstddef>\n" + "\n".join(lines))
    compiler = build.find_compiler("c++", "g++", "clang++")
    command = [compiler, "-std=c++17", "-fsyntax-only", f"-I{header_folder()}", str(source)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
