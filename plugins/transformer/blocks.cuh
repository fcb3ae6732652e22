// Attention of a decoder step together with the products around it, a head a block.
//
// The output projection of all heads is a sum over the heads, whose terms different blocks compute. Each block writes its
// own term, and the launch that needs the sum adds them up while it reads them: no block waits for another, and the sum is
// the same each time.
#pragma once

#include "attention.cuh"
#include "norms.cuh"

constexpr int kBlockThreads = 256;
constexpr int kCrossWidth = 1024;  // most inputs of the query's product

// Rows of one head, as second operands read them: eight more elements, so that rows begin in different banks.
template <typename T, int WIDTH>
struct alignas(16) HeadRows {
  T row[kRows][WIDTH + 8];
};

// Asks for this head's part of the output projection, which is used at the end.
template <typename Part>
__device__ __forceinline__ void prefetch_output(const HeadOutputParameters& given, int head, int heads, int head_size) {
  const int n_inputs = heads * head_size / kTile, mine = head_size / kTile;
  constexpr int kBytes = 32 * sizeof(Part);  // of a fragment
  const int lines = mine * kBytes / 128;
  const char* weight = static_cast<const char*>(given.weight);
  for (int i = threadIdx.x; i < given.outputs / kTile * lines; i += blockDim.x) {
    const int64_t fragment = static_cast<int64_t>(i / lines) * n_inputs + head * mine;
    prefetch(weight + fragment * kBytes + i % lines * 128);
  }
}

// The head's term of the output projection for `rows` rows, of which `first_row` is the first. All threads have written
// `from`, and a barrier has followed.
template <typename T, typename W, int WIDTH>
__device__ __forceinline__ void project_head(const HeadOutputParameters& given, int head, int heads, int head_size, int n_rows,
                                             int first_row, int rows, const HeadRows<T, WIDTH>& from) {
  constexpr int kMost = WIDTH / kTile;
  using Part = typename Stored<T, W>::Part;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  const int n_inputs = heads * head_size / kTile, mine = head_size / kTile, n_tiles = given.outputs / kTile;
  const Part* weight = static_cast<const Part*>(given.weight) + static_cast<int64_t>(head) * mine * 32 + lane;
  float* parts = given.parts + (static_cast<int64_t>(head) * n_rows + first_row) * given.outputs;
  Part next[kMost];
  const auto load = [&](int tile) {
#pragma unroll
    for (int k = 0; k < kMost; ++k)
      next[k] = tile < n_tiles && k < mine ? weight[(static_cast<int64_t>(tile) * n_inputs + k) * 32] : Stored<T, W>::zero();
  };
  load(warp);
  for (int tile = warp; tile < n_tiles; tile += kBlockThreads / 32) {
    Part now[kMost];
#pragma unroll
    for (int k = 0; k < kMost; ++k) now[k] = next[k];
    load(tile + kBlockThreads / 32);
    float sum[4] = {0.f, 0.f, 0.f, 0.f};
#pragma unroll
    for (int k = 0; k < kMost; ++k) {
      if (k >= mine) break;  // the same for all lanes
      const T* at = &from.row[g][k * kTile + 2 * t];
      multiply<T>(sum, Stored<T, W>::elements(now[k]), g < rows ? pair_at(at) : 0u, g < rows ? pair_at(at + 8) : 0u);
    }
    if constexpr (Stored<T, W>::kScaled) {
#pragma unroll
      for (int j = 0; j < 4; ++j) sum[j] *= given.weight_scale[tile * kTile + g + j / 2 * 8];
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (2 * t + i >= rows) continue;
      float* to = parts + static_cast<int64_t>(2 * t + i) * given.outputs + tile * kTile + g;
      to[0] = sum[i];
      to[8] = sum[2 + i];
    }
  }
}

// Self-attention and its output projection. Grid: (K, H, B). 256 threads.
template <typename T, typename W, int WIDTH>
__device__ __forceinline__ void self_block(const SelfBlockParameters& given) {
  using Mixed = HeadRows<T, WIDTH>;
  SHARED_MEMORY(Mixed, mixed);
  const SelfAttentionParameters& attention = given.attention;
  const int head = blockIdx.y;
  prefetch_output<typename Stored<T, W>::Part>(given.output, head, attention.heads, attention.head_size);
  await_predecessor();
  attend_history<T, WIDTH / 8>(attention, [&](int d, float result) { store(&mixed.row[0][d], result); });
  __syncthreads();
  project_head<T, W, WIDTH>(given.output, head, attention.heads, attention.head_size, attention.sources * attention.beams,
                         blockIdx.z * attention.beams + blockIdx.x, 1, mixed);
}

