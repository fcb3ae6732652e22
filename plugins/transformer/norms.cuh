// LayerNorm and RMSNorm of rows, by one warp a row, in fp32.
#pragma once

#include "fragments.cuh"
#include "parameters.h"

struct alignas(16) Four {
  float value[4];
};

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(kWholeWarp, value, step);
  return value;
}

// Adds to a row, of which this lane has x, the parts and their bias. first: where the row begins.
template <int FOURS>
__device__ __forceinline__ void add_parts(const ProductParameters& given, int64_t first, Four (&x)[FOURS]) {
  const int lane = threadIdx.x % 32, n_fours = given.inputs / 4;
  const int64_t part_size = static_cast<int64_t>(given.rows) * given.inputs;
  for (int p = given.parts_bias == nullptr ? 0 : -1; p < given.n_parts; ++p) {
    const Four* part = reinterpret_cast<const Four*>(p < 0 ? given.parts_bias : given.parts + p * part_size + first);
#pragma unroll
    for (int f = 0; f < FOURS; ++f) {
      const int at = f * 32 + lane;
      const Four more = at < n_fours ? part[at] : Four{{0.f, 0.f, 0.f, 0.f}};
#pragma unroll
      for (int i = 0; i < 4; ++i) x[f].value[i] += more.value[i];
    }
  }
}

// The norm of row `row` of a product's input with the parts that are added to it, at most WIDTH wide, into `target` as T. A
// row that is not real is zero. writes: whether this block is the one that stores the sum and the normed row as fp32, where
// the product asks for them. The row stays in registers. By a whole warp.
template <typename T, int WIDTH>
__device__ __forceinline__ void norm_into(const ProductParameters& given, int row, bool is_real, bool writes, T* target) {
  constexpr int kFours = WIDTH / 128;
  const int lane = threadIdx.x % 32, n_fours = given.inputs / 4;
  const int64_t first = static_cast<int64_t>(row) * given.inputs;
  const Four* source = reinterpret_cast<const Four*>(static_cast<const float*>(given.input) + first);
  Four x[kFours];
  float sum = 0.f;
#pragma unroll
  for (int f = 0; f < kFours; ++f) {
    const int at = f * 32 + lane;
    x[f] = is_real && at < n_fours ? source[at] : Four{{0.f, 0.f, 0.f, 0.f}};
  }
  if (given.parts != nullptr && is_real) add_parts<kFours>(given, first, x);
#pragma unroll
  for (int f = 0; f < kFours; ++f) {
    if (writes && is_real && given.sum != nullptr && f * 32 + lane < n_fours)
      reinterpret_cast<Four*>(given.sum + first)[f * 32 + lane] = x[f];
#pragma unroll
    for (int i = 0; i < 4; ++i) sum += x[f].value[i];
  }
  const bool is_rms = given.norm_bias == nullptr;
  const float mean = is_rms ? 0.f : warp_sum(sum) / given.true_width;
  float squares = 0.f;
#pragma unroll
  for (int f = 0; f < kFours; ++f) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float centred = (f * 32 + lane) * 4 + i < given.true_width ? x[f].value[i] - mean : 0.f;
      squares += centred * centred;
    }
  }
  const float factor = 1.f / sqrtf(warp_sum(squares) / given.true_width + given.epsilon);
#pragma unroll
  for (int f = 0; f < kFours; ++f) {
    const int at = f * 32 + lane;
    if (at >= n_fours) continue;
    const Four weight = reinterpret_cast<const Four*>(given.norm_weight)[at];
    const Four bias = is_rms ? Four{{0.f, 0.f, 0.f, 0.f}} : reinterpret_cast<const Four*>(given.norm_bias)[at];
    Four y;
#pragma unroll
    for (int i = 0; i < 4; ++i) y.value[i] = is_real ? (x[f].value[i] - mean) * factor * weight.value[i] + bias.value[i] : 0.f;
    uint32_t* pairs = reinterpret_cast<uint32_t*>(target + 4 * at);
    pairs[0] = paired<T>(y.value[0], y.value[1]);
    pairs[1] = paired<T>(y.value[2], y.value[3]);
    if (writes && is_real && given.normed != nullptr) reinterpret_cast<Four*>(given.normed + first)[at] = y;
  }
}

constexpr int kNormThreads = 128;

// Grid: R/4. A warp a row, of any width.
template <typename T>
__device__ __forceinline__ void norm_rows(const NormParameters& given) {
  const int lane = threadIdx.x % 32, row = blockIdx.x * (kNormThreads / 32) + threadIdx.x / 32;
  await_predecessor();
  if (row >= given.rows) return;  // the same for a whole warp, and no barrier of the block follows
  const int64_t first = static_cast<int64_t>(row) * given.width;
  const float* x = given.input + first;
  const bool is_rms = given.bias == nullptr;
  float sum = 0.f;
  for (int i = lane; i < given.true_width; i += 32) sum += x[i];
  const float mean = is_rms ? 0.f : warp_sum(sum) / given.true_width;
  float squares = 0.f;
  for (int i = lane; i < given.true_width; i += 32) squares += (x[i] - mean) * (x[i] - mean);
  const float factor = 1.f / sqrtf(warp_sum(squares) / given.true_width + given.epsilon);
  for (int i = lane; i < given.width; i += 32) {
    const float y = (x[i] - mean) * factor * given.weight[i] + (is_rms ? 0.f : given.bias[i]);
    if (given.output != nullptr) static_cast<T*>(given.output)[first + i] = saturated(y, T{});
    if (given.output_float != nullptr) given.output_float[first + i] = y;
  }
}

constexpr int kEmbedThreads = 128;

// Grid: R. Ids and positions outside their tables take the nearest row; the host refuses them before.
template <typename T, typename W>
__device__ __forceinline__ void embed_rows(const EmbedParameters& given) {
  const int row = blockIdx.x;
  await_predecessor();
  const int64_t asked = given.ids[row];
  const int64_t id = min(max(asked, static_cast<int64_t>(0)), static_cast<int64_t>(given.vocabulary - 1));
  int64_t at = 0;
  if (given.rows_of_positions != nullptr) {
    at = given.rows_of_positions[row];
  } else if (given.positions != nullptr) {
    const int64_t position = *given.position;
    at = asked == given.padding_id ? given.padding_id + (given.padding_moves ? position : 0) : position + given.offset;
  }
  at = min(max(at, static_cast<int64_t>(0)), static_cast<int64_t>(given.n_positions - 1));
  const W* embedding = static_cast<const W*>(given.embedding);
  float scale = given.scale;
  if constexpr (Stored<T, W>::kScaled) scale *= given.embedding_row_scales[id];
  const T* positions = static_cast<const T*>(given.positions);
  for (int i = threadIdx.x; i < given.width; i += blockDim.x) {
    float x = to_float(embedding[place_in_fragments(id, i, given.width)]) * scale;
    if (positions != nullptr) x += to_float(positions[place_in_fragments(at, i, given.width)]);
    static_cast<T*>(given.output)[static_cast<int64_t>(row) * given.width + i] = saturated(x, T{});
    given.output_float[static_cast<int64_t>(row) * given.width + i] = x;
  }
}
