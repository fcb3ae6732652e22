// Attention of a decoder step, from the rows of one product to those of the next.
//
// Self-attention has one block per beam, head and source: it writes the beam's key and value into the cache and reads the
// earlier positions through the ancestor table, so that no beam's cache is ever copied. Cross-attention has one block per
// head, source and chunk of up to ROWS beams, which share what is read of the source; long sources are split over several
// blocks.
#pragma once

#include "../common/online_softmax.cuh"
#include "parameters.h"

constexpr int kSelfUnroll = 4;

// The bias of a distance; one beyond an end takes that end's.
__device__ __forceinline__ float bias_of(const float* biases, int distance, int first, int n) {
  return biases[min(max(distance - first, 0), n - 1)];
}

template <typename T>
struct History {
  const T *new_key, *new_value;      // [D] of this beam
  const T *key_cache, *value_cache;  // [C * K, D] of this source and head
  const float* bias;                 // [n_distances] of this head, or null
  const int64_t* ancestors;          // [C] of this beam
  int position, beams, head_size, first_distance, n_distances;

  __device__ __forceinline__ bool locate(int p, const T*& key, const T*& value, float& add) const {
    if (bias != nullptr) add = bias_of(bias, p - position, first_distance, n_distances);
    if (p == position) {
      key = new_key;
      value = new_value;
      return true;
    }
    const int64_t beam = ancestors[p];
    if (beam < 0 || beam >= beams) return false;
    const int64_t slot = (static_cast<int64_t>(p) * beams + beam) * head_size;
    key = key_cache + slot;
    value = value_cache + slot;
    return true;
  }
};

// The history of this block's beam. Writes this position's key and value into the cache.
template <typename T>
__device__ __forceinline__ History<T> begin_history(const SelfAttentionParameters& given, int64_t position, const T* query) {
  const int beam = blockIdx.x, head = blockIdx.y, source = blockIdx.z, head_size = given.head_size;
  const int width = given.heads * head_size;
  const int64_t cache = (static_cast<int64_t>(source) * given.heads + head) * given.capacity * given.beams * head_size;
  History<T> history;
  history.new_key = query + width;
  history.new_value = query + 2 * width;
  history.key_cache = static_cast<const T*>(given.key_cache) + cache;
  history.value_cache = static_cast<const T*>(given.value_cache) + cache;
  history.bias = given.bias == nullptr ? nullptr : given.bias + head * given.n_distances;
  history.ancestors = given.ancestors + (static_cast<int64_t>(source) * given.beams + beam) * given.capacity;
  history.position = static_cast<int>(position);
  history.beams = given.beams;
  history.head_size = head_size;
  history.first_distance = given.first_distance;
  history.n_distances = given.n_distances;
  const int offset = threadIdx.x * Vector<T>::kElements;
  if (offset < head_size) {
    const int64_t slot = cache + (position * given.beams + beam) * head_size + offset;
    Vector<T>::load(history.new_key + offset).store_to(static_cast<T*>(given.key_cache) + slot);
    Vector<T>::load(history.new_value + offset).store_to(static_cast<T*>(given.value_cache) + slot);
  }
  return history;
}

// Attention of this block's beam over its history; `take(d, result)` gets each of its D results. Outside the cache they are
// zero.
template <typename T, int LANES, class Take>
__device__ __forceinline__ void attend_history(const SelfAttentionParameters& given, Take take) {
  using Shared = Partials<1, LANES * Vector<T>::kElements>;
  SHARED_MEMORY(Shared, partials);
  const int head_size = given.head_size, width = given.heads * head_size;
  const int64_t row = static_cast<int64_t>(blockIdx.z) * given.beams + blockIdx.x, position = *given.position;
  if (position < 0 || position >= given.capacity) {  // the same for all blocks
    for (int d = threadIdx.x; d < head_size; d += blockDim.x) take(d, 0.f);
    return;
  }
  const T* query = static_cast<const T*>(given.rows) + row * 3 * width + blockIdx.y * head_size;
  const History<T> history = begin_history(given, position, query);
  Queries<T, 1, LANES> queries;
  queries.load(query, 1, 3 * width, head_size, given.scale);
  Running<T, 1> running;
  running.clear();
  attend<T, 1, LANES, kSelfUnroll>(history, history.position + 1, head_size, queries, running);
  publish<T, 1, LANES>(running, partials);
  for (int d = threadIdx.x; d < head_size; d += blockDim.x) take(d, combine(partials, 0, d));
}

