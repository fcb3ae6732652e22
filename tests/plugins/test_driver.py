"""The launch path from Python, down to the driver's functions.

A library stands in for libcuda: it is loaded and called in the same way, but its binaries are names of host libraries,
and launching runs the emulated kernel. So argument order, kernel names, grids and error texts are real.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from plugin_helpers import (
    DTYPES,
    ELEMENTS,
    OPERATIONS,
    Case,
    build,
    check_cross,
    check_self,
    cross_case,
    guarded,
    self_case,
)

from s2s_export import plugin_sources
from s2s_export.errors import BackendError, BackendUnavailable, BuildError
from s2s_export.runtime.cuda import libcuda
from s2s_export.runtime.cuda.binary import LoadedBinary

Launch = plugin_sources.module("common.nodes").Launch

FAKE = r"""
#include <cstdint>
#include <dlfcn.h>
#include <string>

typedef int (*HostLaunch)(const char*, const void*, const uint32_t*, uint32_t);
struct Kernel { HostLaunch launch; std::string name; };
static void* last_stream;
extern "C" {
int cuInit(unsigned) { return 0; }
int cuGetErrorString(int status, const char** text) { *text = status == 98 ? "invalid device function" : "invalid image"; return 0; }
int cuDriverGetVersion(int* version) { *version = 13000; return 0; }
int cuKernelGetFunction(void**, void*) { return 0; }
int cuLibraryLoadData(void** library, const void* code, void*, void*, unsigned, void*, void*, unsigned) {
  *library = dlopen(static_cast<const char*>(code), RTLD_NOW);
  return *library ? 0 : 200;
}
int cuLibraryGetKernel(void** kernel, void* library, const char* name) {
  const std::string text = name;
  const bool attention = text.find("attention") != std::string::npos;
  const std::string folder = attention ? text.substr(0, text.find("attention") + 9) : "beam_search";
  void* launch = dlsym(library, ("s2s_" + folder + "_by_name").c_str());
  *kernel = new Kernel{reinterpret_cast<HostLaunch>(launch), text};
  return launch ? 0 : 500;
}
int cuLaunchKernel(void* kernel, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned, unsigned, unsigned,
                   void* stream, void** arguments, void**) {
  const uint32_t grid[3] = {x, y, z};
  last_stream = stream;
  auto* given = static_cast<Kernel*>(kernel);
  return given->launch(given->name.c_str(), arguments[0], grid, threads) ? 98 : 0;
}
void* fake_last_stream() { return last_stream; }
}
"""  # noqa: E501


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("driver")
    (folder / "fake.cpp").write_text(FAKE)
    compiler = build.find_compiler("c++", "g++", "clang++")
    output = folder / "libcuda.so.1"
    command = [compiler, "-std=c++17", "-O1", "-shared", "-fPIC", str(folder / "fake.cpp"), "-o", str(output), "-ldl"]
    subprocess.run(command, check=True)
    return output


def loaded(opened: libcuda.Driver, folder: str) -> LoadedBinary:
    """A folder's kernels: a binary is the name of a host library here."""
    return LoadedBinary(opened, str(build.host_library(folder)).encode(), folder)


def run_through_driver(case: Case, opened: libcuda.Driver, stream: int = 77) -> dict[str, np.ndarray]:
    operation = OPERATIONS[case.operation]
    sizes = operation.sizes([case.tensors[tensor.name].shape for tensor in operation.inputs])
    shape = [sizes[letter] for letter in operation.outputs[0].shape]
    arrays = {name: guarded(array)[0] for name, array in case.tensors.items()}
    arrays["output"] = guarded(np.zeros(shape, DTYPES[case.element]))[0]
    given = operation.arguments(sizes, {name: array.ctypes.data for name, array in arrays.items()}, case.scale)
    binary = loaded(opened, operation.folder)
    binary.run(operation.plan(case.element, sizes), given, stream)
    return arrays


@pytest.mark.parametrize("element", ELEMENTS)
def test_kernels_by_name(fake: Path, element: str) -> None:
    opened = libcuda.Driver(str(fake))
    rng = np.random.default_rng(4)
    for head_size, beams, length in ((16, 1, 3), (64, 4, 40), (80, 5, 200), (128, 16, 17)):
        case = self_case(rng, element, head_size, beams, length, length - 1, bias=True, sources=2, heads=2)
        check_self(case, run_through_driver(case, opened))
        case = cross_case(rng, element, head_size, beams, length, bias=True, sources=2, heads=2)
        check_cross(case, run_through_driver(case, opened))
    last = ctypes.CDLL(str(fake)).fake_last_stream
    last.restype = ctypes.c_void_p
    assert last() == 77


