// Keeps a step's cross-attention for alignments. Runs before the step's update changes the position and the rows.
#pragma once

#include "../common/elements.cuh"
#include "alignment_parameters.h"

constexpr int kAlignmentThreads = 128;

// One block per row. Heads are added in order and the sum is divided once, as numpy's mean does. Where heads are kept apart, one
// block per row and head: grid (R, L * H).
template <typename T>
__device__ __forceinline__ void record_attention(const AlignmentParameters& given) {
  const int64_t row = blockIdx.x;
  const int step = static_cast<int>(*given.position) - given.prompt + 1;
  if (*given.stop || step < 0 || step >= given.limit) return;
  if (given.keeps_heads) {
    const int64_t at = row * gridDim.y + blockIdx.y, all = static_cast<int64_t>(given.rows) * gridDim.y;
    const T* attention = static_cast<const T*>(given.attention) + at * given.width;
    float* kept = given.alignment + (step * all + at) * given.width;
    for (int s = threadIdx.x; s < given.width; s += blockDim.x) kept[s] = to_float(attention[s]);
    return;
  }
  const int64_t last_layer = (row * given.layers + given.layers - 1) * given.heads;
  const T* attention = static_cast<const T*>(given.attention) + last_layer * given.width;
  float* kept = given.alignment + (static_cast<int64_t>(step) * given.rows + row) * given.width;
  for (int s = threadIdx.x; s < given.width; s += blockDim.x) {
    float sum = 0.f;
    for (int h = 0; h < given.heads; ++h) sum += to_float(attention[static_cast<int64_t>(h) * given.width + s]);
    kept[s] = sum / static_cast<float>(given.heads);
  }
}
