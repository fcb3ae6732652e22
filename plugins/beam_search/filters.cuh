// Decoding rules that keep some tokens of a whole distribution. decoding/rules is the definition.
//
// No filter sorts. Where the definition sorts, a filter searches for a threshold in an order. An order is a function that
// gives each token an unsigned number; "first" tokens are those with the smallest numbers, of equal ones those with the
// lower ids. A row is cut into slices, a block each, and a filter takes several launches:
//
//   filter_statistics  the softmax's maximum and sum of each slice           (filters that read probabilities)
//   filter_entropy     each slice's part of the entropy                      (typical-p, eta)
//   filter_digit       three times: the threshold's next digit               (all)
//   apply_filter       removes what is beyond the threshold, or within it    (all)
//
// Whatever the blocks of a row find is either merged by the last of them to finish, from integers, so that the order in
// which they finish changes nothing; or by each block of the next launch, in the order of the slices. A row without a
// proper softmax (one with a NaN, or with nothing but minus infinity) loses no token, as comparisons with NaN are false.
#pragma once

#include "block.cuh"
#include "chain_parameters.h"

struct Softmax {
  float maximum, sum;
  __device__ __forceinline__ float of(float value) const { return expf(value - maximum) / sum; }
  __device__ __forceinline__ float log_of(float value) const { return (value - maximum) - logf(sum); }
  __device__ __forceinline__ bool is_proper() const { return sum == sum; }
};

constexpr float kLargest = 3.40282346638528859812e38f;
constexpr float kTiny = 1.17549435082228750797e-38f;  // the smallest normal number

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

__device__ __forceinline__ bool reads_softmax(int effect) { return effect != S2S_TOP_K && effect != S2S_TOP_H; }
__device__ __forceinline__ bool reads_entropy(int effect) { return effect == S2S_TYPICAL_P || effect == S2S_ETA; }

// A filter on a row: its order, and which thresholds it takes.
struct Filter {
  DeviceRule rule;
  Softmax softmax;
  float entropy;
  float least;      // tokens at least so likely stay (min-p and the cutoffs)
  uint64_t n, all;  // the least number of tokens to keep, of so many

  __device__ __forceinline__ uint32_t order(float score) const {
    switch (rule.effect) {
      case S2S_TOP_P: return order_of(score);
      case S2S_MIN_P: {
        const float probability = softmax.of(score);
        return probability < least ? order_of(-probability) : 0;
      }
      case S2S_EPSILON:
      case S2S_ETA: return softmax.of(score) < least ? order_of(-score) : 0;
      case S2S_TYPICAL_P: return order_of(fabsf(-softmax.log_of(score) - entropy));
      default: return order_of(-score);
    }
  }
  __device__ __forceinline__ bool has_weights() const {
    return rule.effect == S2S_TOP_P || rule.effect == S2S_TYPICAL_P;
  }
  __device__ __forceinline__ uint64_t weight(float score) const { return weight_of(softmax.of(score)); }
  // Top-p finds the tokens that go, the least likely first; all others find those that stay.
  __device__ __forceinline__ bool removes_first() const { return rule.effect == S2S_TOP_P; }
  __device__ __forceinline__ bool lacks(const Below& below) const {
    return rule.effect == S2S_TYPICAL_P && probability_of(below.weight) < rule.amount;
  }
  // Whether a threshold may be that large, given the tokens below it. Holds for none; once it has failed it fails for all
  // larger thresholds.
  __device__ __forceinline__ bool may(const Below& below) const {
    if (removes_first()) return probability_of(below.weight) <= rule.amount && below.count <= all - n;
    return lacks(below) || below.count < n;
  }
  // Of `equals` tokens at the threshold, each of weight `each`, how many count as below it.
  __device__ __forceinline__ uint64_t first_at(uint32_t threshold, const Below& below, uint64_t equals, uint64_t each) const {
    if (removes_first()) {
      uint64_t found = 0;
      for (uint64_t step = 1u << 31; step > 0; step /= 2)
        if (found + step <= equals && may(Below{below.count + found + step, below.weight + (found + step) * each}))
          found += step;
      return found;
    }
    const bool keeps_ties = rule.effect == S2S_TOP_K || rule.effect == S2S_EPSILON || rule.effect == S2S_ETA;
    return keeps_ties || threshold == 0 || lacks(below) ? equals : min(n - below.count, equals);
  }
};

// A block's slice of a row.
struct Slice {
  float* scores;  // [V]: of the row
  FilterRow* row;
  FilterSlice* all;  // [lists]: of the row
  int first, end, vocabulary, lists;
};

