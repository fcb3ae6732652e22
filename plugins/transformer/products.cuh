// Matrix products with packed weights.
//
// `skinny_product` is for the few rows of a decoder step: eight rows a block, weights read once from memory straight into
// fragments, several warps to a tile of outputs, each with its share of the inputs. A norm of the rows may come first; each
// block computes it for its rows and keeps the result in shared memory. `tiled_product` is for the many rows of an encoder
// or a large batch: 64 rows by 128 outputs a block.
#pragma once

#include "fragments.cuh"
#include "parameters.h"
#include "norms.cuh"

constexpr int kProductWarps = 8;
constexpr int kAhead = 4;  // fragments of a warp in flight

__device__ __forceinline__ float activated(float x, int activation) {
  switch (activation) {
    case S2S_RELU: return fmaxf(x, 0.f);
    case S2S_GELU: return 0.5f * x * (1.f + erff(x * 0.70710678f));
    case S2S_GELU_TANH: return 0.5f * x * (1.f + tanhf(0.79788456f * (x + 0.044715f * x * x * x)));
    case S2S_SILU: return x / (1.f + expf(-x));
    case S2S_QUICK_GELU: return x / (1.f + expf(-1.702f * x));
    case S2S_TANH: return tanhf(x);
    case S2S_SIGMOID: return 1.f / (1.f + expf(-x));
    default: return x;
  }
}

template <typename T>
__device__ __forceinline__ void store_result(const ProductParameters& given, int row, int output, float value) {
  if (output >= given.limit) return;
  const int64_t at = static_cast<int64_t>(row) * given.stride + output;
  if (given.residual != nullptr) value += given.residual[at];
  if (given.output_float != nullptr) given.output_float[at] = value;
  if (given.output != nullptr) static_cast<T*>(given.output)[at] = saturated(value, T{});
}

// What follows the sums of a tile of 16 outputs and 8 rows.
template <typename T, typename W>
__device__ __forceinline__ void store_tile(const ProductParameters& given, int tile, int first_row, const float (&sum)[4]) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int upper = tile * kTile + g, lower = upper + 8;
  float scale[2] = {given.scale, given.scale};
  if constexpr (Stored<T, W>::kScaled) {
    scale[0] *= given.weight_scale[upper];
    scale[1] *= given.weight_scale[lower];
  }
  const float bias[2] = {given.bias != nullptr ? given.bias[upper] : 0.f, given.bias != nullptr ? given.bias[lower] : 0.f};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = first_row + 2 * t + i;
    if (row >= given.rows) continue;
    const float one = sum[i] * scale[0] + bias[0], other = sum[2 + i] * scale[1] + bias[1];
    if (given.gated) {
      store_result<T>(given, row, tile * 8 + g, given.gated == S2S_MAXOUT ? fmaxf(one, other) : activated(one, given.activation) * other);
    } else {
      store_result<T>(given, row, upper, activated(one, given.activation));
      store_result<T>(given, row, lower, activated(other, given.activation));
    }
  }
}

// WIDTH: most inputs whose norm comes first; 0 for rows of T without a norm.
template <typename T, int WIDTH>
struct SkinnyShared {
  T rows[WIDTH > 0 ? kRows : 1][WIDTH > 0 ? WIDTH + 8 : 8];  // eight more, so that rows begin in different banks
  float partial[kProductWarps][32][4];
};

// Grid: (blocks over the outputs, R/8). 256 threads.
template <typename T, typename W, int WIDTH>
__device__ __forceinline__ void skinny_product(const ProductParameters& given) {
  using Shared = SkinnyShared<T, WIDTH>;
  using Part = typename Stored<T, W>::Part;
  SHARED_MEMORY(Shared, shared);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  const int first_row = blockIdx.y * kRows;
  const int n_inputs = given.inputs / kTile, n_tiles = given.outputs / kTile;
  const int splits = given.splits, split = warp % splits, tiles = kProductWarps / splits;
  const Part* weight = static_cast<const Part*>(given.weight) + lane;

  // The first weights are on their way while the rows are normed.
  Part next[kAhead];
  const auto load = [&](int tile, int i) {
    const Part* from = weight + (tile * n_inputs + i) * int64_t{32};
    const int n = tile < n_tiles ? n_inputs - i : 0;  // fragments from here on
#pragma unroll
    for (int a = 0; a < kAhead; ++a) next[a] = a * splits < n ? from[a * splits * 32] : Stored<T, W>::zero();
  };
  load(blockIdx.x * tiles + warp / splits, split);
  await_predecessor();

  if constexpr (WIDTH > 0) {
    const int row = first_row + warp;
    norm_into<T, WIDTH>(given, row, row < given.rows, blockIdx.x == 0, shared.rows[warp]);
    __syncthreads();
  }
  const T* row = WIDTH > 0 ? shared.rows[g] : static_cast<const T*>(given.input) + static_cast<int64_t>(first_row + g) * given.inputs;
  const bool is_real = WIDTH > 0 || first_row + g < given.rows;

  for (int base = blockIdx.x * tiles; base < n_tiles; base += gridDim.x * tiles) {
    const int tile = base + warp / splits;
    float sum[4] = {0.f, 0.f, 0.f, 0.f};
    if (tile < n_tiles) {
      for (int i = split; i < n_inputs; i += splits * kAhead) {
        Part now[kAhead];
#pragma unroll
        for (int a = 0; a < kAhead; ++a) now[a] = next[a];
        if (i + splits * kAhead < n_inputs) load(tile, i + splits * kAhead);
        else load(tile + gridDim.x * tiles, split);
#pragma unroll
        for (int a = 0; a < kAhead; ++a) {
          const int at = (i + a * splits) * kTile + 2 * t;
          if (i + a * splits >= n_inputs) break;  // the same for all lanes
          multiply<T>(sum, Stored<T, W>::elements(now[a]), is_real ? pair_at(row + at) : 0u, is_real ? pair_at(row + at + 8) : 0u);
        }
      }
    }
    if (splits > 1) {
#pragma unroll
      for (int j = 0; j < 4; ++j) shared.partial[warp][lane][j] = sum[j];
      __syncthreads();
      for (int other = 1; split == 0 && other < splits; ++other) {
#pragma unroll
        for (int j = 0; j < 4; ++j) sum[j] += shared.partial[warp + other][lane][j];
      }
      __syncthreads();
    }
    if (split == 0 && tile < n_tiles) store_tile<T, W>(given, tile, first_row, sum);
  }
}

