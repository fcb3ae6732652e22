// Self-attention of an encoder on tensor cores, in one pass and without a matrix of all scores (arXiv 2205.14135).
//
// A block has 64 queries of one head and source, 16 a warp; keys and values come into shared memory 32 at a time. Here the
// queries are the first operand of the products (see fragments.cuh): scores are queries times keys, and a lane's scores are
// already in the place in which the product with the values wants them.
#pragma once

#include "attention.cuh"
#include "fragments.cuh"

constexpr int kEncoderThreads = 128;
constexpr int kBlockQueries = kEncoderThreads / 32 * kTile;
constexpr int kBlockKeys = 32;

// Grid: (S/64, H, B). WIDTH: the largest head size, a multiple of 16.
template <typename T, int WIDTH>
__device__ __forceinline__ void encoder_attention(const EncoderAttentionParameters& given) {
  struct Shared {
    T keys[kBlockKeys][WIDTH + 8];  // eight more, so that rows begin in different banks
    T values[kBlockKeys][WIDTH + 8];
    int32_t mask[kBlockKeys];
  };
  SHARED_MEMORY(Shared, shared);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  const int head = blockIdx.y, source = blockIdx.z, length = given.length, head_size = given.head_size;
  const int width = given.heads * head_size, stride = 3 * width;
  const int query = blockIdx.x * kBlockQueries + warp * kTile + g;  // and query + 8
  const T* rows = static_cast<const T*>(given.rows) + static_cast<int64_t>(source) * length * stride + head * head_size;
  const float* bias = given.bias == nullptr ? nullptr : given.bias + head * given.n_distances;
  await_predecessor();

  uint4 queries[WIDTH / kTile];
#pragma unroll
  for (int k = 0; k < WIDTH / kTile; ++k) {
    const T* upper = rows + static_cast<int64_t>(query) * stride + k * kTile + 2 * t;
    const T* lower = upper + static_cast<int64_t>(8) * stride;
    const bool has_upper = query < length && k * kTile < head_size, has_lower = query + 8 < length && k * kTile < head_size;
    queries[k] = uint4{has_upper ? pair_at(upper) : 0u, has_lower ? pair_at(lower) : 0u,
                       has_upper ? pair_at(upper + 8) : 0u, has_lower ? pair_at(lower + 8) : 0u};
  }

  float sum[WIDTH / kRows][4] = {};
  float maximum[2] = {kNothing, kNothing}, total[2] = {0.f, 0.f};  // of query and of query + 8
  for (int first = 0; first < length; first += kBlockKeys) {
    __syncthreads();  // all have read the last keys and values
    for (int i = threadIdx.x; i < kBlockKeys * WIDTH / 8; i += kEncoderThreads) {
      const int p = i / (WIDTH / 8), d = i % (WIDTH / 8) * 8;
      const bool is_real = first + p < length && d < head_size;
      const T* key = rows + static_cast<int64_t>(first + p) * stride + width + d;
      (is_real ? Vector<T>::load(key) : Vector<T>::zero()).store_to(&shared.keys[p][d]);
      (is_real ? Vector<T>::load(key + width) : Vector<T>::zero()).store_to(&shared.values[p][d]);
    }
    if (threadIdx.x < kBlockKeys) {
      const int p = first + threadIdx.x;
      shared.mask[threadIdx.x] = p < length && given.mask[static_cast<int64_t>(source) * length + p] != 0;
    }
    __syncthreads();

    float score[kBlockKeys / kRows][4] = {};
#pragma unroll
    for (int n = 0; n < kBlockKeys / kRows; ++n) {
#pragma unroll
      for (int k = 0; k < WIDTH / kTile; ++k) {
        if (k * kTile >= head_size) break;  // the same for all threads
        const T* key = &shared.keys[n * kRows + g][k * kTile + 2 * t];
        multiply<T>(score[n], queries[k], pair_at(key), pair_at(key + 8));
      }
    }

    float largest[2] = {maximum[0], maximum[1]};
    bool visible[kBlockKeys / kRows][2];
#pragma unroll
    for (int n = 0; n < kBlockKeys / kRows; ++n) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int p = n * kRows + 2 * t + j % 2, half = j / 2;
        visible[n][j % 2] = shared.mask[p] != 0;
        score[n][j] *= given.scale;
        if (bias != nullptr)
          score[n][j] += bias_of(bias, first + p - (query + 8 * half), given.first_distance, given.n_distances);
        if (visible[n][j % 2]) largest[half] = fmaxf(largest[half], score[n][j]);
      }
    }
    float kept[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      for (int step = 1; step < 4; step *= 2) largest[half] = fmaxf(largest[half], __shfl_xor_sync(kWholeWarp, largest[half], step));
      kept[half] = expf(maximum[half] - largest[half]);
      maximum[half] = largest[half];
      total[half] *= kept[half];
    }
#pragma unroll
    for (int n = 0; n < kBlockKeys / kRows; ++n) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        score[n][j] = visible[n][j % 2] ? expf(score[n][j] - maximum[j / 2]) : 0.f;
        total[j / 2] += score[n][j];
      }
    }
#pragma unroll
    for (int d = 0; d < WIDTH / kRows; ++d) {
      if (d * kRows >= head_size) break;  // the same for all threads
#pragma unroll
      for (int j = 0; j < 4; ++j) sum[d][j] *= kept[j / 2];
#pragma unroll
      for (int n = 0; n < kBlockKeys / kTile; ++n) {
        const float* left = score[2 * n];
        const float* right = score[2 * n + 1];
        const uint4 weights{paired<T>(left[0], left[1]), paired<T>(left[2], left[3]), paired<T>(right[0], right[1]),
                            paired<T>(right[2], right[3])};
        const int p = n * kTile + 2 * t, column = d * kRows + g;
        uint32_t values[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          reinterpret_cast<T*>(&values[i])[0] = shared.values[p + 8 * i][column];
          reinterpret_cast<T*>(&values[i])[1] = shared.values[p + 8 * i + 1][column];
        }
        multiply<T>(sum[d], weights, values[0], values[1]);
      }
    }
  }

#pragma unroll
  for (int half = 0; half < 2; ++half) {
    for (int step = 1; step < 4; step *= 2) total[half] += __shfl_xor_sync(kWholeWarp, total[half], step);
  }
  T* output = static_cast<T*>(given.output) + static_cast<int64_t>(source) * length * width + head * head_size;
#pragma unroll
  for (int d = 0; d < WIDTH / kRows; ++d) {
    if (d * kRows >= head_size) break;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int at = query + 8 * half;
      if (at >= length) continue;
      const float factor = total[half] > 0.f ? 1.f / total[half] : 0.f;  // a source without any real position gives zeros
      *reinterpret_cast<uint32_t*>(output + static_cast<int64_t>(at) * width + d * kRows + 2 * t) =
          paired<T>(sum[d][2 * half] * factor, sum[d][2 * half + 1] * factor);
    }
  }
}
