// Recurrent encoders and the steps of recurrent decoders.
//
// A cell is one launch: the gates of a few units lie in one tile of 16 outputs, so that a block that has the sums of a tile
// computes these units' states at once. Gates lie one behind the other: 4 units of an LSTM's i, f, g, o, 5 units of a GRU's
// r, z, n and a row of zeros. The eight warps share the inputs. What is multiplied with the input and with the last state is
// summed up apart, as a GRU's reset gate multiplies the latter only.
//
// States are rows of T, which products read, beside what is kept in fp32: an LSTM's cell, a GRU's hidden state. A decoder step
// first gathers the states of each beam's parent. An encoder reads the last state where the position before wrote it.
#pragma once

#include "../common/online_softmax.cuh"
#include "norms.cuh"
#include "products.cuh"

constexpr int kCellThreads = kProductWarps * 32;

__device__ __forceinline__ float sigmoid(float x) { return 1.f / (1.f + expf(-x)); }

template <int GROUPS>
struct CellShared {
  float partial[kProductWarps][2][GROUPS][32][4];  // of each warp, of input and state
};

// Where a row's states lie.
struct CellPlace {
  int64_t before, after, added;  // before is -1 where nothing was
  bool is_real;
};

__device__ __forceinline__ CellPlace place_of(const CellParameters& given, int row, int direction) {
  if (given.length == 0) return {static_cast<int64_t>(row) * given.stride, static_cast<int64_t>(row) * given.stride, row, true};
  const bool is_backward = given.reverse != 0 || direction == 1;
  const int p = is_backward ? given.length - 1 - given.step : given.step, earlier = is_backward ? p + 1 : p - 1;
  const int64_t first = static_cast<int64_t>(row) * given.length;
  const bool has_earlier = earlier >= 0 && earlier < given.length && given.mask[first + earlier] != 0;
  const int64_t column = static_cast<int64_t>(direction) * given.units;
  return {has_earlier ? (first + earlier) * given.stride + column : -1, (first + p) * given.stride + column, first + p,
          given.mask[first + p] != 0};
}

// Grid: (O/16, R/(8*GROUPS), directions). 256 threads. GATES: 4 of an LSTM, 3 of a GRU.
template <typename T, typename W, int GATES, int GROUPS>
__device__ __forceinline__ void recurrent_cell(const CellParameters& given) {
  using Shared = CellShared<GROUPS>;
  using Part = typename Stored<T, W>::Part;
  constexpr int kUnits = kTile / GATES;
  SHARED_MEMORY(Shared, shared);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  const int tile = blockIdx.x, direction = blockIdx.z, first_row = blockIdx.y * kRows * GROUPS;
  const int n_inputs = given.inputs / kTile, n_hidden = given.units / kTile, n_all = n_inputs + n_hidden;
  const int n_tiles = given.outputs / kTile;
  const Part* hidden_weight = static_cast<const Part*>(given.hidden_weight) +
                              (static_cast<int64_t>(direction) * n_tiles + tile) * n_hidden * 32 + lane;
  const Part* input_weight = static_cast<const Part*>(given.input_weight);
  if (n_inputs > 0) input_weight += static_cast<int64_t>(tile) * n_inputs * 32 + lane;

  Part next[kAhead];
  const auto load = [&](int i) {
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      const int at = i + a * kProductWarps;
      next[a] = at < n_inputs ? input_weight[at * 32] : at < n_all ? hidden_weight[(at - n_inputs) * 32] : Stored<T, W>::zero();
    }
  };
  load(warp);
  await_predecessor();

  const T *inputs[GROUPS], *states[GROUPS];  // of this lane's rows; null for none