__device__ __forceinline__ Slice slice_of(const ChainParameters& given) {
  const RulesParameters& rules = given.rules;
  const int64_t row = static_cast<int64_t>(blockIdx.z) * gridDim.y + blockIdx.y;
  const int V = rules.vocabulary, each = (V + given.lists - 1) / given.lists;
  const int first = min(static_cast<int>(blockIdx.x) * each, V);
  float* scores = (blockIdx.z == 0 ? rules.scores : rules.choice) + static_cast<int64_t>(blockIdx.y) * V;
  return {scores, given.filter_rows + row, given.filter_slices + row * given.lists, first, min(first + each, V), V, given.lists};
}

// Whether the filter has anything to do at this step.
__device__ __forceinline__ bool is_active(const ChainParameters& given, DeviceRule& rule) {
  if (*given.rules.stop) return false;
  rule = given.rules.rules[given.first];
  const int length = static_cast<int>(*given.rules.position) + 1;
  return rule.first_length <= length && length <= rule.last_length;
}

__device__ __forceinline__ void find_statistics(const ChainParameters& given) {
  SHARED_MEMORY(BlockShared, shared);
  DeviceRule rule;
  if (!is_active(given, rule)) return;
  const Slice slice = slice_of(given);
  float maximum = -INFINITY;
  for (int id = slice.first + threadIdx.x; id < slice.end; id += kBlockThreads) maximum = fmaxf(maximum, slice.scores[id]);
  maximum = block_maximum(maximum, shared);
  double sum = 0.0;
  for (int id = slice.first + threadIdx.x; id < slice.end; id += kBlockThreads) {
    const float value = slice.scores[id];
    sum += value == maximum ? 1.f : expf(value - maximum);
  }
  sum = block_sum(sum, shared);
  if (threadIdx.x != 0) return;
  slice.all[blockIdx.x].maximum = maximum;
  slice.all[blockIdx.x].sum = sum;
}

// The softmax of the whole row; its sum is NaN where there is none.
__device__ __forceinline__ Softmax row_softmax(const Slice& slice, BlockShared& shared) {
  float maximum = -INFINITY;
  for (int l = threadIdx.x; l < slice.lists; l += kBlockThreads) maximum = fmaxf(maximum, slice.all[l].maximum);
  maximum = block_maximum(maximum, shared);
  double sum = 0.0;
  for (int l = threadIdx.x; l < slice.lists; l += kBlockThreads)
    sum += slice.all[l].sum * expf(slice.all[l].maximum - maximum);
  return {maximum, static_cast<float>(block_sum(sum, shared))};
}

// A term of the entropy's negative, as the two definitions that need it have it.
__device__ __forceinline__ float entropy_term(int effect, const Softmax& softmax, float score) {
  const float information = softmax.log_of(score);
  if (effect == S2S_ETA) return product(fmaxf(information, -kLargest), softmax.of(score));
  const float term = product(information, expf(information));
  return term == term ? term : 0.f;  // NaN for an impossible token (-inf * 0), which counts as 0
}

__device__ __forceinline__ void find_entropy(const ChainParameters& given) {
  SHARED_MEMORY(BlockShared, shared);
  DeviceRule rule;
  if (!is_active(given, rule)) return;
  const Slice slice = slice_of(given);
  const Softmax softmax = row_softmax(slice, shared);
  double sum = 0.0;
  for (int id = slice.first + threadIdx.x; id < slice.end; id += kBlockThreads)
    sum += entropy_term(rule.effect, softmax, slice.scores[id]);
  sum = block_sum(sum, shared);
  if (threadIdx.x == 0) slice.all[blockIdx.x].entropy = sum;
}

// The filter on the block's row. Returns whether it can remove a token; the same for all blocks of the row.
__device__ __forceinline__ bool filter_of(
    const ChainParameters& given, const Slice& slice, Filter& filter, BlockShared& shared) {
  if (!is_active(given, filter.rule)) return false;
  const int effect = filter.rule.effect;
  filter.all = slice.vocabulary;
  filter.n = min(effect == S2S_TOP_H ? min(filter.rule.n, static_cast<int>(S2S_MOST_LIKELY)) : filter.rule.n, slice.vocabulary);
  if (!reads_softmax(effect)) return true;
  filter.softmax = row_softmax(slice, shared);
  if (!filter.softmax.is_proper() || (effect == S2S_TOP_P && filter.n == filter.all)) return false;
  filter.least = filter.rule.amount;
  if (effect == S2S_MIN_P) filter.least *= filter.softmax.of(filter.softmax.maximum);
  if (!reads_entropy(effect)) return true;
  double sum = 0.0;
  for (int l = threadIdx.x; l < slice.lists; l += kBlockThreads) sum += slice.all[l].entropy;
  filter.entropy = -static_cast<float>(block_sum(sum, shared));
  if (effect == S2S_ETA) filter.least = fminf(filter.least, sqrtf(filter.least) * expf(-filter.entropy));
  return true;
}

