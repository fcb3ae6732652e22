"""The CPU's operators under the address and undefined-behaviour sanitizers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import test_own_kernels as own

from s2s_export import plugin_sources

RUN = """
import sys
sys.path[:0] = [{helpers!r}, {here!r}]
import test_own_kernels as own
import test_own_sixteen_bits as sixteen
import test_screen as screen
from s2s_export import plugin_sources
library = plugin_sources.module("cpu.build").library(*{without!r}, sanitize=True, emulated={emulated})
for is_int8 in (False, True):
    for shape in own.SHAPES:
        own.test_products(library, shape, is_int8)
    for sources, beams, n, dense in ((1, 1, 1, False), (2, 5, 12, True), (8, 4, 9, False), (1, 2, 700, True)):
        own.test_candidates(library, is_int8, sources, beams, n, dense, 1)
for kind in ("sum", "norm", "both", "rms"):
    own.test_residuals_and_norms(library, kind)
own.test_embeddings_and_rows_are_the_weight_again(library)
for width in (1, 24, 71):
    own.test_norms_and_gates_that_follow_no_product(library, width)
own.test_single_rows_in_a_batch_are_those_of_each_alone(library)
own.test_a_head_over_a_shortlist(library)
own.test_what_is_no_number_stays_so(library)
for case in own.CASES:
    own.test_inputs_of_other_sizes_are_refused_or_served(library, case)
for shape in own.ENCODERS:
    for mask in ("none", "sources", "all", "queries"):
        own.test_attention_of_an_encoder(library, shape, mask)
for size in (8, 32, 64, 80, 128):
    for beams in (1, 2, 4, 7):
        own.test_attention_over_the_cache(library, size, beams)
        own.test_attention_over_the_source(library, size, beams)
for storage in sixteen.sixteen.STORAGES:
    sixteen.test_products(library, storage)
    sixteen.test_heads(library, storage, 8, 4, 9, True, 2)
    sixteen.test_rows_of_a_shortlist_stay_in_16_bits(library, storage)
sixteen.test_weights_of_other_types_and_sizes_are_refused(library)
for kind in ("trained", "of all sizes"):
    screen.test_the_best_are_those_of_the_whole_product(library, kind)
screen.test_weights_of_16_bits(library)
screen.test_numbers_that_are_none_or_too_large(library)
{extra}
print("clean", end="")
"""
# What the sanitizer is here to see: a copy beyond the end of its memory.
OVERRUN = """
import ctypes
ctypes.memmove(ctypes.create_string_buffer(148), ctypes.create_string_buffer(148), 152)
"""


def run(without: tuple[str, ...], extra: str = "", emulated: bool = False) -> subprocess.CompletedProcess[str]:
    compiler = plugin_sources.module("build").find_compiler(*plugin_sources.module("cpu.build").COMPILERS)
    # The C++ library too: what ONNX Runtime throws goes through the sanitizer, which looks for it there.
    asks = [[compiler, f"-print-file-name={name}"] for name in ("libasan.so", "libstdc++.so.6")]
    runtimes = [subprocess.run(ask, capture_output=True, text=True).stdout.strip() for ask in asks]
    if not all(Path(runtime).is_file() for runtime in runtimes):
        pytest.skip(f"{compiler} has no libasan.so or no libstdc++.so.6")
    here = Path(__file__).parent
    helpers = str(here.parents[2] / "helpers")
    code = RUN.format(helpers=helpers, here=str(here), without=without, extra=extra, emulated=emulated)
    options = "detect_leaks=0:detect_stack_use_after_return=0"
    environment = {**os.environ, "LD_PRELOAD": ":".join(runtimes), "ASAN_OPTIONS": options, "PYTHONMALLOC": "malloc"}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("without", [(), ("avx512",), ("avx512", "avxvnni"), ("avx512", "avxvnni", "avx2")])
def test_no_access_out_of_bounds(without: tuple[str, ...]) -> None:
    result = run(without)
    assert (result.returncode, result.stdout) == (0, "clean"), result.stderr[-4000:]


@pytest.mark.slow
@pytest.mark.skipif(not own.EMULATED, reason="AMX is for x86-64")
def test_no_access_out_of_bounds_in_tiles() -> None:
    result = run(("avxvnni", "avx2"), "assert own.BUILD.instruction_set(library) == 'amx'", emulated=True)
    assert (result.returncode, result.stdout) == (0, "clean"), result.stderr[-4000:]


@pytest.mark.slow
def test_an_overrun_is_seen() -> None:
    result = run((), OVERRUN)
    assert "148-byte region" in result.stderr, result.stderr[-4000:]
