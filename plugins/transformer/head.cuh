// The output projection together with the search for candidates: logits never reach memory.
//
// A block goes through tiles of 128 outputs for 8 rows. Each of its 8 warps computes 16 of the outputs, and then looks after
// one of the rows: the largest logit and the sum of exponentials so far, and the 32 best tokens, one a lane. What rules do to
// the tokens of this block is one bit for each, set before the first tile.
#pragma once

#include "../common/unfused.cuh"

#include "../beam_search/named.cuh"
#include "../beam_search/top.cuh"
#include "products.cuh"

constexpr int kGroupOutputs = kProductWarps * kTile;  // of a block at a time
constexpr int kEditWords = 128;                       // of a row: bits of the block's outputs

template <typename T, int WIDTH>
struct HeadShared {
  T rows[WIDTH > 0 ? kRows : 1][WIDTH > 0 ? WIDTH + 8 : 8];
  float logits[2][kRows][kGroupOutputs];
  uint32_t edited[kRows][kEditWords];
};

// Marks the tokens of this block that the rules name for a row: the banned ones, or, where only some are allowed, those (then
// it returns true). By a whole warp.
__device__ __forceinline__ bool mark_edits(const RulesParameters& given, int64_t row, uint32_t* words) {
  const int lane = threadIdx.x % 32;
  for (int w = lane; w < kEditWords; w += 32) words[w] = 0;
  __syncwarp();
  if (given.n_rules == nullptr) return false;
  RuleView view;
  view.scores = nullptr;
  view.history = given.history + row * given.history_width;
  view.source = given.sources + row / given.beams * given.source_width;
  view.ids = given.ids;
  view.amounts = given.amounts;
  view.vocabulary = given.vocabulary;
  view.length = static_cast<int>(*given.position) + 1;
  view.source_width = given.source_width;
  bool only = false;
  const int n_rules = *given.n_rules;
  for (int i = 0; i < n_rules; ++i) {
    const DeviceRule rule = given.rules[i];
    if (view.length < rule.first_length || view.length > rule.last_length) continue;
    if (rule.effect == S2S_ONLY) {
      only = true;
      for (int w = lane; w < kEditWords; w += 32) words[w] = 0;
      __syncwarp();
    }
    const int n = mentions(rule, view);
    for (int m = lane; m < n; m += 32) {
      const int32_t token = mentioned(rule, view, m);
      const int group = token / kGroupOutputs;
      if (token < 0 || group % gridDim.x != blockIdx.x) continue;
      const int place = static_cast<int>(group / gridDim.x) * kGroupOutputs + token % kGroupOutputs;
      if (place >= kEditWords * 32) continue;
      const uint32_t bit = 1u << place % 32;
      if (rule.effect == S2S_ONLY || !only) atomicOr(&words[place / 32], bit);
      else atomicAnd(&words[place / 32], ~bit);
    }
    __syncwarp();
  }
  return only;
}

// What a warp knows of its row: the normaliser's parts of each lane, and the best tokens in order, one a lane.
struct BestOfRow {
  float maximum = -INFINITY, sum = 0.f;
  Ranked held = nobody();

  __device__ __forceinline__ void add(float logit) {
    if (logit > maximum) {
      sum = sum * expf(maximum - logit) + 1.f;
      maximum = logit;
    } else {
      sum += logit == maximum ? 1.f : expf(logit - maximum);  // NaN stays
    }
  }

  // An offer of each lane; candidates: how many of the best are wanted.
  __device__ __forceinline__ void offer(Ranked item, int candidates) {
    const int lane = threadIdx.x % 32;
    const Ranked last{__shfl_sync(kFullWarp, held.value, candidates - 1), __shfl_sync(kFullWarp, held.id, candidates - 1)};
    for (unsigned left = __ballot_sync(kFullWarp, better(item, last)); left != 0; left &= left - 1) {
      const int from = __ffs(static_cast<int>(left)) - 1;
      const Ranked one{__shfl_sync(kFullWarp, item.value, from), __shfl_sync(kFullWarp, item.id, from)};
      const int place = __popc(__ballot_sync(kFullWarp, better(held, one)));
      const int below = max(lane - 1, 0);
      const Ranked pushed{__shfl_sync(kFullWarp, held.value, below), __shfl_sync(kFullWarp, held.id, below)};
      if (lane == place) held = one;
      else if (lane > place) held = pushed;
    }
  }
};

