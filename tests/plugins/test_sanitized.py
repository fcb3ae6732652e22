"""The kernels under the address and undefined-behaviour sanitizers, which see every access of every thread."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from plugin_helpers import build

RUN = """
import sys
sys.path[:0] = [{here!r}, {helpers!r}]
from test_attention_kernels import ELEMENTS, sweep_cross, sweep_self
for element in ELEMENTS if {cases} else ():
    for bias in (False, True):
        sweep_self(21, 60, element, bias, sanitize=True)
        sweep_cross(22, 60, element, bias, sanitize=True)
        sweep_self(23, 3, element, bias, sanitize=True, longest=1024)
        sweep_cross(24, 3, element, bias, sanitize=True, longest=1024)
import numpy as np
import test_beam_search_kernels as search
search.SANITIZE = True
for i in range(60 if {cases} else 0):
    rng = np.random.default_rng(i)
    search.decode_both(rng, schedule=i)
    search.check_top(search.random_logits(rng, 3, 100 * i + 50, search.KINDS[i % 6], "fp16"), "fp16", 40, schedule=i)
{extra}
print("clean", end="")
"""
# Reads one key past the end of the source: what the sanitizer is here to see.
OVERRUN = """
import ctypes, numpy as np
from plugin_helpers import OPERATIONS, cross_case, library
case = cross_case(np.random.default_rng(0), "fp32", 128, 1, 300, False, mask="none")
operation = OPERATIONS[case.operation]
arrays = {name: np.array(array) for name, array in case.tensors.items()}
arrays["output"] = np.zeros_like(arrays["query"])
arrays["mask"] = np.zeros((1, 1, 1, 301), np.float32)
sizes = {"B": 1, "H": 1, "K": 1, "D": 128, "S": 301}
given = operation.arguments(sizes, {name: array.ctypes.data for name, array in arrays.items()}, 1.0)
library("cross_attention", True).s2s_cross_attention(0, ctypes.byref(given), None)
"""

# The Transformer's kernels, on memory of exactly the size that was asked for.
TRANSFORMER = """
import ctypes
from s2s_export.measuring.gpu_check import native_cases, recurrent_cases
from s2s_export.runtime.cuda import emulation
from plugin_helpers import library
emulation._library = lambda folder: library(folder, True)
libc = ctypes.CDLL(None)
libc.posix_memalign.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
class Exact(emulation.HostDevice):
    def allocate(self, n_bytes, what=""):
        pointer = ctypes.c_void_p()
        assert libc.posix_memalign(ctypes.addressof(pointer), 256, n_bytes) == 0
        return pointer.value
    def free(self, address):
        libc.free(address)
for seed in range({n}):
    for make in (native_cases.KINDS | recurrent_cases.KINDS).values():
        case = make(np.random.default_rng(seed), ("fp16", "bf16", "int8")[seed % 3])
        {change}
        assert case.error(case.run(Exact())) <= 1.0
"""


def run(extra: str = "", cases: bool = True) -> subprocess.CompletedProcess[str]:
    compiler = build.find_compiler("c++", "g++", "clang++")
    runtime = subprocess.run([compiler, "-print-file-name=libasan.so"], capture_output=True, text=True).stdout.strip()
    if not Path(runtime).is_file():
        pytest.skip(f"{compiler} has no libasan.so")
    here = Path(__file__).parent
    code = RUN.format(here=str(here), helpers=str(here.parent / "helpers"), extra=extra, cases=cases)
    options = "detect_leaks=0:detect_stack_use_after_return=0"
    environment = {**os.environ, "LD_PRELOAD": runtime, "ASAN_OPTIONS": options, "PYTHONMALLOC": "malloc"}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_no_access_out_of_bounds() -> None:
    result = run()
    assert (result.returncode, result.stdout) == (0, "clean"), result.stderr[-4000:]


@pytest.mark.slow
def test_an_overrun_is_seen() -> None:
    result = run(OVERRUN, cases=False)
    assert "heap-buffer-overflow" in result.stderr, result.stderr[-4000:]


@pytest.mark.slow
def test_no_access_out_of_bounds_in_the_transformers_kernels() -> None:
    result = run(TRANSFORMER.format(n=60, change="pass"), cases=False)
    assert (result.returncode, result.stdout) == (0, "clean"), result.stderr[-4000:]


@pytest.mark.slow
def test_an_overrun_of_the_transformers_kernels_is_seen() -> None:
    one_row_more = "case.given.rows += hasattr(case.given, 'normed')"
    result = run(TRANSFORMER.format(n=1, change=one_row_more), cases=False)
    assert "heap-buffer-overflow" in result.stderr, result.stderr[-4000:]