// Grid: (K, H, B).
template <typename T, int LANES>
__device__ __forceinline__ void self_attention(const SelfAttentionParameters& given) {
  await_predecessor();
  const int width = given.heads * given.head_size;
  const int64_t row = static_cast<int64_t>(blockIdx.z) * given.beams + blockIdx.x;
  T* output = static_cast<T*>(given.output) + row * width + blockIdx.y * given.head_size;
  attend_history<T, LANES>(given, [output](int d, float result) { store(output + d, result); });
}

template <typename T>
struct Source {
  const T *keys, *values;  // of this source and head
  const int32_t* mask;     // [S] of this source
  int stride;

  __device__ __forceinline__ bool locate(int p, const T*& key, const T*& value, float&) const {
    key = keys + static_cast<int64_t>(p) * stride;
    value = values + static_cast<int64_t>(p) * stride;
    return mask[p] != 0;
  }
};

// The source's positions of one head, from `first` on.
template <typename T>
__device__ __forceinline__ Source<T> source_of(const CrossAttentionParameters& given, int first) {
  const int64_t at = static_cast<int64_t>(blockIdx.z) * given.length + first;
  const int64_t states = at * given.stride + blockIdx.y * given.head_size;
  return {static_cast<const T*>(given.keys) + states, static_cast<const T*>(given.values) + states, given.mask + at, given.stride};
}

// Attention of ROWS queries, rows of `stride` elements, to the `count` positions from `first` on, into `partials`. Returns
// whether any of them is real.
template <typename T, int ROWS, int LANES>
__device__ __forceinline__ bool attend_source(const CrossAttentionParameters& given, const T* query, int stride, int rows, int first,
                                              int count, Partials<ROWS, LANES * Vector<T>::kElements>& partials) {
  constexpr int kUnroll = ROWS <= 2 ? 4 : ROWS <= 4 ? 2 : 1;  // positions in flight, as registers allow
  Queries<T, ROWS, LANES> queries;
  queries.load(query, rows, stride, given.head_size, given.scale);
  Running<T, ROWS> running;
  running.clear();
  attend<T, ROWS, LANES, kUnroll>(source_of<T>(given, first), count, given.head_size, queries, running);
  return publish<T, ROWS, LANES>(running, partials);
}

// A source without any real position gets the mean of its S values, as a softmax of equal scores does.
template <typename T>
__device__ __forceinline__ float mean_value(const CrossAttentionParameters& given, int d) {
  const Source<T> states = source_of<T>(given, 0);
  float result = 0.f;
  for (int p = 0; p < given.length; ++p) result += to_float(states.values[static_cast<int64_t>(p) * given.stride + d]);
  return result / given.length;
}

// Cross-attention to a whole source; `take(r, d, result)` gets each result.
template <typename T, int ROWS, int LANES, class Take>
__device__ __forceinline__ void attend_whole_source(const CrossAttentionParameters& given, const T* query, int stride, int rows,
                                                    Partials<ROWS, LANES * Vector<T>::kElements>& partials, Take take) {
  const bool any = attend_source<T, ROWS, LANES>(given, query, stride, rows, 0, given.length, partials);
  for (int i = threadIdx.x; i < rows * given.head_size; i += blockDim.x) {
    const int r = i / given.head_size, d = i % given.head_size;
    take(r, d, any ? combine(partials, r, d) : mean_value<T>(given, d));
  }
}

// Grid: (K/ROWS * splits, H, B). With one split the result is written, else what `merge_cross` merges: of each row, head and
// split the D weighted sums, the largest score and the sum of the weights.
template <typename T, int ROWS, int LANES>
__device__ __forceinline__ void cross_attention(const CrossAttentionParameters& given) {
  using Shared = Partials<ROWS, LANES * Vector<T>::kElements>;
  SHARED_MEMORY(Shared, partials);
  await_predecessor();
  const int splits = given.splits, split = blockIdx.x % splits, head_size = given.head_size;
  const int width = given.heads * head_size, beam = blockIdx.x / splits * ROWS, rows = min(ROWS, given.beams - beam);
  const int64_t first_row = static_cast<int64_t>(blockIdx.z) * given.beams + beam;
  const int64_t at = first_row * width + blockIdx.y * head_size;
  const int each = (given.length + splits - 1) / splits, first = min(split * each, given.length);
  const bool any = attend_source<T, ROWS, LANES>(given, static_cast<const T*>(given.query) + at, width, rows, first,
                                                 min(each, given.length - first), partials);
  for (int i = threadIdx.x; i < rows * head_size; i += blockDim.x) {
    const int r = i / head_size, d = i % head_size;
    if (splits == 1) {
      store(static_cast<T*>(given.output) + at + static_cast<int64_t>(r) * width + d,
            any ? combine(partials, r, d) : mean_value<T>(given, d));
      continue;
    }
    const Combined found = combine_warps(partials, r, d);
    float* part = given.parts + (((first_row + r) * given.heads + blockIdx.y) * splits + split) * (head_size + 2);
    part[d] = found.weighted;
    if (d > 0) continue;
    part[head_size] = found.maximum;
    part[head_size + 1] = found.sum;
  }
}