// Grid: (lists, R/8). 256 threads.
template <typename T, typename W, int WIDTH>
__device__ __forceinline__ void head_candidates(const HeadParameters& given) {
  using Shared = HeadShared<T, WIDTH>;
  using Part = typename Stored<T, W>::Part;
  SHARED_MEMORY(Shared, shared);
  const ProductParameters& product = given.product;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  const int first_row = blockIdx.y * kRows, own_row = first_row + warp;
  const int n_inputs = product.inputs / kTile, n_tiles = product.outputs / kTile;
  const bool has_row = own_row < product.rows;
  const Part* weight = static_cast<const Part*>(product.weight) + lane;

  Part next[kAhead];
  const auto load = [&](int tile, int i) {
    const Part* from = weight + (static_cast<int64_t>(tile) * n_inputs + i) * 32;
    const int n = tile < n_tiles ? n_inputs - i : 0;
#pragma unroll
    for (int a = 0; a < kAhead; ++a) next[a] = a < n ? from[a * 32] : Stored<T, W>::zero();
  };
  load(blockIdx.x * kProductWarps + warp, 0);
  await_predecessor();

  if constexpr (WIDTH > 0) norm_into<T, WIDTH>(product, own_row, has_row, blockIdx.x == 0, shared.rows[warp]);
  const bool only = has_row && mark_edits(given.rules, own_row, shared.edited[warp]);
  __syncthreads();
  const T* row = WIDTH > 0 ? shared.rows[g] : static_cast<const T*>(product.input) + static_cast<int64_t>(first_row + g) * product.inputs;
  const bool is_real = WIDTH > 0 || first_row + g < product.rows;

  BestOfRow best;
  int turn = 0;
  for (int base = blockIdx.x * kProductWarps; base < n_tiles; base += gridDim.x * kProductWarps, ++turn) {
    const int tile = base + warp;
    float sum[4] = {0.f, 0.f, 0.f, 0.f};
    for (int i = 0; i < n_inputs; i += kAhead) {
      Part now[kAhead];
#pragma unroll
      for (int a = 0; a < kAhead; ++a) now[a] = next[a];
      if (i + kAhead < n_inputs) load(tile, i + kAhead);
      else load(tile + gridDim.x * kProductWarps, 0);
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
        const int at = (i + a) * kTile + 2 * t;
        if (i + a >= n_inputs) break;  // the same for all lanes
        multiply<T>(sum, Stored<T, W>::elements(now[a]), is_real ? pair_at(row + at) : 0u, is_real ? pair_at(row + at + 8) : 0u);
      }
    }
    const float* bias = product.bias != nullptr && tile < n_tiles ? product.bias + tile * kTile + g : nullptr;
    float scale[2] = {product.scale, product.scale};
    if constexpr (Stored<T, W>::kScaled) {
      if (tile < n_tiles) {
        scale[0] *= product.weight_scale[tile * kTile + g];
        scale[1] *= product.weight_scale[tile * kTile + g + 8];
      }
    }
#pragma unroll
    for (int j = 0; j < 4; ++j)
      shared.logits[turn % 2][2 * t + j % 2][warp * kTile + g + j / 2 * 8] =
          sum[j] * scale[j / 2] + (bias == nullptr ? 0.f : bias[j / 2 * 8]);
    __syncthreads();  // the other half is read before it is written again, as a barrier comes between
    if (!has_row) continue;
#pragma unroll
    for (int j = 0; j < kGroupOutputs / 32; ++j) {
      const int at = j * 32 + lane, id = base * kTile + at, word = turn * (kGroupOutputs / 32) + j;
      const float logit = shared.logits[turn % 2][warp][at];
      const bool is_marked = word < kEditWords && (shared.edited[warp][word] >> lane & 1u);
      Ranked item = nobody();
      if (id < product.limit) {
        best.add(logit);
        const float value = only ? (is_marked ? 0.f : -INFINITY) : (is_marked || logit != logit ? -INFINITY : logit);
        item = Ranked{value, id};
      }
      best.offer(item, given.candidates);
    }
  }
  if (!has_row) return;  // a whole warp, and no barrier of the block follows

  float maximum = best.maximum;
#pragma unroll
  for (int step = 16; step > 0; step /= 2) maximum = fmaxf(maximum, __shfl_xor_sync(kFullWarp, maximum, step));
  float sum = best.sum * (best.maximum == maximum ? 1.f : expf(best.maximum - maximum));
#pragma unroll
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(kFullWarp, sum, step);
  const int64_t place = static_cast<int64_t>(own_row) * given.lists + blockIdx.x;
  if (lane == 0) {  // where only some tokens are allowed, their log-probability is 0
    given.list_maximum[place] = only ? (blockIdx.x == 0 ? 0.f : -INFINITY) : maximum;
    given.list_sum[place] = only ? (blockIdx.x == 0 ? 1.f : 0.f) : sum;
  }
  if (lane < given.candidates) {
    given.list_values[place * given.candidates + lane] = best.held.value;
    given.list_ids[place * given.candidates + lane] = best.held.id;
  }
}