def test_beam_search_by_name(fake: Path) -> None:
    """Queued from Python, one by one, against the launchers' results."""
    import test_beam_search_kernels as kernels

    launches = plugin_sources.module("beam_search.launches")
    binary = loaded(libcuda.Driver(str(fake)), "beam_search")
    rng = np.random.default_rng(3)
    logits = kernels.random_logits(rng, 6, 3000, "ties", "fp16")
    arrays = kernels.top(logits, "fp16", 8)
    again = {name: array if name == "logits" else np.zeros_like(array) for name, array in arrays.items()}
    lists = launches.top_lists(3000)
    assert [launches.top_lists(v) for v in (1, 512, 513, 10**6)] == [1, 1, 2, 128]
    numbers = {"rows": 6, "vocabulary": 3000, "candidates": 8, "lists": lists}
    given = kernels.fill(kernels.structures.LogSoftmaxTopParameters, again, **numbers)
    for launch in launches.log_softmax_top("fp16", given):
        binary.run(launch, given, 0)
    different = {name: (again[name], x) for name, x in arrays.items() if again[name].tobytes() != x.tobytes()}
    assert not different

    search = kernels.reference.Search(sources=2, beams=3, end_ids=(5,), prompt=1, limit=9, capacity=12)
    tables = {name: array.copy() for name, array in search.arrays.items()}
    ids, log_probs = again["candidate_ids"].reshape(2, 3, 8), again["candidate_log_probs"].reshape(2, 3, 8)
    search.update(log_probs, ids)
    search.stop()
    tables.update(candidate_log_probs=log_probs, candidate_ids=ids)
    sizes = {"sources": 2, "beams": 3, "candidates": 8, "n_end": 1, "prompt": 1, "limit": 9, "capacity": 12}
    given = kernels.fill(kernels.structures.BeamUpdateParameters, tables, **sizes)
    binary.run(launches.beam_update(given), given, 0)
    given = kernels.fill(kernels.structures.BeamStopParameters, tables, sources=2, beams=3)
    binary.run(launches.beam_stop(given), given, 0)
    different = {name: (tables[name], x) for name, x in search.arrays.items() if tables[name].tobytes() != x.tobytes()}
    assert not different


def test_beam_search_refuses() -> None:
    launches = plugin_sources.module("beam_search.launches")
    structures = plugin_sources.module("beam_search.structures")
    for numbers, text in (
        ({"beams": 17, "candidates": 40}, "17 beams; the kernel takes 1 to 16"),
        ({"beams": 4, "candidates": 1}, "1 candidates for each of 4 beams and 0 end tokens; expected 8 to 2048"),
    ):
        with pytest.raises(BuildError, match=text):
            launches.beam_update(structures.BeamUpdateParameters(**numbers))
    with pytest.raises(BuildError, match="9 candidates of 4 tokens"):
        launches.log_softmax_top("fp32", structures.LogSoftmaxTopParameters(candidates=9, vocabulary=4))


def test_errors_carry_the_drivers_text(fake: Path) -> None:
    opened = libcuda.Driver(str(fake))
    with pytest.raises(BackendUnavailable, match=r"CUDA 13.0 and can't load it.fatbin \(error 200, invalid image\)"):
        LoadedBinary(opened, b"nothing", "it.fatbin")
    binary = loaded(opened, "cross_attention")
    argument = OPERATIONS["CrossAttention"].parameters()
    with pytest.raises(BackendError, match="finding the kernel softmax failed with CUDA error 500"):
        binary.run(Launch("softmax", (1, 1, 1), 32), argument, 0)
    with pytest.raises(
        BackendError, match=r"launching cross_attention_x failed with .* 98 \(invalid device function\)"
    ):
        binary.run(Launch("cross_attention_x", (1, 1, 1), 32), argument, 0)


def test_no_driver_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(BackendUnavailable, match=r"no CUDA driver .* install NVIDIA's driver, or use the CPU"):
        libcuda.Driver(str(tmp_path / "libcuda.so.1"))
    library = tmp_path / "empty.so"
    compiler = build.find_compiler("c++", "g++", "clang++")
    subprocess.run([compiler, "-shared", "-fPIC", "-x", "c++", "/dev/null", "-o", str(library)], check=True)
    with pytest.raises(BackendUnavailable, match=r"too old .* expected one of CUDA 12 or later"):
        libcuda.Driver(str(library)).require(libcuda.KERNELS)