template <typename T, int ROWS, int WIDTH>
struct CrossBlockShared {
  union {
    T normed[kRows][kCrossWidth + 8];
    Partials<ROWS, WIDTH> partials;
  };
  float partial[kBlockThreads / 32][32][4];
  HeadRows<T, WIDTH> head;  // the queries, then what attention makes of them
};

// The queries of this head from the normed rows: tiles of 16 outputs, whose inputs WARPS / (WIDTH / 16) warps share.
template <typename T, typename W, int ROWS, int WIDTH>
struct HeadQuery {
  using Part = typename Stored<T, W>::Part;
  static constexpr int kWarps = kBlockThreads / 32, kSplits = kWarps * kTile / WIDTH, kAhead = 4;
  const Part* weight;
  int tile, split, n_inputs;
  bool has_tile;
  Part next[kAhead];

  __device__ __forceinline__ void load(int i) {
#pragma unroll
    for (int a = 0; a < kAhead; ++a)
      next[a] = has_tile && i + a * kSplits < n_inputs ? weight[(i + a * kSplits) * 32] : Stored<T, W>::zero();
  }
  // The first weights are on their way before the rows are there.
  __device__ __forceinline__ void begin(const CrossBlockParameters& given, int head) {
    const int warp = threadIdx.x / 32, mine = given.attention.head_size / kTile;
    tile = warp / kSplits;
    split = warp % kSplits;
    has_tile = tile < mine;
    n_inputs = given.query.inputs / kTile;
    weight = static_cast<const Part*>(given.query.weight) + static_cast<int64_t>(head * mine + tile) * n_inputs * 32 + threadIdx.x % 32;
    load(split);
  }
  __device__ __forceinline__ void run(const CrossBlockParameters& given, int head, int rows, CrossBlockShared<T, ROWS, WIDTH>& shared) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    float sum[4] = {0.f, 0.f, 0.f, 0.f};
    for (int i = split; i < n_inputs; i += kSplits * kAhead) {
      Part now[kAhead];
#pragma unroll
      for (int a = 0; a < kAhead; ++a) now[a] = next[a];
      load(i + kSplits * kAhead);
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
        if (i + a * kSplits >= n_inputs) break;  // the same for all lanes
        const T* at = &shared.normed[g][(i + a * kSplits) * kTile + 2 * t];
        multiply<T>(sum, Stored<T, W>::elements(now[a]), g < rows ? pair_at(at) : 0u, g < rows ? pair_at(at + 8) : 0u);
      }
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) shared.partial[warp][lane][j] = sum[j];
    __syncthreads();
    if (split == 0 && has_tile) {
      for (int other = 1; other < kSplits; ++other) {
#pragma unroll
        for (int j = 0; j < 4; ++j) sum[j] += shared.partial[warp + other][lane][j];
      }
      const float* bias = given.query.bias == nullptr ? nullptr : given.query.bias + head * given.attention.head_size;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int row = 2 * t + j % 2, d = tile * kTile + g + j / 2 * 8;
        float scale = given.query.scale;
        if constexpr (Stored<T, W>::kScaled) scale *= given.query.weight_scale[head * given.attention.head_size + d];
        if (row < rows) shared.head.row[row][d] = saturated(sum[j] * scale + (bias == nullptr ? 0.f : bias[d]), T{});
      }
    }
    __syncthreads();
  }
};

// Norm, query, cross-attention and its output projection. Grid: (K/ROWS, H, B). 256 threads.
template <typename T, typename W, int ROWS, int WIDTH>
__device__ __forceinline__ void cross_block(const CrossBlockParameters& given) {
  using Shared = CrossBlockShared<T, ROWS, WIDTH>;
  SHARED_MEMORY(Shared, shared);
  const CrossAttentionParameters& attention = given.attention;
  const int head = blockIdx.y, warp = threadIdx.x / 32, beam = blockIdx.x * ROWS;
  const int rows = min(ROWS, attention.beams - beam), first_row = blockIdx.z * attention.beams + beam;
  HeadQuery<T, W, ROWS, WIDTH> query;
  query.begin(given, head);
  prefetch_output<typename Stored<T, W>::Part>(given.output, head, attention.heads, attention.head_size);
  await_predecessor();
  if (warp < rows) norm_into<T, kCrossWidth>(given.query, first_row + warp, true, head == 0, shared.normed[warp]);
  __syncthreads();
  query.run(given, head, rows, shared);
  attend_whole_source<T, ROWS, WIDTH / 8>(attention, &shared.head.row[0][0], WIDTH + 8, rows, shared.partials,
                                          [&](int r, int d, float result) { store(&shared.head.row[r][d], result); });
  __syncthreads();
  project_head<T, W, WIDTH>(given.output, head, attention.heads, attention.head_size, attention.sources * attention.beams, first_row,
                         rows, shared.head);
}
