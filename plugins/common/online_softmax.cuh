// Attention of a few query rows over many positions by one thread block, in one pass (online softmax, arXiv 1805.02867).
//
// The D elements of a position are spread over LANES neighbouring lanes, 16 bytes each, so that a warp holds 32 / LANES
// positions at a time and a block of W warps W * 32 / LANES of them. Every such group keeps its own running maximum, sum
// and weighted sum in fp32; `merge` combines the groups once, at the end. Lanes past the head size are idle, so a head size
// need not be a power of two.
#pragma once

#include "elements.cuh"

constexpr int kWarpLanes = 32;
constexpr int kMaxWarps = 8;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr float kNothing = -3.402823466e38f;  // running maximum before the first position; finite, as inf - inf would be NaN

template <typename T, int ROWS>
struct Running {
  float maximum[ROWS];
  float sum[ROWS];
  float weighted[ROWS][Vector<T>::kElements];
  bool seen;  // whether this lane's group met any visible position

  __device__ __forceinline__ void clear() {
    seen = false;
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      maximum[r] = kNothing;
      sum[r] = 0.f;
#pragma unroll
      for (int i = 0; i < Vector<T>::kElements; ++i) weighted[r][i] = 0.f;
    }
  }
};

// This lane's slice of the query rows, multiplied by the scale. Rows past `rows` and lanes past the head size are zero.
template <typename T, int ROWS, int LANES>
struct Queries {
  float value[ROWS][Vector<T>::kElements];

  // stride: elements from one row to the next.
  __device__ __forceinline__ void load(const T* first, int rows, int stride, int head_size, float scale) {
    const int offset = threadIdx.x % LANES * Vector<T>::kElements;
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      const bool real = r < rows && offset < head_size;
      const Vector<T> vector = real ? Vector<T>::load(first + static_cast<int64_t>(r) * stride + offset) : Vector<T>::zero();
#pragma unroll
      for (int i = 0; i < Vector<T>::kElements; ++i) value[r][i] = vector[i] * scale;
    }
  }
};

// Adds the positions 0 <= p < count to `running`. `positions.locate(p, key, value, add)` answers whether p is visible and
// where its D elements lie, and gives the term that is added to its scores; it is called for p < count only. UNROLL
// positions per group are in flight, so that their loads overlap.
template <typename T, int ROWS, int LANES, int UNROLL, class Positions>
__device__ __forceinline__ void attend(const Positions& positions, int count, int head_size,
                                       const Queries<T, ROWS, LANES>& queries, Running<T, ROWS>& running) {
  constexpr int kElements = Vector<T>::kElements;
  constexpr int kGroups = kWarpLanes / LANES;
  const int warps = blockDim.x / kWarpLanes;
  const int warp = threadIdx.x / kWarpLanes;
  const int group = threadIdx.x % kWarpLanes / LANES;
  const int offset = threadIdx.x % LANES * kElements;

  for (int base = 0; base < count; base += warps * kGroups * UNROLL) {
    if (base + warp * kGroups >= count) break;  // the same for all lanes of a warp
    Vector<T> keys[UNROLL], values[UNROLL];
    float add[UNROLL];
    bool visible[UNROLL];
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
      const int p = base + (u * warps + warp) * kGroups + group;
      const T *key = nullptr, *value = nullptr;
      add[u] = 0.f;
      visible[u] = p < count && positions.locate(p, key, value, add[u]);
      const bool load = visible[u] && offset < head_size;
      keys[u] = load ? Vector<T>::load(key + offset) : Vector<T>::zero();
      values[u] = load ? Vector<T>::load(value + offset) : Vector<T>::zero();
      running.seen |= visible[u];
    }
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      float score[UNROLL];
      float maximum = running.maximum[r];
#pragma unroll
      for (int u = 0; u < UNROLL; ++u) {
        float dot = 0.f;
#pragma unroll
        for (int i = 0; i < kElements; ++i) dot += queries.value[r][i] * keys[u][i];
#pragma unroll
        for (int step = 1; step < LANES; step *= 2) dot += __shfl_xor_sync(kAllLanes, dot, step);
        score[u] = dot + add[u];
        if (visible[u]) maximum = fmaxf(maximum, score[u]);
      }
      const float keep = expf(running.maximum[r] - maximum);
      running.maximum[r] = maximum;
      running.sum[r] *= keep;
#pragma unroll
      for (int i = 0; i < kElements; ++i) running.weighted[r][i] *= keep;
#pragma unroll
      for (int u = 0; u < UNROLL; ++u) {
        const float weight = visible[u] ? expf(score[u] - maximum) : 0.f;
        running.sum[r] += weight;
#pragma unroll
        for (int i = 0; i < kElements; ++i) running.weighted[r][i] += weight * values[u][i];
      }
    }
  }
}