constexpr int kMergeThreads = 128;

// Grid: (K, H, B).
template <typename T>
__device__ __forceinline__ void merge_cross(const CrossAttentionParameters& given) {
  await_predecessor();
  const int head_size = given.head_size, each = head_size + 2, head = blockIdx.y;
  const int64_t row = static_cast<int64_t>(blockIdx.z) * given.beams + blockIdx.x;
  const float* parts = given.parts + (row * given.heads + head) * given.splits * each;
  float maximum = kNothing;
  for (int i = 0; i < given.splits; ++i) maximum = fmaxf(maximum, parts[i * each + head_size]);
  for (int d = threadIdx.x; d < head_size; d += kMergeThreads) {
    float sum = 0.f, weighted = 0.f;
    for (int i = 0; i < given.splits; ++i) {
      const float weight = expf(parts[i * each + head_size] - maximum);
      sum += weight * parts[i * each + head_size + 1];
      weighted += weight * parts[i * each + d];
    }
    store(static_cast<T*>(given.output) + (row * given.heads + head) * head_size + d,
          sum > 0.f ? weighted / sum : mean_value<T>(given, d));
  }
}

constexpr int kWeightThreads = 256;

struct WeightsShared {
  float query[kWeightThreads];  // [D]
  float of_warps[kWeightThreads / 32];
};

// The sum or the largest of all threads' values, as `join` says, which every thread gets.
template <class Join>
__device__ __forceinline__ float join_block(float value, Join join, float (&of_warps)[kWeightThreads / 32]) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value = join(value, __shfl_xor_sync(0xffffffffu, value, step));
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = value;
  __syncthreads();
  value = of_warps[0];
  for (int w = 1; w < kWeightThreads / 32; ++w) value = join(value, of_warps[w]);
  __syncthreads();
  return value;
}

// The weights of listed heads: grid (heads, B*K). They are found apart from the attention itself, whose blocks see a part of the
// positions each. A thread goes on with what it has written itself. A source without any real position has equal weights.
template <typename T>
__device__ __forceinline__ void cross_weights(const CrossWeightsParameters& given) {
  SHARED_MEMORY(WeightsShared, shared);
  await_predecessor();
  const CrossAttentionParameters& attention = given.attention;
  const int row = blockIdx.y, head = given.listed[blockIdx.x], D = attention.head_size, S = attention.length;
  const int64_t source = row / attention.beams;
  const T* query = static_cast<const T*>(attention.query) + (static_cast<int64_t>(row) * attention.heads + head) * D;
  for (int d = threadIdx.x; d < D; d += kWeightThreads) shared.query[d] = to_float(query[d]) * attention.scale;
  __syncthreads();
  const T* keys = static_cast<const T*>(attention.keys) + source * S * attention.stride + head * D;
  const int32_t* mask = attention.mask + source * S;
  float* weights = given.weights + (static_cast<int64_t>(row) * given.n_all + given.first + blockIdx.x) * S;
  float maximum = kNothing, sum = 0.f;
  for (int p = threadIdx.x; p < S; p += kWeightThreads) {
    float score = kNothing;
    if (mask[p] != 0) {
      score = 0.f;
      for (int d = 0; d < D; d += Vector<T>::kElements) {
        const Vector<T> key = Vector<T>::load(keys + static_cast<int64_t>(p) * attention.stride + d);
#pragma unroll
        for (int i = 0; i < Vector<T>::kElements; ++i) score += shared.query[d + i] * key[i];
      }
    }
    weights[p] = score;
    maximum = fmaxf(maximum, score);
  }
  maximum = join_block(maximum, [](float a, float b) { return fmaxf(a, b); }, shared.of_warps);
  for (int p = threadIdx.x; p < S; p += kWeightThreads) {
    const float weight = maximum == kNothing ? 1.f : expf(weights[p] - maximum);
    weights[p] = weight;
    sum += weight;
  }
  sum = join_block(sum, [](float a, float b) { return a + b; }, shared.of_warps);
  for (int p = threadIdx.x; p < S; p += kWeightThreads) weights[p] /= sum;
}
