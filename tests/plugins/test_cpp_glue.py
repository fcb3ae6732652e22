"""The C++ library of the plugins: built with the user's TensorRT headers, run on this CPU, loaded by TensorRT-RTX.

Set TENSORRT_INCLUDE_DIR to the folder of NvInfer.h to run these.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from plugin_helpers import DTYPES, ELEMENTS, OPERATIONS, build, check_cross, check_self, cross_case, guarded, self_case

INCLUDE = os.environ.get("TENSORRT_INCLUDE_DIR", "")
pytestmark = [
    pytest.mark.skipif(not (Path(INCLUDE) / "NvInfer.h").is_file(), reason="TENSORRT_INCLUDE_DIR names no NvInfer.h"),
    pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is missing"),
]
SOURCES = build.ROOT / "glue" / "cpp"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cpp")
    configure = ["cmake", "-S", str(SOURCES), "-B", str(folder), f"-DTENSORRT_INCLUDE_DIR={INCLUDE}"]
    subprocess.run([*configure, "-DS2S_HOST_BUILD=ON"], check=True, capture_output=True)
    subprocess.run(["cmake", "--build", str(folder)], check=True, capture_output=True)
    return folder / "libs2s_plugins.so"


@pytest.fixture(scope="module")
def harness(library: Path) -> ctypes.CDLL:
    output = library.with_name("harness.so")
    source = Path(__file__).with_name("enqueue_harness.cpp")
    cuda = build.toolkit() / "include"
    compiler = build.find_compiler("c++", "g++", "clang++")
    flags = ["-std=c++20", "-shared", "-fPIC", "-w", f"-I{INCLUDE}", f"-I{cuda}"]
    subprocess.run([compiler, *flags, str(source), str(library), "-o", str(output)], check=True)
    ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    loaded = ctypes.CDLL(str(output))
    loaded.run_node.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_float, ctypes.c_int, *(ctypes.c_void_p,) * 4]
    return loaded


def run(harness: ctypes.CDLL, case, misplaced: bool = False) -> tuple[int, dict[str, np.ndarray]]:
    operation = OPERATIONS[case.operation]
    arrays = {name: guarded(array)[0] for name, array in case.tensors.items()}
    arrays["output"] = guarded(np.zeros(case.tensors["query"].shape, DTYPES[case.element]))[0]
    inputs = [arrays[tensor.name] for tensor in operation.inputs]
    dims = np.concatenate([np.array(array.shape, np.int64) for array in inputs])
    ranks = np.array([array.ndim for array in inputs], np.int32)
    read = (ctypes.c_void_p * len(inputs))(*(array.ctypes.data for array in inputs))
    written = [arrays[tensor.aliases or tensor.name].ctypes.data for tensor in operation.outputs]
    if misplaced:
        written[-1] += 64
    status = harness.run_node(
        *(case.operation.encode(), ELEMENTS.index(case.element), case.scale, len(inputs)),
        *(dims.ctypes.data, ranks.ctypes.data, read, (ctypes.c_void_p * len(written))(*written)),
    )
    return status, arrays


@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
def test_enqueue(harness: ctypes.CDLL, element: str, bias: bool) -> None:
    rng = np.random.default_rng(9)
    for head_size, beams, length in ((64, 4, 40), (128, 16, 9), (24, 1, 130)):
        case = self_case(rng, element, head_size, beams, length, length - 1, bias, sources=2, heads=3)
        status, arrays = run(harness, case)
        assert status == 0
        check_self(case, arrays)
        case = cross_case(rng, element, head_size, beams, length, bias, sources=2, heads=3)
        status, arrays = run(harness, case)
        assert status == 0
        check_cross(case, arrays)


def test_refusals(harness: ctypes.CDLL) -> None:
    rng = np.random.default_rng(9)
    case = self_case(rng, "fp16", 64, 4, 8, 3, False)
    assert run(harness, case, misplaced=True)[0] == -5
    case.tensors["ancestors"] = case.tensors["ancestors"][:, :, :7].copy()
    assert run(harness, case)[0] == -6


def test_tensorrt_rtx_loads_it(library: Path) -> None:
    """In a process of its own, since a library stays registered."""
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is missing: pip install tensorrt-rtx-cu13")
    code = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
import plugin_model, tensorrt_rtx as trt, test_tensorrt_rtx as t
t.parser_library.ensure_parser_can_load_plugins(trt)
assert trt.get_plugin_registry().load_library({str(library)!r})
compiled = t.Compiled(trt, plugin_model.step("fp16"), ["SM86", "SM120"])
assert compiled.engine is not None, compiled.errors
assert compiled.network_layers["PLUGIN_V3"] == 4
assert "key_cache_out is key_cache" in compiled.layers_of("self_attention_0")[0]
try:
    t.Compiled(trt, plugin_model.step("fp16", head_size=136), ["SM86"])
except t.ParserError:
    print("refused", end="")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "refused"), result.stderr
