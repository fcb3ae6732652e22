"""The emulation that the kernels are tested with must itself notice what it promises to notice."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import numpy as np
import pytest
from plugin_helpers import build, library

KERNELS = r"""
#include "cuda_or_host.cuh"

struct Sum { const float* in; float* out; int barrier; };

// Sum over a block through shared memory and shuffles; without the barrier it reads what others have not written.
__global__ void sum(Sum given) {
  using Row = float[8];
  SHARED_MEMORY(Row, parts);
  float part = given.in[blockIdx.x * blockDim.x + threadIdx.x];
  for (int step = 16; step > 0; step /= 2) part += __shfl_xor_sync(0xffffffffu, part, step);
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = part;
  if (given.barrier) __syncthreads();
  float total = 0.f;
  for (unsigned w = 0; w < blockDim.x / 32; ++w) total += parts[w];
  given.out[blockIdx.x * blockDim.x + threadIdx.x] = total;
}

struct Votes { const int* in; int* any; int* ballot; int* down; int* first; };

__global__ void votes(Votes given) {
  const int t = threadIdx.x;
  given.any[t] = __syncthreads_or(given.in[t] == 1);
  given.any[t] += 2 * __syncthreads_or(given.in[t] == 2);
  given.ballot[t] = static_cast<int>(__ballot_sync(0xffffffffu, given.in[t] & 1));
  given.down[t] = __shfl_down_sync(0xffffffffu, given.in[t], 3);
  given.first[t] = __shfl_sync(0xffffffffu, given.in[t], 0, 8);
}

// Adds one to what the launch before it wrote: read after waiting for it (1), before (0), or without ever waiting (2).
struct Next { const int* in; int* out; int how; };
__global__ void next(Next given) {
  const int early = given.in[threadIdx.x];
  if (given.how != 2) await_predecessor();
  __syncthreads();
  given.out[blockIdx.x * 64 + threadIdx.x] = 1 + (given.how == 1 ? given.in[threadIdx.x] : early);
}
static Next before;
static void run_before() { launch(next, dim3(2), dim3(64), nullptr, before); }

struct Nothing { int unused; };
__global__ void early_return(Nothing) { if (threadIdx.x == 3) return; __syncthreads(); }
__global__ void lonely_shuffle(Nothing) { if (threadIdx.x % 32 < 16) __shfl_xor_sync(0xffffffffu, 1, 1); }

