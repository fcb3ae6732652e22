// Log-probabilities of all tokens, and the decoding rules on them. decoding/rules is the definition.
//
// One block per row applies rules in order and edits the row in place, as the definition edits a whole distribution: in the
// same order, with the same fp32 operations. Filters are launches of their own (filters.cuh), as is renormalising
// (renormalize.cuh). The normaliser is computed before, from all tokens, and does not change.
#pragma once

#include "filters.cuh"
#include "named.cuh"
#include "times.cuh"
#include "top.cuh"
#include "weights.cuh"

// Log-probabilities take two launches: this one finds the maximum and the sum of each slice, `write_scores` the values.
template <typename T>
__device__ __forceinline__ void row_statistics(const NormalizeParameters& given) {
  SHARED_MEMORY(BlockShared, shared);
  if (*given.stop) return;
  const int list = blockIdx.x, row = blockIdx.y;
  const int slice = (given.vocabulary + given.lists - 1) / given.lists;
  const int first = min(list * slice, given.vocabulary), end = min(first + slice, given.vocabulary);
  const T* logits = static_cast<const T*>(given.logits) + static_cast<int64_t>(row) * given.vocabulary;
  float maximum = -INFINITY;
  for (int id = first + threadIdx.x; id < end; id += kBlockThreads) maximum = fmaxf(maximum, to_float(logits[id]));
  maximum = block_maximum(maximum, shared);
  double sum = 0.0;
  for (int id = first + threadIdx.x; id < end; id += kBlockThreads) {
    const float value = to_float(logits[id]);
    sum += value == maximum ? 1.f : expf(value - maximum);
  }
  sum = block_sum(sum, shared);
  if (threadIdx.x == 0) {
    given.list_maximum[static_cast<int64_t>(row) * given.lists + list] = maximum;
    given.list_sum[static_cast<int64_t>(row) * given.lists + list] = static_cast<float>(sum);
  }
}

template <typename T>
__device__ __forceinline__ void write_scores(const NormalizeParameters& given) {
  SHARED_MEMORY(Normalizer, shared);
  if (*given.stop) return;
  const int list = blockIdx.x, row = blockIdx.y;
  const int slice = (given.vocabulary + given.lists - 1) / given.lists;
  const int first = min(list * slice, given.vocabulary), end = min(first + slice, given.vocabulary);
  if (threadIdx.x < 32) {  // one warp for the whole block: it takes an exponential for each slice of the row
    const int64_t lists = static_cast<int64_t>(row) * given.lists;
    const Normalizer found = normalizer_of(given.list_maximum + lists, given.list_sum + lists, given.lists);
    if (threadIdx.x == 0) shared = found;
  }
  __syncthreads();
  const float maximum = shared.maximum, log_sum = shared.log_sum;
  const int64_t row_start = static_cast<int64_t>(row) * given.vocabulary;
  const T* logits = static_cast<const T*>(given.logits) + row_start;
  for (int id = first + threadIdx.x; id < end; id += kBlockThreads) {
    const float value = to_float(logits[id]);
    given.scores[row_start + id] = (value - maximum) - log_sum;
    if (given.choice != nullptr) given.choice[row_start + id] = value;
  }
}

// Applies a rule that names tokens. A token that is named several times is changed once, by one thread.
__device__ __forceinline__ void edit(const DeviceRule& rule, const RuleView& view) {
  if (rule.effect == S2S_ONLY) {
    for (int id = threadIdx.x; id < view.vocabulary; id += kBlockThreads) view.scores[id] = -INFINITY;
    __syncthreads();
  }
  const int n = mentions(rule, view);
  for (int i = threadIdx.x; i < n; i += kBlockThreads) {
    const int32_t token = mentioned(rule, view, i);
    if (token < 0) continue;
    if (rule.effect == S2S_BAN) {
      view.scores[token] = -INFINITY;
    } else if (rule.effect == S2S_ONLY) {
      view.scores[token] = 0.f;
    } else if (first_mention(rule, view, i, token)) {
      const float before = view.scores[token];
      float after;
      if (rule.effect == S2S_SCALE) {
        after = scaled(before, rule.amount);
      } else if (rule.effect == S2S_GROW) {
        after = grown(before, view.amounts[rule.first_amount + view.length - rule.first_length]);
      } else {
        float sum = 0.f;
        for (int j = i; j < n; ++j)
          if (mentioned(rule, view, j) == token) sum += view.amounts[rule.first_amount + j];
        after = before + sum;
      }
      view.scores[token] = after;
    }
  }
}

