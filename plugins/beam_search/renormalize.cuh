// Scores as log-probabilities again, once rules have changed them: numerics.normalised, bit for bit. Three launches, each a
// block for every slice of a row:
//
//   slice_maxima        the largest score of each slice
//   slice_weights       the sum of the weights of each slice
//   renormalize_slices  subtracts the logarithm of the sum of all
#pragma once

#include "filters.cuh"
#include "weights.cuh"

__device__ __forceinline__ void find_slice_maxima(const ChainParameters& given) {
  SHARED_MEMORY(BlockShared, shared);
  DeviceRule rule;
  if (!is_active(given, rule)) return;
  const Slice slice = slice_of(given);
  const float maximum = largest_of(slice.scores, slice.first, slice.end, shared);
  if (threadIdx.x == 0) slice.all[blockIdx.x].maximum = maximum;
}

// The largest score of the row; NaN where one is.
__device__ __forceinline__ float row_maximum(const Slice& slice, BlockShared& shared) {
  float maximum = -INFINITY;
  int has_nan = 0;
  for (int l = threadIdx.x; l < slice.lists; l += kBlockThreads) {
    maximum = fmaxf(maximum, slice.all[l].maximum);
    has_nan |= slice.all[l].maximum != slice.all[l].maximum;
  }
  maximum = block_maximum(maximum, shared);
  return __syncthreads_or(has_nan) ? NAN : maximum;
}

__device__ __forceinline__ void find_slice_weights(const ChainParameters& given) {
  SHARED_MEMORY(BlockShared, shared);
  DeviceRule rule;
  if (!is_active(given, rule)) return;
  const Slice slice = slice_of(given);
  const uint64_t weight = weight_of_slice(slice.scores, slice.first, slice.end, row_maximum(slice, shared), shared);
  if (threadIdx.x == 0) slice.all[blockIdx.x].weight = weight;
}

__device__ __forceinline__ void renormalize(const ChainParameters& given) {
  SHARED_MEMORY(BlockShared, shared);
  DeviceRule rule;
  if (!is_active(given, rule)) return;
  const Slice slice = slice_of(given);
  const float maximum = row_maximum(slice, shared);
  uint64_t total[1] = {0};
  for (int l = threadIdx.x; l < slice.lists; l += kBlockThreads) total[0] += slice.all[l].weight;
  block_sums(total, shared);
  if (threadIdx.x == 0) {  // one thread takes the logarithm, as double precision is slow on small GPUs
    const bool is_finite = maximum - maximum == 0.f;
    shared.warp_float[0] = is_finite ? static_cast<float>(log(sum_of_exponentials(total[0]))) : NAN;
  }
  __syncthreads();
  const float rest = shared.warp_float[0];
  for (int id = slice.first + threadIdx.x; id < slice.end; id += kBlockThreads)
    slice.scores[id] = (slice.scores[id] - maximum) - rest;
}