// The partial results of a block's warps.
template <int ROWS, int WIDTH>
struct Partials {
  float maximum[kMaxWarps][ROWS];
  float sum[kMaxWarps][ROWS];
  float weighted[kMaxWarps][ROWS][WIDTH];
};

// Combines the groups of each warp and writes one partial result per warp. Returns, to all threads of the block
// alike, whether any position was visible. All threads must call it.
template <typename T, int ROWS, int LANES>
__device__ __forceinline__ bool publish(Running<T, ROWS>& running,
                                        Partials<ROWS, LANES * Vector<T>::kElements>& partials) {
  constexpr int kElements = Vector<T>::kElements;
  const int warp = threadIdx.x / kWarpLanes;
  const int lane = threadIdx.x % kWarpLanes;
#pragma unroll
  for (int r = 0; r < ROWS; ++r) {
#pragma unroll
    for (int step = LANES; step < kWarpLanes; step *= 2) {
      const float other = __shfl_xor_sync(kAllLanes, running.maximum[r], step);
      const float maximum = fmaxf(running.maximum[r], other);
      const float keep = expf(running.maximum[r] - maximum);
      running.maximum[r] = maximum;
      running.sum[r] *= keep;
      running.sum[r] += __shfl_xor_sync(kAllLanes, running.sum[r], step);
#pragma unroll
      for (int i = 0; i < kElements; ++i) {
        running.weighted[r][i] *= keep;
        running.weighted[r][i] += __shfl_xor_sync(kAllLanes, running.weighted[r][i], step);
      }
    }
    if (lane == 0) {
      partials.maximum[warp][r] = running.maximum[r];
      partials.sum[warp][r] = running.sum[r];
    }
    if (lane < LANES) {
#pragma unroll
      for (int i = 0; i < kElements; ++i) partials.weighted[warp][r][lane * kElements + i] = running.weighted[r][i];
    }
  }
  return __syncthreads_or(running.seen);
}

// Element d of a row, as far as its positions have been seen.
struct Combined {
  float maximum, sum, weighted;
};

// From the partial results of the warps.
template <int ROWS, int WIDTH>
__device__ __forceinline__ Combined combine_warps(const Partials<ROWS, WIDTH>& partials, int row, int d) {
  const int warps = blockDim.x / kWarpLanes;
  float maximum = kNothing;
  for (int w = 0; w < warps; ++w) maximum = fmaxf(maximum, partials.maximum[w][row]);
  float sum = 0.f, weighted = 0.f;
  for (int w = 0; w < warps; ++w) {
    const float weight = expf(partials.maximum[w][row] - maximum);
    sum += weight * partials.sum[w][row];
    weighted += weight * partials.weighted[w][row][d];
  }
  return {maximum, sum, weighted};
}

template <int ROWS, int WIDTH>
__device__ __forceinline__ float combine(const Partials<ROWS, WIDTH>& partials, int row, int d) {
  const Combined found = combine_warps(partials, row, d);
  return found.weighted / found.sum;
}
