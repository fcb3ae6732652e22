// The best M tokens of each row and the normaliser of its log-softmax; the distribution is never written to memory.
//
// Two stages. First, each warp takes a slice of the vocabulary and writes its maximum, its sum of exponentials and its
// best M tokens, best first. Then one warp per row merges those lists. Of equal logits the lower token comes first, as in a
// stable sort. A NaN logit is never chosen before a number, and makes the normaliser NaN.
#pragma once

#include "../common/elements.cuh"
#include "parameters.h"

constexpr int kListWarps = 4;    // warps of a block in the first stage
constexpr int kMostLists = 128;  // per row
constexpr int kHeld = 4;         // best tokens of its part that a lane keeps in registers
constexpr int kLoads = 8;        // loads of a lane in flight
constexpr int kNobody = 0x7fffffff;
constexpr unsigned kFullWarp = 0xffffffffu;

struct Ranked {
  float value;
  int32_t id;
};

__device__ __forceinline__ Ranked nobody() { return {-INFINITY, kNobody}; }
__device__ __forceinline__ bool better(const Ranked& a, const Ranked& b) {
  return a.value > b.value || (a.value == b.value && a.id < b.id);
}

// The best of the 32 lanes' offers, returned to every lane.
__device__ __forceinline__ Ranked warp_best(Ranked offer) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    Ranked other;
    other.value = __shfl_xor_sync(kFullWarp, offer.value, step);
    other.id = __shfl_xor_sync(kFullWarp, offer.id, step);
    if (better(other, offer)) offer = other;
  }
  return offer;
}

// Calls `use(id, logit)` for this lane's share of [first, end), in order. Several loads are in flight at once; one
// at a time, they would take most of the kernel's time.
template <typename T, typename Use>
__device__ __forceinline__ void for_each(const T* logits, int first, int end, Use use) {
  int id = first + threadIdx.x % 32;
  for (; id + 32 * (kLoads - 1) < end; id += 32 * kLoads) {
    T loaded[kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) loaded[i] = logits[id + 32 * i];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) use(id + 32 * i, to_float(loaded[i]));
  }
  for (; id < end; id += 32) use(id, to_float(logits[id]));
}

// The kHeld best of this lane's tokens that come after `last` in order, best first.
template <typename T>
__device__ __forceinline__ void hold(const T* logits, int first, int end, Ranked last, Ranked (&held)[kHeld]) {
#pragma unroll
  for (int i = 0; i < kHeld; ++i) held[i] = nobody();
  for_each(logits, first, end, [&](int id, float value) {
    Ranked item{value == value ? value : -INFINITY, id};
    if (!better(last, item) || !better(item, held[kHeld - 1])) return;
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      if (better(item, held[i])) {
        const Ranked pushed = held[i];
        held[i] = item;
        item = pushed;
      }
    }
  });
}

struct Normalizer {
  float maximum, log_sum;
};

// The normaliser of a row, from the maxima and sums of its slices. A whole warp calls this, and every lane gets the result.
__device__ __forceinline__ Normalizer normalizer_of(const float* maxima, const float* sums, int lists) {
  const int lane = threadIdx.x % 32;
  float maximum = -INFINITY, sum = 0.f;
  for (int list = lane; list < lists; list += 32) maximum = fmaxf(maximum, maxima[list]);
#pragma unroll
  for (int step = 16; step > 0; step /= 2) maximum = fmaxf(maximum, __shfl_xor_sync(kFullWarp, maximum, step));
  for (int list = lane; list < lists; list += 32)
    sum += sums[list] * (maxima[list] == maximum ? 1.f : expf(maxima[list] - maximum));
#pragma unroll
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(kFullWarp, sum, step);
  return {maximum, logf(sum)};
}

template <typename T>
__device__ __forceinline__ void top_of_slices(const LogSoftmaxTopParameters& given) {
  const int row = blockIdx.y, lane = threadIdx.x % 32;
  const int list = blockIdx.x * kListWarps + threadIdx.x / 32;
  if (list >= given.lists) return;  // the same for a whole warp, and no barrier of the block follows
  const int slice = (given.vocabulary + given.lists - 1) / given.lists;
  const int first = min(list * slice, given.vocabulary), end = min(first + slice, given.vocabulary);
  const T* logits = static_cast<const T*>(given.logits) + static_cast<int64_t>(row) * given.vocabulary;
  const int64_t place = static_cast<int64_t>(row) * given.lists + list;

  Ranked held[kHeld];
  hold(logits, first, end, Ranked{INFINITY, -1}, held);

  const float maximum = warp_best(held[0]).value;
  float sum = 0.f;
  for_each(logits, first, end, [&](int, float value) { sum += value == maximum ? 1.f : expf(value - maximum); });
#pragma unroll
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(kFullWarp, sum, step);
  if (lane == 0) {
    given.list_maximum[place] = maximum;
    given.list_sum[place] = sum;
  }

  for (int m = 0; m < given.candidates; ++m) {
    const Ranked best = warp_best(held[0]);
    if (lane == 0) {
      given.list_values[place * given.candidates + m] = best.value;
      given.list_ids[place * given.candidates + m] = best.id;
    }
    if (best.id == held[0].id && best.id != kNobody) {
#pragma unroll
      for (int i = 0; i + 1 < kHeld; ++i) held[i] = held[i + 1];
      held[kHeld - 1] = nobody();
      if (held[0].id == kNobody) hold(logits, first, end, best, held);  // rare: all that this lane kept were taken
    }
  }
}

// The second stage, of one row: by a whole warp.
__device__ __forceinline__ void merge_lists(const LogSoftmaxTopParameters& given, int row) {
  constexpr int kPerLane = kMostLists / 32;
  const int lane = threadIdx.x % 32;
  const int64_t first = static_cast<int64_t>(row) * given.lists;
  const float* values = given.list_values + first * given.candidates;
  const int32_t* ids = given.list_ids + first * given.candidates;

  const auto [maximum, log_sum] = normalizer_of(given.list_maximum + first, given.list_sum + first, given.lists);
  if (lane == 0) given.log_normalizer[row] = maximum + log_sum;

  // A lane keeps the first remaining token of each of its lists in registers, and reads the next when that is taken.
  Ranked heads[kPerLane];
  int taken[kPerLane];
  const auto read = [&](int i) {
    const int list = lane + 32 * i, at = list * given.candidates + taken[i];
    return list < given.lists && taken[i] < given.candidates ? Ranked{values[at], ids[at]} : nobody();
  };
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    taken[i] = 0;
    heads[i] = read(i);
  }
  for (int m = 0; m < given.candidates; ++m) {
    Ranked head = heads[0];
#pragma unroll
    for (int i = 1; i < kPerLane; ++i)
      if (better(heads[i], head)) head = heads[i];
    const Ranked best = warp_best(head);
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      if (heads[i].id == best.id && best.id != kNobody) {
        ++taken[i];
        heads[i] = read(i);
      }
    }
    if (lane == 0) {
      given.candidate_ids[static_cast<int64_t>(row) * given.candidates + m] = best.id;
      given.candidate_log_probs[static_cast<int64_t>(row) * given.candidates + m] =
          given.keeps_values ? best.value : (best.value - maximum) - log_sum;
    }
  }
}