def plain_tensorrt() -> types.ModuleType:
    """A module with the names that the plugin class is made of; its bases do nothing."""
    trt = types.ModuleType("tensorrt_stand_in")

    class Base:
        def __init__(self) -> None:
            pass

    for name in ("IPluginV3", "IPluginV3OneCore", "IPluginV3OneBuildV2", "IPluginV3OneRuntime"):
        setattr(trt, name, type(name, (Base,), {}))
    trt.DataType = types.SimpleNamespace(FLOAT="FLOAT", HALF="HALF", BF16="BF16", INT64="INT64")
    return trt


@pytest.mark.parametrize("element", ELEMENTS)
def test_enqueue(fake: Path, monkeypatch: pytest.MonkeyPatch, element: str, tmp_path: Path) -> None:
    """From the addresses that TensorRT hands out to the kernel's result, through the plugin's own enqueue."""
    glue = plugin_sources.module("glue.tensorrt_plugins")
    opened = libcuda.Driver(str(fake))
    monkeypatch.setattr(libcuda, "driver", lambda: opened)
    plugin_class = glue.make_plugin_class(plain_tensorrt())
    kind = {"fp32": "FLOAT", "fp16": "HALF", "bf16": "BF16"}[element]
    rng = np.random.default_rng(0)
    cases = [self_case(rng, element, 64, 4, 24, 11, bias=bias, sources=2, heads=3) for bias in (False, True)]
    cases += [cross_case(rng, element, 64, 4, 24, bias=bias, sources=2, heads=3) for bias in (False, True)]
    for case in cases:
        operation = OPERATIONS[case.operation]
        path = tmp_path / operation.folder
        path.write_text(str(build.host_library(operation.folder)) + "\0")
        plugin = plugin_class(operation, glue.Kernels(operation.folder, path), case.scale)
        arrays = {name: guarded(array)[0] for name, array in case.tensors.items()}
        arrays["output"] = guarded(np.zeros(case.tensors["query"].shape, DTYPES[element]))[0]
        described = [types.SimpleNamespace(dims=arrays[t.name].shape, type=kind) for t in operation.inputs]
        addresses = [arrays[tensor.name].ctypes.data for tensor in operation.inputs]
        written = [arrays[tensor.aliases or tensor.name].ctypes.data for tensor in operation.outputs]
        plugin.enqueue(described, [], addresses, written, 0, 5)
        (check_self if operation.folder == "beam_self_attention" else check_cross)(case, arrays)
        if len(written) > 1:
            with pytest.raises(BackendError, match="value_cache_out lies at 0x10, expected value_cache's address"):
                plugin.enqueue(described, [], addresses, [*written[:2], 16], 0, 5)


def test_no_binary_is_an_engine_error() -> None:
    glue = plugin_sources.module("glue.tensorrt_plugins")
    with pytest.raises(Exception, match="no binary of the kernels in plugins/cross_attention"):
        glue.Kernels("cross_attention", None).run(None, None, 0)


def test_kernels_are_loaded_before_a_layer_runs(fake: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A binary that the driver can't use, or without a plugin's kernel, shows when an engine is opened."""
    glue = plugin_sources.module("glue.tensorrt_plugins")
    opened = libcuda.Driver(str(fake))
    monkeypatch.setattr(libcuda, "driver", lambda: opened)
    binaries = {folder: tmp_path / folder for folder in ("beam_self_attention", "cross_attention")}

    def registered(contents: dict[str, str]) -> None:
        found = {}
        for name, operation in OPERATIONS.items():
            binaries[operation.folder].write_text(contents[operation.folder] + "\0")
            kernels = glue.Kernels(operation.folder, binaries[operation.folder])
            found["trt", name] = types.SimpleNamespace(kernels=kernels)
        monkeypatch.setattr(glue, "_registered", found)

    trt = types.ModuleType("trt")
    right = {folder: str(build.host_library(folder)) for folder in binaries}
    registered(right)
    glue.load(trt)
    assert all(creator.kernels._binary is not None for creator in glue._registered.values())
    registered({**right, "cross_attention": "no binary"})
    with pytest.raises(BackendUnavailable, match=r"and can't load cross_attention \(error 200"):
        glue.load(trt)
    registered({**right, "beam_self_attention": right["cross_attention"]})
    with pytest.raises(BackendError, match="finding the kernel beam_self_attention_fp16_w64 failed"):
        glue.load(trt)


def test_importing_the_glue_imports_no_gpu_library() -> None:
    code = (
        "import sys; from s2s_export import plugin_sources as p; p.module('glue.tensorrt_plugins'); "
        "print([m for m in sys.modules if m.split('.')[0] in {'tensorrt', 'tensorrt_rtx', 'cuda', 'torch', 'onnx'}])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