constexpr int kBlockRows = 64;    // rows of a block of tiled_product
constexpr int kBlockInputs = 64;  // inputs that it holds at a time
constexpr int kTiledThreads = 128;
constexpr int kTiledTiles = 2;    // tiles of 16 outputs of a warp
constexpr int kBlockTiles = kTiledThreads / 32 * kTiledTiles;

// Grid: (O/128, R/64). 128 threads.
template <typename T, typename W>
__device__ __forceinline__ void tiled_product(const ProductParameters& given) {
  using Part = typename Stored<T, W>::Part;
  using Rows = T[2][kBlockRows][kBlockInputs + 8];
  SHARED_MEMORY(Rows, rows);
  constexpr int kVectors = kBlockRows * kBlockInputs / 8 / kTiledThreads;  // of eight elements, a thread's
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  const int first_row = blockIdx.y * kBlockRows, first_tile = (blockIdx.x * kTiledThreads / 32 + warp) * kTiledTiles;
  const int n_inputs = given.inputs / kTile, n_tiles = given.outputs / kTile;
  const T* input = static_cast<const T*>(given.input);
  const Part* weight = static_cast<const Part*>(given.weight) + lane;

  uint4 loaded[kVectors];
  const auto load = [&](int first_input) {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int at = v * kTiledThreads + threadIdx.x, row = first_row + at / 8, i = first_input + at % 8 * 8;
      loaded[v] = row < given.rows && i < given.inputs
                      ? Vector<T>::load(input + static_cast<int64_t>(row) * given.inputs + i).bits
                      : uint4{0, 0, 0, 0};
    }
  };
  const auto keep = [&](int buffer) {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int at = v * kTiledThreads + threadIdx.x;
      Vector<T>{loaded[v]}.store_to(&rows[buffer][at / 8][at % 8 * 8]);
    }
  };

  float sum[kTiledTiles][kBlockRows / kRows][4] = {};
  await_predecessor();
  load(0);
  keep(0);
  __syncthreads();
  for (int first_input = 0, buffer = 0; first_input < given.inputs; first_input += kBlockInputs, buffer ^= 1) {
    const bool is_last = first_input + kBlockInputs >= given.inputs;
    if (!is_last) load(first_input + kBlockInputs);
#pragma unroll
    for (int k = 0; k < kBlockInputs / kTile; ++k) {
      const int i = first_input / kTile + k;
      if (i >= n_inputs) break;  // the same for all threads
      uint4 mine[kTiledTiles];
#pragma unroll
      for (int j = 0; j < kTiledTiles; ++j) {
        const int tile = first_tile + j;
        mine[j] = Stored<T, W>::elements(tile < n_tiles ? weight[(static_cast<int64_t>(tile) * n_inputs + i) * 32]
                                                        : Stored<T, W>::zero());
      }
#pragma unroll
      for (int n = 0; n < kBlockRows / kRows; ++n) {
        const T* at = &rows[buffer][n * kRows + g][k * kTile + 2 * t];
        const uint32_t first = pair_at(at), second = pair_at(at + 8);
#pragma unroll
        for (int j = 0; j < kTiledTiles; ++j) multiply<T>(sum[j][n], mine[j], first, second);
      }
    }
    if (!is_last) keep(buffer ^ 1);
    __syncthreads();
  }
#pragma unroll
  for (int j = 0; j < kTiledTiles; ++j) {
    if (first_tile + j >= n_tiles) continue;
#pragma unroll
    for (int n = 0; n < kBlockRows / kRows; ++n) store_tile<T, W>(given, first_tile + j, first_row + n * kRows, sum[j][n]);
  }
}
