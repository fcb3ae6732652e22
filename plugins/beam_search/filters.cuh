// Decoding rules that keep some tokens of a whole distribution. decoding/rules is the definition.
//
// No filter sorts. Where the definition sorts, a filter searches for a threshold in an order: see `largest_threshold`. An
// order is a function that gives each token an unsigned number; "first" tokens are those with the smallest numbers. A row
// without a proper softmax (one with a NaN, or with nothing but minus infinity) loses no token, as comparisons with NaN
// are false.
#pragma once

#include "block.cuh"

// The scores of one row, which a filter changes in place.
struct Row {
  float* scores;  // [V]
  int vocabulary;
};

// An unsigned number for each float, in the same order. NaN comes last; no float gives 0.
__device__ __forceinline__ uint32_t order_of(float value) {
  union {
    float number;
    uint32_t bits;
  } as{value};
  if (value != value) return 0xffffffffu;
  if (value == 0.f) as.bits = 0u;
  return as.bits & 0x80000000u ? ~as.bits : as.bits | 0x80000000u;
}

struct Softmax {
  float maximum, sum;
  __device__ __forceinline__ float of(float value) const { return expf(value - maximum) / sum; }
  __device__ __forceinline__ float log_of(float value) const { return (value - maximum) - logf(sum); }
  __device__ __forceinline__ bool is_proper() const { return sum == sum; }
};

__device__ __forceinline__ Softmax softmax_of(const Row& row, BlockShared& shared) {
  float maximum = -INFINITY;
  for (int id = threadIdx.x; id < row.vocabulary; id += kBlockThreads) maximum = fmaxf(maximum, row.scores[id]);
  maximum = block_maximum(maximum, shared);
  double sum = 0.0;
  for (int id = threadIdx.x; id < row.vocabulary; id += kBlockThreads) sum += expf(row.scores[id] - maximum);
  return {maximum, static_cast<float>(block_sum(sum, shared))};
}

// Probabilities are added up as integers: the sum is exact in any order of adding, and needs no double-precision
// arithmetic, which is slow on small GPUs.
constexpr float kUnit = 0x1p62f;
__device__ __forceinline__ uint64_t weight_of(float probability) { return static_cast<uint64_t>(probability * kUnit); }
__device__ __forceinline__ float probability_of(uint64_t weight) {
  return static_cast<float>(static_cast<double>(weight) * (1.0 / kUnit));
}

// The tokens whose number in an order is below some threshold: how many, and the sum of their weights.
struct Below {
  uint64_t count, weight;
};

// The largest threshold in an order such that `may` holds for the tokens below it. found: those tokens. `may` must hold for
// no tokens at all, and must not hold again once it has failed for a smaller threshold. Each pass over the row finds two
// bits of the threshold.
template <class Order, class Weight, class May>
__device__ __forceinline__ uint32_t largest_threshold(
    const Row& row, Order order, Weight weight, May may, Below& found, BlockShared& shared) {
  uint32_t threshold = 0;
  found = {0, 0};
  for (int shift = 30; shift >= 0; shift -= 2) {
    uint64_t sums[6] = {};  // counts, then weights, below each of three thresholds
    for (int id = threadIdx.x; id < row.vocabulary; id += kBlockThreads) {
      const uint32_t place = order(id);
      const uint64_t mine = weight(id);
#pragma unroll
      for (uint32_t i = 0; i < 3; ++i) {
        const bool is_below = place < threshold + ((i + 1) << shift);
        sums[i] += is_below;
        sums[3 + i] += is_below ? mine : 0;
      }
    }
    block_sums(sums, shared);
    const uint32_t before = threshold;
#pragma unroll
    for (uint32_t i = 0; i < 3; ++i) {
      if (!may(Below{sums[i], sums[3 + i]})) break;
      threshold = before + ((i + 1) << shift);
      found = {sums[i], sums[3 + i]};
    }
  }
  return threshold;
}

// The first tokens of an order: all below `threshold`, and the first `equals` of those at it, by their ids.
struct First {
  uint32_t threshold;
  uint64_t equals;
};
constexpr uint64_t kAll = ~static_cast<uint64_t>(0);

template <class Order>
__device__ __forceinline__ First first_tokens(const Row& row, int n, Order order, BlockShared& shared) {
  Below below;
  const uint64_t most = n - 1;
  const uint32_t threshold = largest_threshold(
      row, order, [](int) { return uint64_t{0}; }, [most](const Below& b) { return b.count <= most; }, below, shared);
  return {threshold, n - below.count};
}

// Calls `then` for each of the first tokens and `otherwise` for every other; each thread goes through its own share.
template <class Order, class Then, class Otherwise>
__device__ __forceinline__ void divide(
    const Row& row, const First& first, Order order, Then then, Otherwise otherwise, BlockShared& shared) {
  const Share share = share_of(row.vocabulary);
  uint64_t equals = 0;
  for (int64_t id = share.first; id < share.end; ++id) equals += order(id) == first.threshold;
  uint64_t place = static_cast<uint64_t>(block_before(static_cast<double>(equals), shared));
  for (int64_t id = share.first; id < share.end; ++id) {
    const uint32_t mine = order(id);
    if (mine < first.threshold || (mine == first.threshold && place++ < first.equals)) {
      then(id);
    } else {
      otherwise(id);
    }
  }
}