// Sums of up to 2048 weights (a slice's) of at most 2^62, in three parts of 21 bits, none of which overflows: on GPUs, shared
// memory adds 32 bits at once.
struct DigitShared {
  BlockShared block;
  uint32_t counts[S2S_DIGIT_BINS];
  uint32_t parts[3][S2S_DIGIT_BINS];
};
constexpr int kPartBits = 21;
constexpr int kBinsEach = S2S_DIGIT_BINS / kBlockThreads;

// Digit 0 has bits 21 to 31 of a number, digit 1 bits 10 to 20, digit 2 the others.
__device__ __forceinline__ int lowest_bit(int digit) { return digit == 0 ? 21 : digit == 1 ? 10 : 0; }
__device__ __forceinline__ int end_bit(int digit) { return digit == 0 ? 32 : lowest_bit(digit - 1); }

__device__ __forceinline__ void add(uint64_t* sum, uint64_t value) {
  if (value != 0) atomicAdd(reinterpret_cast<unsigned long long*>(sum), static_cast<unsigned long long>(value));
}

// Adds the slice's tokens to the row's bins, those whose higher digits are the threshold's.
__device__ __forceinline__ void count_digits(
    const Slice& slice, const Filter& filter, int digit, uint32_t threshold, DigitShared& shared) {
  for (int i = threadIdx.x; i < S2S_DIGIT_BINS; i += kBlockThreads)
    shared.counts[i] = shared.parts[0][i] = shared.parts[1][i] = shared.parts[2][i] = 0;
  __syncthreads();
  const int shift = lowest_bit(digit), above = end_bit(digit);
  const uint32_t mask = (1u << (above - shift)) - 1;
  for (int id = slice.first + threadIdx.x; id < slice.end; id += kBlockThreads) {
    const float score = slice.scores[id];
    const uint32_t order = filter.order(score);
    if (digit > 0 && order >> above != threshold >> above) continue;
    const uint32_t bin = order >> shift & mask;
    atomicAdd(&shared.counts[bin], 1u);
    if (!filter.has_weights()) continue;
    const uint64_t weight = filter.weight(score);
#pragma unroll
    for (int p = 0; p < 3; ++p)
      atomicAdd(&shared.parts[p][bin], static_cast<uint32_t>(weight >> (p * kPartBits)) & ((1u << kPartBits) - 1));
  }
  __syncthreads();
  for (int i = threadIdx.x; i < S2S_DIGIT_BINS; i += kBlockThreads) {
    uint64_t weight = 0;
    for (int p = 0; p < 3; ++p) weight += static_cast<uint64_t>(shared.parts[p][i]) << (p * kPartBits);
    add(&slice.row->counts[i], shared.counts[i]);
    add(&slice.row->weights[i], weight);
  }
}

// The id of the n-th token at the threshold; -1 for n = 0. By the last block, for the whole row.
__device__ __forceinline__ void find_last(
    const Slice& slice, const Filter& filter, uint32_t threshold, uint64_t n, uint64_t equals, BlockShared& shared) {
  if (n == 0 || n == equals) {  // nearly always: no ties, or none that matter
    if (threadIdx.x == 0) slice.row->last = n == 0 ? -1 : slice.vocabulary;
    return;
  }
  const Share share = share_of(slice.vocabulary);
  uint64_t mine = 0;
  for (int64_t id = share.first; id < share.end; ++id) mine += filter.order(slice.scores[id]) == threshold;
  uint64_t place = block_before(mine, shared);
  for (int64_t id = share.first; id < share.end; ++id)
    if (filter.order(slice.scores[id]) == threshold && ++place == n) slice.row->last = static_cast<int32_t>(id);
}

struct Chosen {
  uint32_t threshold;
  uint64_t first, equals;
};