#pragma unroll
  for (int q = 0; q < GROUPS; ++q) {
    const int row = first_row + q * kRows + g;
    inputs[q] = states[q] = nullptr;
    if (row >= given.rows) continue;
    const int64_t before = place_of(given, row, direction).before;
    if (n_inputs > 0) inputs[q] = static_cast<const T*>(given.input) + static_cast<int64_t>(row) * given.input_stride;
    if (before >= 0) states[q] = static_cast<const T*>(given.before) + before;
  }
  float of_input[GROUPS][4] = {}, of_state[GROUPS][4] = {};
  for (int i = warp; i < n_all; i += kProductWarps * kAhead) {
    Part now[kAhead];
#pragma unroll
    for (int a = 0; a < kAhead; ++a) now[a] = next[a];
    load(i + kProductWarps * kAhead);
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      const int at = i + a * kProductWarps;
      if (at >= n_all) break;  // the same for all lanes, as what follows is
      const uint4 elements = Stored<T, W>::elements(now[a]);
      const bool is_state = at >= n_inputs;
      const int column = (is_state ? at - n_inputs : at) * kTile + 2 * t;
#pragma unroll
      for (int q = 0; q < GROUPS; ++q) {
        const T* row = is_state ? states[q] : inputs[q];
        const bool has_row = row != nullptr;
        const uint32_t first = has_row ? pair_at(row + column) : 0u, second = has_row ? pair_at(row + column + 8) : 0u;
        if (is_state) multiply<T>(of_state[q], elements, first, second);
        else multiply<T>(of_input[q], elements, first, second);
      }
    }
  }
#pragma unroll
  for (int q = 0; q < GROUPS; ++q) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      shared.partial[warp][0][q][lane][j] = of_input[q][j];
      shared.partial[warp][1][q][lane][j] = of_state[q][j];
    }
  }
  __syncthreads();
  constexpr int kSums = 2 * GROUPS * 32 * 4;
  float* sums = &shared.partial[0][0][0][0][0];  // the warps' sums end in the first warp's place, each by one thread
  for (int e = threadIdx.x; e < kSums; e += kCellThreads) {
    float sum = sums[e];
    for (int w = 1; w < kProductWarps; ++w) sum += sums[w * kSums + e];
    sums[e] = sum;
  }
  __syncthreads();

  for (int e = threadIdx.x; e < GROUPS * kRows * kUnits; e += kCellThreads) {
    const int r = e / kUnits, row = first_row + r, unit = tile * kUnits + e % kUnits;
    if (row >= given.rows || unit >= given.units) continue;
    const CellPlace place = place_of(given, row, direction);
    float x[GATES], h[GATES];  // what input and state give each gate
#pragma unroll
    for (int gate = 0; gate < GATES; ++gate) {
      const int o = gate * kUnits + e % kUnits, from = o % 8 * 4 + r % kRows / 2, j = o / 8 * 2 + r % 2;
      const int64_t output = static_cast<int64_t>(direction) * given.outputs + tile * kTile + o;
      x[gate] = shared.partial[0][0][r / kRows][from][j];
      h[gate] = shared.partial[0][1][r / kRows][from][j];
      if constexpr (Stored<T, W>::kScaled) {
        if (given.inputs > 0) x[gate] *= given.input_scale[output];
        h[gate] *= given.hidden_scale[output];
      }
      if (given.input_bias != nullptr) x[gate] += given.input_bias[output];
      if (given.hidden_bias != nullptr) h[gate] += given.hidden_bias[output];
      if (given.added != nullptr) x[gate] += given.added[place.added * given.added_stride + output];
    }
    const float kept = place.before >= 0 ? given.kept_before[place.before + unit] : 0.f;
    float hidden, keeps;
    if constexpr (GATES == 4) {
      keeps = sigmoid(x[1] + h[1]) * kept + sigmoid(x[0] + h[0]) * tanhf(x[2] + h[2]);
      hidden = sigmoid(x[3] + h[3]) * tanhf(keeps);
    } else {
      const float candidate = tanhf(x[2] + sigmoid(x[0] + h[0]) * h[2]);
      hidden = keeps = candidate + sigmoid(x[1] + h[1]) * (kept - candidate);
    }
    if (!place.is_real) hidden = keeps = 0.f;
    store(static_cast<T*>(given.after) + place.after + unit, hidden);
    given.kept_after[place.after + unit] = keeps;
    if (given.output == nullptr) continue;
    store(static_cast<T*>(given.output) + static_cast<int64_t>(row) * given.output_stride + unit, hidden);
  }
}

constexpr int kBeginThreads = 128;

