// Cross-attention of one decoder step: the query rows of all beams of a source over its encoder states.
//
// One block per source, head and chunk of up to 8 beams. A key and a value are loaded once and meet all query rows of the
// chunk in registers, so up to 8 beams cost one reading of the source's K/V; a second chunk (9 to 16 beams) finds them in
// L2. Padding is skipped, not loaded. A source without any real position gets the mean of its S values, which is what a
// softmax over S equally large negative scores gives.
#pragma once

#include "../common/online_softmax.cuh"
#include "parameters.h"

// An additive mask at or below this value hides a position. It is a power of two, which every element type holds exactly;
// it is above the -10000 and the lowest finite values that frameworks write, and far below any score.
constexpr float kMasked = -8192.f;

template <typename T>
struct Source {
  const T *keys, *values;  // [S, D] of this source and head
  const T* mask;           // [S] of this source
  const T* bias;           // [S] of this head, or null
  int head_size;

  __device__ __forceinline__ bool locate(int p, const T*& key, const T*& value, float& add) const {
    add = to_float(mask[p]);
    const bool visible = add > kMasked;
    if (bias != nullptr) add += to_float(bias[p]);
    key = keys + static_cast<int64_t>(p) * head_size;
    value = values + static_cast<int64_t>(p) * head_size;
    return visible;
  }
};

template <typename T, int ROWS, int LANES>
__device__ __forceinline__ void cross_attention(const CrossAttentionParameters& given) {
  using Shared = Partials<ROWS, LANES * Vector<T>::kElements>;
  SHARED_MEMORY(Shared, partials);
  constexpr int kUnroll = ROWS <= 2 ? 4 : ROWS <= 4 ? 2 : 1;  // positions in flight, as registers allow
  const int chunk = blockIdx.x, head = blockIdx.y, source = blockIdx.z;
  const int head_size = given.head_size, length = given.length;
  const int64_t pair = static_cast<int64_t>(source) * given.heads + head;
  const int64_t row = (pair * given.beams + chunk * ROWS) * head_size;
  const int rows = min(ROWS, given.beams - chunk * ROWS);

  Source<T> states;
  states.keys = static_cast<const T*>(given.key) + pair * length * head_size;
  states.values = static_cast<const T*>(given.value) + pair * length * head_size;
  states.mask = static_cast<const T*>(given.mask) + static_cast<int64_t>(source) * length;
  states.bias = given.bias == nullptr ? nullptr : static_cast<const T*>(given.bias) + head * length;
  states.head_size = head_size;

  Queries<T, ROWS, LANES> queries;
  queries.load(static_cast<const T*>(given.query) + row, rows, head_size, head_size, given.scale);
  Running<T, ROWS> running;
  running.clear();
  attend<T, ROWS, LANES, kUnroll>(states, length, head_size, queries, running);
  const bool any = publish<T, ROWS, LANES>(running, partials);

  T* output = static_cast<T*>(given.output) + row;
  for (int i = threadIdx.x; i < rows * head_size; i += blockDim.x) {
    const int d = i % head_size;
    float result = 0.f;
    if (any) {
      result = combine(partials, i / head_size, d);
    } else {
      for (int p = 0; p < length; ++p) result += to_float(states.values[p * head_size + d]);
      result /= length;
    }
    store(output + i, result);
  }
}