// The threshold's next digit, from the bins of all blocks, which are emptied. By the last block.
__device__ __forceinline__ void choose_digit(
    const Slice& slice, const Filter& filter, int digit, uint32_t threshold, DigitShared& shared) {
  SHARED_MEMORY(Chosen, chosen);
  FilterRow& row = *slice.row;
  Below below{digit > 0 ? row.count : 0, digit > 0 ? row.weight : 0}, bins[kBinsEach], mine{0, 0};
#pragma unroll
  for (int i = 0; i < kBinsEach; ++i) {
    const int bin = threadIdx.x * kBinsEach + i;
    bins[i] = {row.counts[bin], row.weights[bin]};
    row.counts[bin] = row.weights[bin] = 0;
    mine = {mine.count + bins[i].count, mine.weight + bins[i].weight};
  }
  below.count += block_before(mine.count, shared.block);  // its barriers: all have read what one of them writes now
  below.weight += block_before(mine.weight, shared.block);
  const int shift = lowest_bit(digit);
  const uint32_t largest = (1u << (end_bit(digit) - shift)) - 1;
#pragma unroll
  for (int i = 0; i < kBinsEach; ++i) {
    const uint32_t bin = threadIdx.x * kBinsEach + i;
    const Below next{below.count + bins[i].count, below.weight + bins[i].weight};
    if (bin <= largest && filter.may(below) && (bin == largest || !filter.may(next))) {  // one bin of all
      row.threshold = threshold | bin << shift;
      row.count = below.count;
      row.weight = below.weight;
      if (digit == 2) {
        const uint64_t each = bins[i].count > 0 ? bins[i].weight / bins[i].count : 0;
        chosen = {row.threshold, filter.first_at(row.threshold, below, bins[i].count, each), bins[i].count};
      }
    }
    below = next;
  }
  if (digit < 2) return;
  __syncthreads();
  find_last(slice, filter, chosen.threshold, chosen.first, chosen.equals, shared.block);
}

__device__ __forceinline__ void find_digit(const ChainParameters& given) {
  SHARED_MEMORY(DigitShared, shared);
  const Slice slice = slice_of(given);
  Filter filter;
  if (!filter_of(given, slice, filter, shared.block)) return;
  const uint32_t threshold = given.digit > 0 ? slice.row->threshold : 0;
  count_digits(slice, filter, given.digit, threshold, shared);
  if (is_last_block(&slice.row->arrived)) choose_digit(slice, filter, given.digit, threshold, shared);
}

// The most likely tokens, as far as top-h looks at them, best first.
struct Likely {
  float scores[S2S_MOST_LIKELY];
  int ids[S2S_MOST_LIKELY];
};

__device__ __forceinline__ void sort_likely(const FilterRow& row, int n, Likely& likely) {
  const int i = threadIdx.x;
  if (i < n) {
    const uint32_t own = order_of(-row.likely[i]);
    int rank = 0;
    for (int j = 0; j < n; ++j) {
      const uint32_t other = order_of(-row.likely[j]);
      rank += other < own || (other == own && row.likely_ids[j] < row.likely_ids[i]);
    }
    likely.scores[rank] = row.likely[i];
    likely.ids[rank] = row.likely_ids[i];
  }
  __syncthreads();
}

// Puts the best of the most likely tokens back, as long as their terms add up to at most `share` of the entropy of them all;
// at least one. By the last block, when all others have gone.
__device__ __forceinline__ void restore_top_h(const Slice& slice, float share, BlockShared& shared) {
  SHARED_MEMORY(Likely, likely);
  const int i = threadIdx.x, n = slice.row->n_likely;
  sort_likely(*slice.row, n, likely);
  if (i == 0) slice.row->n_likely = 0;
  const bool is_one = i < n;
  const float value = is_one ? likely.scores[i] : 0.f;
  const float weight = is_one ? expf(value - likely.scores[0]) : 0.f;
  const float probability = weight / static_cast<float>(block_sum(weight, shared));
  const float bounded = fmaxf(logf(fmaxf(probability, kTiny)), -kLargest);
  const float entropy = static_cast<float>(block_sum(is_one ? -product(probability, bounded) : 0.f, shared));
  const float term = is_one ? product(-probability, logf(probability)) : 0.f;
  const float so_far = static_cast<float>(block_before(static_cast<double>(term), shared) + term);
  if (is_one && (i == 0 || so_far <= product(entropy, share))) slice.scores[likely.ids[i]] = value;
}

__device__ __forceinline__ void remove_tokens(const ChainParameters& given) {
  SHARED_MEMORY(BlockShared, shared);
  const Slice slice = slice_of(given);
  Filter filter;
  if (!filter_of(given, slice, filter, shared)) return;
  FilterRow& row = *slice.row;
  const uint32_t threshold = row.threshold;
  const int effect = filter.rule.effect, last = row.last;
  for (int id = slice.first + threadIdx.x; id < slice.end; id += kBlockThreads) {
    const float score = slice.scores[id];
    const uint32_t order = filter.order(score);
    const bool is_first = order < threshold || (order == threshold && id <= last);
    if (effect == S2S_TOP_H && is_first) {
      const int slot = atomicAdd(&row.n_likely, 1);
      row.likely[slot] = score;
      row.likely_ids[slot] = id;
    }
    const bool goes = effect == S2S_TOP_H || (effect == S2S_TOP_K ? !is_first && score == score : is_first == filter.removes_first());
    if (goes) slice.scores[id] = -INFINITY;
  }
  if (effect == S2S_TOP_H && is_last_block(&row.arrived)) restore_top_h(slice, filter.rule.amount, shared);
}