// What a decoder step begins with: the token's embedding, the source's context, and each layer's states of the beam's parent;
// at the first position the source's first states. Grid: (R, 1 + L).
template <typename T, typename W>
__device__ __forceinline__ void begin_step(const BeginParameters& given) {
  const int row = blockIdx.x, source = row / given.beams;
  await_predecessor();
  if (blockIdx.y == 0) {
    const int64_t id = min(max(given.ids[row], static_cast<int64_t>(0)), static_cast<int64_t>(given.vocabulary - 1));
    const W* embedding = static_cast<const W*>(given.embedding);
    float scale = 1.f;
    if constexpr (Stored<T, W>::kScaled) scale = given.embedding_row_scales[id];
    const int64_t at = static_cast<int64_t>(row) * given.stride;
    for (int i = threadIdx.x; i < given.width; i += blockDim.x)
      static_cast<T*>(given.embedded)[at + i] =
          saturated(to_float(embedding[place_in_fragments(id, i, given.width)]) * scale, T{});
    for (int i = threadIdx.x; given.context != nullptr && i < given.context_width; i += blockDim.x)
      static_cast<T*>(given.context_rows)[at + i] =
          static_cast<const T*>(given.context)[static_cast<int64_t>(source) * given.context_width + i];
    return;
  }
  const int layer = blockIdx.y - 1, units = given.units;
  const int64_t position = *given.position, to = (static_cast<int64_t>(layer) * given.rows + row) * units;
  const T* state = static_cast<const T*>(given.first) + (static_cast<int64_t>(source) * given.layers + layer) * units;
  const float* kept = given.first_kept;
  if (kept != nullptr) kept += (static_cast<int64_t>(source) * given.layers + layer) * units;
  if (position > 0) {
    const int64_t last = min(position - 1, static_cast<int64_t>(given.capacity - 1));
    const int64_t asked = given.ancestors[static_cast<int64_t>(row) * given.capacity + last];
    const int64_t parent = min(max(asked, static_cast<int64_t>(0)), static_cast<int64_t>(given.beams - 1));
    const int64_t from = (static_cast<int64_t>(layer) * given.rows + source * given.beams + parent) * units;
    state = static_cast<const T*>(given.after) + from;
    kept = given.kept_after + from;
  }
  for (int i = threadIdx.x; i < units; i += blockDim.x) {
    static_cast<T*>(given.before)[to + i] = state[i];
    given.kept_before[to + i] = kept == nullptr ? 0.f : kept[i];
  }
}

constexpr int kPickThreads = 128;

// The encoder's last states of a source: of its last token, or of its first one where the encoder reads backwards. Grid: B.
template <typename T>
__device__ __forceinline__ void pick_states(const PickParameters& given) {
  const int source = blockIdx.x;
  await_predecessor();
  int p = 0;
  if (!given.backward)
    for (p = given.length - 1; p > 0 && given.mask[static_cast<int64_t>(source) * given.length + p] == 0;) --p;
  const int64_t from = (static_cast<int64_t>(source) * given.length + p) * given.stride;
  const int64_t to = static_cast<int64_t>(source) * given.output_stride;
  for (int i = threadIdx.x; i < given.units; i += blockDim.x) {
    static_cast<T*>(given.output)[to + i] = static_cast<const T*>(given.states)[from + i];
    if (given.output_kept != nullptr) given.output_kept[to + i] = given.kept[from + i];
  }
}

constexpr int kScoreThreads = 256, kScoreBeams = 8;

// The scores of a source's positions for each beam, kNothing for those that are hidden: energy . tanh(query + key), or
// state . key where there is no energy. Grid: (S/8, K/8, B). A warp a position.
template <typename T>
__device__ __forceinline__ void source_scores(const ScoreParameters& given) {
  constexpr int kElements = Vector<T>::kElements;
  const int lane = threadIdx.x % 32, p = blockIdx.x * (kScoreThreads / 32) + threadIdx.x / 32;
  const int beam = blockIdx.y * kScoreBeams, beams = min(kScoreBeams, given.beams - beam), units = given.units;
  await_predecessor();
  if (p >= given.length) return;  // the same for a whole warp, and no barrier of the block follows
  const int64_t at = static_cast<int64_t>(blockIdx.z) * given.length + p;
  const int64_t row = static_cast<int64_t>(blockIdx.z) * given.beams + beam;
  const bool is_real = given.mask[at] != 0;
  float score[kScoreBeams] = {};
  for (int i = lane * kElements; is_real && i < units; i += 32 * kElements) {
    const Vector<T> key = Vector<T>::load(static_cast<const T*>(given.keys) + at * units + i);
#pragma unroll
    for (int k = 0; k < kScoreBeams; ++k) {
      if (k >= beams) break;
      const int64_t first = (row + k) * units + i;
      if (given.energy != nullptr) {
#pragma unroll
        for (int j = 0; j < kElements; ++j) score[k] += given.energy[i + j] * tanhf(given.query[first + j] + key[j]);
      } else {
        const Vector<T> state = Vector<T>::load(static_cast<const T*>(given.state) + first);
#pragma unroll
        for (int j = 0; j < kElements; ++j) score[k] += state[j] * key[j];
      }
    }
  }
#pragma unroll
  for (int k = 0; k < kScoreBeams; ++k) {
    const float sum = warp_sum(score[k]);
    if (lane == 0 && k < beams) given.scores[(row + k) * given.length + p] = is_real ? sum : kNothing;
  }
}