S2S_EXPORT int run_sum(const Sum* given, int blocks, int threads) {
  return launch(sum, dim3(blocks), dim3(threads), nullptr, *given);
}
S2S_EXPORT int run_votes(const Votes* given) { return launch(votes, dim3(1), dim3(64), nullptr, *given); }
S2S_EXPORT int run_two(const Next* given) {
  before = given[0];
  s2s_host_predecessor(run_before);
  const int status = launch(next, dim3(3), dim3(64), nullptr, given[1]);
  const int waited = s2s_host_has_waited();
  return status ? status : waited;
}
S2S_EXPORT int run_early_return() { return launch(early_return, dim3(2), dim3(64), nullptr, Nothing{}); }
S2S_EXPORT int run_lonely_shuffle() { return launch(lonely_shuffle, dim3(1), dim3(64), nullptr, Nothing{}); }
S2S_EXPORT uint16_t to_half(float x) { return __float2half_rn(x).bits; }
S2S_EXPORT uint16_t to_bfloat(float x) { return __float2bfloat16_rn(x).bits; }
S2S_EXPORT float from_half(uint16_t x) { return __half2float({x}); }
"""
DEADLOCK = -100


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("emulation")
    (folder / "kernels.cu").write_text(KERNELS)
    compiler = build.find_compiler("c++", "g++", "clang++")
    include = Path(build.ROOT) / "common"
    output = folder / "kernels.so"
    command = [compiler, *build.HOST_FLAGS, f"-I{include}", "-x", "c++", str(folder / "kernels.cu"), "-o", str(output)]
    subprocess.run(command, check=True)
    loaded = ctypes.CDLL(str(output))
    for name, argument, result in (
        ("to_half", ctypes.c_float, ctypes.c_uint16),
        ("to_bfloat", ctypes.c_float, ctypes.c_uint16),
        ("from_half", ctypes.c_uint16, ctypes.c_float),
        ("s2s_host_schedule", ctypes.c_uint64, None),
    ):
        function = getattr(loaded, name)
        function.argtypes, function.restype = [argument], result
    return loaded


def block_sums(kernels: ctypes.CDLL, barrier: bool, schedule: int) -> np.ndarray:
    values = np.random.default_rng(0).standard_normal((3, 256)).astype(np.float32)
    sums = np.zeros_like(values)
    fields = (("in", ctypes.c_void_p), ("out", ctypes.c_void_p), ("barrier", ctypes.c_int))
    given = type("Sum", (ctypes.Structure,), {"_fields_": fields})(values.ctypes.data, sums.ctypes.data, barrier)
    kernels.s2s_host_schedule(schedule)
    assert kernels.run_sum(ctypes.byref(given), 3, 256) == 0
    kernels.s2s_host_schedule(0)
    return np.abs(sums - values.sum(axis=1, keepdims=True)).max()


@pytest.mark.parametrize("schedule", range(6))
def test_barriers_and_shuffles(kernels: ctypes.CDLL, schedule: int) -> None:
    assert block_sums(kernels, True, schedule) < 1e-4


@pytest.mark.parametrize("schedule", range(6))
def test_missing_barrier_shows(kernels: ctypes.CDLL, schedule: int) -> None:
    assert not block_sums(kernels, False, schedule) < 1e-4  # NaN from unwritten shared memory


def test_votes(kernels: ctypes.CDLL) -> None:
    given = np.arange(64, dtype=np.int32) + 2
    results = [np.zeros(64, np.int32) for _ in range(4)]
    arguments = (ctypes.c_void_p * 5)(*(array.ctypes.data for array in (given, *results)))
    assert kernels.run_votes(arguments) == 0
    any_, ballot, down, first = results
    assert (any_ == 2).all()
    assert (ballot.view(np.uint32) == 0xAAAAAAAA).all()
    lanes = np.arange(64)
    np.testing.assert_array_equal(down, np.where(lanes % 32 + 3 < 32, given + 3, given))
    np.testing.assert_array_equal(first, given[lanes // 8 * 8])


def test_deadlocks_are_reported(kernels: ctypes.CDLL) -> None:
    assert kernels.run_early_return() == DEADLOCK
    assert kernels.run_lonely_shuffle() == DEADLOCK
    assert block_sums(kernels, True, 0) < 1e-4  # and the machine works on


def test_half_precision_conversions(kernels: ctypes.CDLL) -> None:
    import ml_dtypes

    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    ours = np.array([kernels.from_half(int(bits)) for bits in halves.view(np.uint16)], np.float32)
    np.testing.assert_array_equal(ours, halves.astype(np.float32))
    rng = np.random.default_rng(1)
    with np.errstate(over="ignore", invalid="ignore"):
        floats = rng.integers(0, 2**32, 4000, dtype=np.uint64).astype(np.uint32).view(np.float32)
        small = (rng.standard_normal(4000) * 2.0 ** rng.integers(-26, 18, 4000)).astype(np.float32)
        ties = (halves[:31743:7].astype(np.float32) + halves[1:31744:7].astype(np.float32)) / 2
        edges = np.array([0.0, -0.0, 65519.99, 65520.0, np.inf, -np.inf, 2.0**-25, 2.0**-24, 2.0**-14], np.float32)
        values = np.concatenate([floats[~np.isnan(floats)], small, ties, edges])
        for convert, dtype in ((kernels.to_half, np.float16), (kernels.to_bfloat, ml_dtypes.bfloat16)):
            mine = np.array([convert(float(x)) for x in values], np.uint16)
            np.testing.assert_array_equal(mine, values.astype(dtype).view(np.uint16))


def test_libraries_do_not_share_their_machine() -> None:
    assert library("beam_self_attention")._handle != library("cross_attention")._handle


@pytest.mark.parametrize("schedule", range(3))
def test_a_launch_that_begins_before_the_last_has_ended(kernels: ctypes.CDLL, schedule: int) -> None:
    """What is read before the wait is old; a kernel that never waits is found."""
    fields = (("in", ctypes.c_void_p), ("out", ctypes.c_void_p), ("how", ctypes.c_int))
    structure = type("Next", (ctypes.Structure,), {"_fields_": fields})
    kernels.s2s_host_schedule(schedule)
    for how, expected in ((1, 12), (0, 4), (2, None)):
        first, second, third = (np.full((3, 64), value, np.int32) for value in (10, 3, 0))
        given = (structure * 2)(
            structure(first.ctypes.data, second.ctypes.data, 1), structure(second.ctypes.data, third.ctypes.data, how)
        )
        assert kernels.run_two(given) == (how != 2)
        if expected is not None:
            assert (second[:2] == 11).all()
            rows = [set(row) for row in third.tolist()]  # of the block that ran first, all threads
            assert {expected} in rows and (how == 0 or rows == [{expected}] * 3)
    kernels.s2s_host_schedule(0)
