// What the kernels of the loop share: reductions whose result all threads of a block get, and scans over the block.
#pragma once

#include "../common/elements.cuh"
#include "../common/unfused.cuh"

constexpr int kBlockThreads = 512;
constexpr int kBlockWarps = kBlockThreads / 32;
constexpr int kMostSums = 6;

struct BlockShared {
  union {
    double doubles[2][kBlockThreads];
    uint64_t integers[2][kBlockThreads];
  } scan;
  double warp_double[kBlockWarps];
  float warp_float[kBlockWarps];
  int64_t warp_place[kBlockWarps];
  uint64_t warp_sums[kMostSums][kBlockWarps];
};

__device__ __forceinline__ double block_sum(double value, BlockShared& shared) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  if (threadIdx.x % 32 == 0) shared.warp_double[threadIdx.x / 32] = value;
  __syncthreads();
  double sum = 0.0;
  for (int w = 0; w < kBlockWarps; ++w) sum += shared.warp_double[w];
  __syncthreads();
  return sum;
}

// The sums of several integers at once, in place of the values.
template <int N>
__device__ __forceinline__ void block_sums(uint64_t (&values)[N], BlockShared& shared) {
  static_assert(N <= kMostSums, "more sums than BlockShared has room for");
#pragma unroll
  for (int i = 0; i < N; ++i) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) values[i] += __shfl_xor_sync(0xffffffffu, values[i], step);
    if (threadIdx.x % 32 == 0) shared.warp_sums[i][threadIdx.x / 32] = values[i];
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < N; ++i) {
    values[i] = 0;
    for (int w = 0; w < kBlockWarps; ++w) values[i] += shared.warp_sums[i][w];
  }
  __syncthreads();
}

__device__ __forceinline__ float block_maximum(float value, BlockShared& shared) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, step));
  if (threadIdx.x % 32 == 0) shared.warp_float[threadIdx.x / 32] = value;
  __syncthreads();
  float maximum = shared.warp_float[0];
  for (int w = 1; w < kBlockWarps; ++w) maximum = fmaxf(maximum, shared.warp_float[w]);
  __syncthreads();
  return maximum;
}

// The sum of the values of all threads before this one.
template <class Value>
__device__ __forceinline__ Value block_before(Value value, Value (&scan)[2][kBlockThreads]) {
  const int i = threadIdx.x;
  int now = 0;
  scan[0][i] = value;
  __syncthreads();
  for (int step = 1; step < kBlockThreads; step *= 2, now ^= 1) {
    scan[now ^ 1][i] = scan[now][i] + (i >= step ? scan[now][i - step] : Value{0});
    __syncthreads();
  }
  const Value before = i ? scan[now][i - 1] : Value{0};
  __syncthreads();
  return before;
}
__device__ __forceinline__ double block_before(double value, BlockShared& shared) {
  return block_before(value, shared.scan.doubles);
}
__device__ __forceinline__ uint64_t block_before(uint64_t value, BlockShared& shared) {
  return block_before(value, shared.scan.integers);
}

// Whether this block is the last to get here of those that differ in blockIdx.x alone, the same for all its threads. What the
// others wrote before is then visible to it. The count is 0 again for the next launch.
__device__ __forceinline__ bool is_last_block(int32_t* arrived) {
  __syncthreads();  // the whole block has written
  int last = 0;
  if (threadIdx.x == 0) {
    __threadfence();
    last = atomicAdd(arrived, static_cast<int32_t>(1)) == static_cast<int32_t>(gridDim.x) - 1;
    if (last) *arrived = 0;
    __threadfence();
  }
  return __syncthreads_or(last);
}

// A thread's share of [0, n): a range of neighbouring items; the ranges are in the order of the threads.
struct Share {
  int64_t first, end;
};
__device__ __forceinline__ Share share_of(int64_t n) {
  const int64_t each = (n + kBlockThreads - 1) / kBlockThreads;
  const int64_t first = min(static_cast<int64_t>(threadIdx.x) * each, n);
  return {first, min(first + each, n)};
}

// An unsigned number for each float, in the same order. NaN comes last; no float gives 0.
__device__ __forceinline__ uint32_t order_of(float value) {
  union {
    float number;
    uint32_t bits;
  } as{value};
  if (value != value) return 0xffffffffu;
  if (value == 0.f) as.bits = 0u;
  return as.bits & 0x80000000u ? ~as.bits : as.bits | 0x80000000u;
}