constexpr int kContextThreads = 256, kContextColumns = 64, kContextLanes = 8;

struct ContextShared {
  float maximum[kContextThreads / 32];
  float sum[kContextThreads / 32][kContextLanes];
  float weighted[kContextThreads / 32][kContextColumns];
};

// The mean of a source's annotations, weighted with the softmax of a beam's scores. A source without any real position gets
// the mean of all. Grid: (A/64, R).
template <typename T>
__device__ __forceinline__ void source_context(const ContextParameters& given) {
  SHARED_MEMORY(ContextShared, shared);
  constexpr int kElements = Vector<T>::kElements;
  static_assert(kContextLanes * kElements == kContextColumns, "a vector a lane");
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = blockIdx.y, source = row / given.beams;
  const int column = blockIdx.x * kContextColumns + lane % kContextLanes * kElements;
  await_predecessor();
  const float* scores = given.scores + static_cast<int64_t>(row) * given.length;
  float maximum = kNothing;
  for (int p = threadIdx.x; p < given.length; p += kContextThreads) maximum = fmaxf(maximum, scores[p]);
#pragma unroll
  for (int step = 16; step > 0; step /= 2) maximum = fmaxf(maximum, __shfl_xor_sync(kWholeWarp, maximum, step));
  if (lane == 0) shared.maximum[warp] = maximum;
  __syncthreads();
  for (int w = 0; w < kContextThreads / 32; ++w) maximum = fmaxf(maximum, shared.maximum[w]);
  const bool has_any = maximum > kNothing;

  float sum = 0.f, weighted[kElements] = {};
  const T* annotations = static_cast<const T*>(given.annotations) + static_cast<int64_t>(source) * given.length * given.width;
  for (int p = threadIdx.x / kContextLanes; p < given.length; p += kContextThreads / kContextLanes) {
    const float weight = !has_any ? 1.f : scores[p] > kNothing ? expf(scores[p] - maximum) : 0.f;
    sum += weight;
    if (column >= given.width) continue;
    const Vector<T> values = Vector<T>::load(annotations + static_cast<int64_t>(p) * given.width + column);
#pragma unroll
    for (int i = 0; i < kElements; ++i) weighted[i] += weight * values[i];
  }
#pragma unroll
  for (int step = kContextLanes; step < 32; step *= 2) {
    sum += __shfl_xor_sync(kWholeWarp, sum, step);
#pragma unroll
    for (int i = 0; i < kElements; ++i) weighted[i] += __shfl_xor_sync(kWholeWarp, weighted[i], step);
  }
  if (lane < kContextLanes) {
    shared.sum[warp][lane] = sum;
#pragma unroll
    for (int i = 0; i < kElements; ++i) shared.weighted[warp][lane * kElements + i] = weighted[i];
  }
  __syncthreads();
  const int mine = blockIdx.x * kContextColumns + threadIdx.x;
  if (threadIdx.x >= kContextColumns || mine >= given.width) return;
  float total = 0.f, result = 0.f;
  for (int w = 0; w < kContextThreads / 32; ++w) {
    total += shared.sum[w][0];
    result += shared.weighted[w][threadIdx.x];
  }
  store(static_cast<T*>(given.output) + static_cast<int64_t>(row) * given.stride + mine, result / total);
}
