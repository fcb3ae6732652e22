"""Whole searches with the kernels under the address and undefined-behaviour sanitizers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import device_helpers
import pytest
from device_helpers import missing_compiler

from s2s_export import plugin_sources

RUN = """
import ctypes, sys
sys.path[:0] = [{helpers!r}, {here!r}]
from s2s_export import plugin_sources
from s2s_export.runtime.cuda import emulation
build = plugin_sources.module("build")
library = ctypes.CDLL(str(build.host_library("beam_search", sanitize=True)))
emulation._library = lambda folder="beam_search": library
import test_device_alignments as alignments
import test_device_loop as loop
for seed in range(300_000, 300_060):
    loop.compare(seed, max_new_tokens=4)
for seed in range(310_000, 310_010):
    loop.compare(seed, max_new_tokens=3, do_sample=True)
for seed in range(201_000, 201_004):
    loop.compare(seed, sizes=(1100, 2100), max_new_tokens=2, do_sample=True)
for seed in range(6):
    alignments.test_alignments_equal_the_definitions(seed)
    alignments.test_the_kernel_takes_the_mean_over_the_last_layers_heads("fp16", seed)
print("clean", end="")
"""


@pytest.mark.slow
def test_no_access_out_of_bounds() -> None:
    if missing_compiler():
        pytest.skip(str(missing_compiler()))
    compiler = plugin_sources.module("build").find_compiler("c++", "g++", "clang++")
    runtime = subprocess.run([compiler, "-print-file-name=libasan.so"], capture_output=True, text=True).stdout.strip()
    if not Path(runtime).is_file():
        pytest.skip(f"{compiler} has no libasan.so")
    options = "detect_leaks=0:detect_stack_use_after_return=0"
    environment = {**os.environ, "LD_PRELOAD": runtime, "ASAN_OPTIONS": options, "PYTHONMALLOC": "malloc"}
    code = RUN.format(helpers=str(Path(device_helpers.__file__).parent), here=str(Path(__file__).parent))
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "clean"), result.stderr[-4000:]