template <class Change>
__device__ __forceinline__ void change_all(const RuleView& view, Change change) {
  for (int id = threadIdx.x; id < view.vocabulary; id += kBlockThreads) view.scores[id] = change(view.scores[id]);
}

// Applies a rule that changes every score by the same formula.
__device__ __forceinline__ void rescale(const DeviceRule& rule, const RuleView& view) {
  if (rule.effect == S2S_TEMPERATURE) {
    const float amount = rule.amount;
    change_all(view, [amount](float value) { return value / amount; });
  } else {
    change_all(view, [](float value) { return value != value ? 0.f : fminf(fmaxf(value, -kLargest), kLargest); });
  }
}

__device__ __forceinline__ void ban_range(const RuleView& view, int first, int end) {
  for (int id = first + threadIdx.x; id < end; id += kBlockThreads) view.scores[id] = -INFINITY;
}

__device__ __forceinline__ float best_of_range(const RuleView& view, int first, int end, BlockShared& shared) {
  float best = -INFINITY;
#pragma unroll 8
  for (int id = first + threadIdx.x; id < end; id += kBlockThreads) best = fmaxf(best, view.scores[id]);
  return block_maximum(best, shared);
}

// Applies the rule of times. What may come next is known from the text; only where both words and times may, they are read.
__device__ __forceinline__ void order_times(const DeviceRule& rule, const RuleView& view, BlockShared& shared) {
  const OrderOfTimes times = order_of_times(view.ids + rule.first_id);
  const int32_t* text = view.history + times.prompt;
  const int n = view.length - times.prompt;
  float place = -1.f;  // exact: a text is shorter than 2^24 tokens
  for (int i = threadIdx.x; i < n; i += kBlockThreads)
    if (text[i] >= times.begin) place = static_cast<float>(i);
  const int latest = static_cast<int>(block_maximum(place, shared));
  const PossibleTokens may = possible_tokens(times, text, n, latest, view.vocabulary);
  ban_range(view, 0, may.first_word);
  ban_range(view, may.end_word, may.first_time);
  ban_range(view, may.end_time, view.vocabulary);
  if (may.first_word >= may.end_word || may.first_time >= may.end_time) return;
  const float best_word = best_of_range(view, may.first_word, may.end_word, shared);
  const float best_time = best_of_range(view, may.first_time, may.end_time, shared), shift = shift_of_times(best_time);
  const double sum = sum_of_exponentials(weight_of_slice(view.scores, may.first_time, may.end_time, shift, shared));
  // One thread takes the logarithm, as double precision is slow on small GPUs.
  if (__syncthreads_or(threadIdx.x == 0 && takes_time(sum, best_time, best_word)))
    ban_range(view, may.first_word, may.end_word);
}

// Applies the rules of this launch, none of which has launches of its own.
__device__ __forceinline__ void apply_rules(const ChainParameters& chain) {
  SHARED_MEMORY(BlockShared, shared);
  const RulesParameters& given = chain.rules;
  if (*given.stop) return;
  const int64_t row = blockIdx.x;
  RuleView view;
  view.scores = (blockIdx.y == 0 ? given.scores : given.choice) + row * given.vocabulary;
  view.history = given.history + row * given.history_width;
  view.source = given.sources + row / given.beams * given.source_width;
  view.ids = given.ids;
  view.amounts = given.amounts;
  view.vocabulary = given.vocabulary;
  view.length = static_cast<int>(*given.position) + 1;
  view.source_width = given.source_width;
  const int end = min(chain.end, *given.n_rules);
  for (int i = chain.first; i < end; ++i) {
    const DeviceRule rule = given.rules[i];
    if (view.length < rule.first_length || view.length > rule.last_length) continue;
    if (rule.effect <= S2S_ONLY) edit(rule, view);
    else if (rule.effect == S2S_TIMES) order_times(rule, view, shared);
    else rescale(rule, view);
    __syncthreads();
  }
}