// Removes the tokens for which `goes` holds, except the first `keep` of the order. ties: whether tokens that equal the last
// of these stay as well.
template <class Order, class Goes>
__device__ __forceinline__ void remove_all_but(
    const Row& row, int keep, bool ties, Order order, Goes goes, BlockShared& shared) {
  uint64_t staying[1] = {};
  for (int id = threadIdx.x; id < row.vocabulary; id += kBlockThreads) staying[0] += !goes(id);
  block_sums(staying, shared);
  if (staying[0] >= static_cast<uint64_t>(keep)) {  // at least `keep` tokens stay, and they are the first ones
    for (int id = threadIdx.x; id < row.vocabulary; id += kBlockThreads)
      if (goes(id)) row.scores[id] = -INFINITY;
    return;
  }
  First first = first_tokens(row, min(keep, row.vocabulary), order, shared);
  if (ties) first.equals = kAll;
  const auto remove = [&](int64_t id) {
    if (goes(id)) row.scores[id] = -INFINITY;
  };
  divide(row, first, order, [](int64_t) {}, remove, shared);
}

// Keeps the k best tokens, and those that equal the k-th.
__device__ __forceinline__ void keep_top_k(const Row& row, int k, BlockShared& shared) {
  const float* scores = row.scores;
  const auto order = [scores](int64_t id) { return order_of(-scores[id]); };
  const uint32_t worst = first_tokens(row, min(k, row.vocabulary), order, shared).threshold;
  for (int id = threadIdx.x; id < row.vocabulary; id += kBlockThreads)
    if (order(id) > worst && scores[id] == scores[id]) row.scores[id] = -INFINITY;
}

// Removes the least likely tokens whose probabilities add up to at most `removed`, but leaves at least `keep` tokens. Of
// equally likely tokens the one with the lower id is removed first.
__device__ __forceinline__ void keep_top_p(const Row& row, float removed, int keep, BlockShared& shared) {
  const Softmax softmax = softmax_of(row, shared);
  if (!softmax.is_proper() || keep >= row.vocabulary) return;
  const float* scores = row.scores;
  const uint64_t most = row.vocabulary - keep;
  const auto order = [scores](int64_t id) { return order_of(scores[id]); };
  const auto weight = [scores, softmax](int id) { return weight_of(softmax.of(scores[id])); };
  const auto may = [removed, most](const Below& b) { return probability_of(b.weight) <= removed && b.count <= most; };
  Below gone;
  const uint32_t threshold = largest_threshold(row, order, weight, may, gone, shared);
  // Of the tokens at the threshold, the first n may still be removed; n is found by bisection.
  uint64_t equals[1] = {};
  float next = -INFINITY;
  for (int id = threadIdx.x; id < row.vocabulary; id += kBlockThreads) {
    if (order(id) != threshold) continue;
    next = scores[id];
    ++equals[0];
  }
  block_sums(equals, shared);
  next = block_maximum(next, shared);
  const uint64_t each = weight_of(softmax.of(next));
  uint64_t n = 0;
  for (uint64_t step = 1u << 31; step > 0; step /= 2)
    if (n + step <= equals[0] && may(Below{gone.count + n + step, gone.weight + (n + step) * each})) n += step;
  const auto remove = [&](int64_t id) { row.scores[id] = -INFINITY; };
  divide(row, First{threshold, n}, order, remove, [](int64_t) {}, shared);
}

// Keeps tokens at least p times as likely as the most likely one, and the `keep` most likely in any case.
__device__ __forceinline__ void keep_min_p(const Row& row, float p, int keep, BlockShared& shared) {
  const Softmax softmax = softmax_of(row, shared);
  if (!softmax.is_proper()) return;
  const float* scores = row.scores;
  const float least = p * softmax.of(softmax.maximum);
  const auto order = [scores, softmax](int64_t id) { return order_of(-softmax.of(scores[id])); };
  const auto goes = [scores, softmax, least](int64_t id) { return softmax.of(scores[id]) < least; };
  remove_all_but(row, keep, false, order, goes, shared);
}

// Keeps tokens with a probability of at least `least`, and in any case the `keep` best and those that equal the last of
// them.
__device__ __forceinline__ void keep_likely(
    const Row& row, const Softmax& softmax, float least, int keep, BlockShared& shared) {
  const float* scores = row.scores;
  const auto order = [scores](int64_t id) { return order_of(-scores[id]); };
  const auto goes = [scores, softmax, least](int64_t id) { return softmax.of(scores[id]) < least; };
  remove_all_but(row, keep, true, order, goes, shared);
}

__device__ __forceinline__ void keep_epsilon(const Row& row, float epsilon, int keep, BlockShared& shared) {
  const Softmax softmax = softmax_of(row, shared);
  if (softmax.is_proper()) keep_likely(row, softmax, epsilon, keep, shared);
}

