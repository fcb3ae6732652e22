// Self-attention of one decoder step: one query row per beam over the history that the beam continues.
//
// One block per beam, head and source. It writes its beam's key and value of this step into the cache and reads the
// earlier positions through the ancestor table, so that no beam's cache is ever copied. Blocks of one source share most
// of what they read (beams share ancestors) and find it in L2. No block reads a slot that another block of the same
// launch writes: those lie at `position`, where each beam takes its own row from `key` and `value` and not from the cache.
#pragma once

#include "../common/online_softmax.cuh"
#include "parameters.h"

constexpr int kSelfUnroll = 4;

template <typename T>
struct History {
  const T *new_key, *new_value;      // [D] of this beam
  const T *key_cache, *value_cache;  // [C * K, D] of this source and head
  const T* bias;                     // [C] of this head, or null
  const int64_t* ancestors;          // [C] of this beam
  int position, beams, head_size;

  __device__ __forceinline__ bool locate(int p, const T*& key, const T*& value, float& add) const {
    if (bias != nullptr) add = to_float(bias[p]);
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

template <typename T, int LANES>
__device__ __forceinline__ void beam_self_attention(const BeamSelfAttentionParameters& given) {
  using Shared = Partials<1, LANES * Vector<T>::kElements>;
  SHARED_MEMORY(Shared, partials);
  const int beam = blockIdx.x, head = blockIdx.y, source = blockIdx.z;
  const int head_size = given.head_size;
  const int64_t pair = static_cast<int64_t>(source) * given.heads + head;
  const int64_t row = (pair * given.beams + beam) * head_size;
  const int64_t cache = pair * given.capacity * given.beams * head_size;
  T* output = static_cast<T*>(given.output) + row;

  const int64_t position = *given.position;
  if (position < 0 || position >= given.capacity) {  // outside the cache; the same for all blocks
    for (int d = threadIdx.x; d < head_size; d += blockDim.x) store(output + d, 0.f);
    return;
  }

  History<T> history;
  history.new_key = static_cast<const T*>(given.key) + row;
  history.new_value = static_cast<const T*>(given.value) + row;
  history.key_cache = static_cast<const T*>(given.key_cache) + cache;
  history.value_cache = static_cast<const T*>(given.value_cache) + cache;
  history.bias = given.bias == nullptr ? nullptr : static_cast<const T*>(given.bias) + head * given.capacity;
  history.ancestors = given.ancestors + (static_cast<int64_t>(source) * given.beams + beam) * given.capacity;
  history.position = static_cast<int>(position);
  history.beams = given.beams;
  history.head_size = head_size;

  const int offset = threadIdx.x * Vector<T>::kElements;
  if (offset < head_size) {
    const int64_t slot = cache + (position * given.beams + beam) * head_size + offset;
    Vector<T>::load(history.new_key + offset).store_to(static_cast<T*>(given.key_cache) + slot);
    Vector<T>::load(history.new_value + offset).store_to(static_cast<T*>(given.value_cache) + slot);
  }

  Queries<T, 1, LANES> queries;
  queries.load(static_cast<const T*>(given.query) + row, 1, head_size, head_size, given.scale);
  Running<T, 1> running;
  running.clear();
  attend<T, 1, LANES, kSelfUnroll>(history, history.position + 1, head_size, queries, running);
  publish<T, 1, LANES>(running, partials);
  for (int d = threadIdx.x; d < head_size; d += blockDim.x) store(output + d, combine(partials, 0, d));
}