constexpr float kLargest = 3.40282346638528859812e38f;
constexpr float kTiny = 1.17549435082228750797e-38f;  // the smallest normal number

__device__ __forceinline__ void keep_eta(const Row& row, float eta, int keep, BlockShared& shared) {
  const Softmax softmax = softmax_of(row, shared);
  if (!softmax.is_proper()) return;
  double sum = 0.0;
  for (int id = threadIdx.x; id < row.vocabulary; id += kBlockThreads) {
    const float value = row.scores[id];
    sum += product(fmaxf(softmax.log_of(value), -kLargest), softmax.of(value));
  }
  const float negative_entropy = static_cast<float>(block_sum(sum, shared));
  keep_likely(row, softmax, fminf(eta, sqrtf(eta) * expf(negative_entropy)), keep, shared);
}

// Keeps the tokens whose information is nearest to the entropy until their probabilities add up to `mass`, and at least
// `keep` tokens.
__device__ __forceinline__ void keep_typical(const Row& row, float mass, int keep, BlockShared& shared) {
  const Softmax softmax = softmax_of(row, shared);
  if (!softmax.is_proper()) return;
  const float* scores = row.scores;
  double sum = 0.0;
  for (int id = threadIdx.x; id < row.vocabulary; id += kBlockThreads) {
    const float information = softmax.log_of(scores[id]);
    const float term = product(information, expf(information));
    sum += term == term ? term : 0.f;  // NaN for an impossible token (-inf * 0), which counts as 0
  }
  const float entropy = -static_cast<float>(block_sum(sum, shared));
  const auto order = [scores, softmax, entropy](int64_t id) {
    return order_of(fabsf(-softmax.log_of(scores[id]) - entropy));
  };
  const auto weight = [scores, softmax](int id) { return weight_of(softmax.of(scores[id])); };
  const auto lacks = [mass](const Below& b) { return probability_of(b.weight) < mass; };
  Below below;
  const uint32_t farthest = largest_threshold(row, order, weight, lacks, below, shared);
  const auto goes = [order, farthest](int64_t id) { return order(id) > farthest; };
  remove_all_but(row, keep, false, order, goes, shared);
}

// The most likely tokens, as far as top_h looks at them: `found` by id, `sorted` best first.
constexpr int kMostLikely = 128;
struct Likely {
  float found[kMostLikely], sorted[kMostLikely];
  int found_ids[kMostLikely], ids[kMostLikely];
};

__device__ __forceinline__ void sort_likely(const Row& row, int n, Likely& likely, BlockShared& shared) {
  const float* scores = row.scores;
  const auto order = [scores](int64_t id) { return order_of(-scores[id]); };
  const First first = first_tokens(row, n, order, shared);
  uint64_t mine = 0;
  divide(row, first, order, [&](int64_t) { ++mine; }, [](int64_t) {}, shared);
  int slot = static_cast<int>(block_before(static_cast<double>(mine), shared));
  const auto take = [&](int64_t id) {
    likely.found[slot] = scores[id];
    likely.found_ids[slot++] = static_cast<int>(id);
  };
  divide(row, first, order, take, [](int64_t) {}, shared);
  __syncthreads();
  if (static_cast<int>(threadIdx.x) < n) {
    const uint32_t own = order_of(-likely.found[threadIdx.x]);
    int rank = 0;
    for (int i = 0; i < n; ++i) {
      const uint32_t other = order_of(-likely.found[i]);
      rank += other < own || (other == own && i < static_cast<int>(threadIdx.x));
    }
    likely.sorted[rank] = likely.found[threadIdx.x];
    likely.ids[rank] = likely.found_ids[threadIdx.x];
  }
  __syncthreads();
}

// Keeps the best of the n most likely tokens, as long as their terms add up to at most `share` of the entropy of these n;
// at least one.
__device__ __forceinline__ void keep_top_h(const Row& row, float share, int n, BlockShared& shared) {
  SHARED_MEMORY(Likely, likely);
  n = min(min(n, kMostLikely), row.vocabulary);
  sort_likely(row, n, likely, shared);
  const int i = threadIdx.x;
  const bool is_one = i < n;
  const float value = is_one ? likely.sorted[i] : 0.f;
  const float weight = is_one ? expf(value - likely.sorted[0]) : 0.f;
  const float probability = weight / static_cast<float>(block_sum(weight, shared));
  const float bounded = fmaxf(logf(fmaxf(probability, kTiny)), -kLargest);
  const float entropy = static_cast<float>(block_sum(is_one ? -product(probability, bounded) : 0.f, shared));
  const float term = is_one ? product(-probability, logf(probability)) : 0.f;
  const float so_far = static_cast<float>(block_before(term, shared) + term);
  for (int id = i; id < row.vocabulary; id += kBlockThreads) row.scores[id] = -INFINITY;
  __syncthreads();
  if (is_one && (i == 0 || so_far <= product(entropy, share))) row.scores[likely.ids[i]] = value;
}
