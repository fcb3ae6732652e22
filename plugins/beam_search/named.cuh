// Which tokens a rule names in a row, and what becomes of a score: the arithmetic that the search on a GPU (rules.cuh) and
// the search on a CPU (plugins/search) share. decoding/rules is the definition.
//
// Whoever includes this has defined `product`, a product that no compiler contracts with an addition.
#pragma once

#include <cmath>
#include <cstdint>

#include "loop_parameters.h"

// What rules read of a row, and the scores that they change.
struct RuleView {
  float* scores;           // [V]
  const int32_t* history;  // [H]
  const int32_t* source;   // [S]
  const int32_t* ids;
  const float* amounts;
  int vocabulary, length, source_width;
};

__device__ __forceinline__ bool same_tokens(const int32_t* a, const int32_t* b, int n) {
  for (int i = 0; i < n; ++i)
    if (a[i] != b[i]) return false;
  return true;
}

__device__ __forceinline__ int mentions(const DeviceRule& rule, const RuleView& view) {
  if (rule.which == S2S_HISTORY) return view.length;
  if (rule.which == S2S_SOURCE) return view.source_width;
  if (rule.which == S2S_NGRAM) return max(view.length - rule.n + 1, 0);
  if (rule.which == S2S_SOURCE_NGRAM) return view.length < rule.n - 1 ? 0 : max(view.source_width - rule.n + 1, 0);
  return rule.count;
}

// The token that the rule's i-th mention names, or -1.
__device__ __forceinline__ int32_t mentioned(const DeviceRule& rule, const RuleView& view, int i) {
  int32_t token;
  if (rule.which == S2S_LISTED) {
    token = view.ids[rule.first_id + i];
  } else if (rule.which == S2S_HISTORY) {
    token = view.history[i];
  } else if (rule.which == S2S_SOURCE) {
    token = view.source[i];
  } else if (rule.which == S2S_SEQUENCES) {
    const int32_t* record = view.ids + rule.first_id + static_cast<int64_t>(i) * (rule.n + 1);
    const int before = record[0] - 1;
    const bool ends_text = before <= view.length && same_tokens(record + 1, view.history + view.length - before, before);
    token = ends_text ? record[1 + before] : -1;
  } else {
    const int32_t* window = (rule.which == S2S_NGRAM ? view.history : view.source) + i;
    const int32_t* suffix = view.history + view.length - (rule.n - 1);
    token = same_tokens(window, suffix, rule.n - 1) ? window[rule.n - 1] : -1;
  }
  return token < view.vocabulary ? token : -1;
}

__device__ __forceinline__ bool first_mention(const DeviceRule& rule, const RuleView& view, int i, int32_t token) {
  for (int j = 0; j < i; ++j)
    if (mentioned(rule, view, j) == token) return false;
  return true;
}

__device__ __forceinline__ float scaled(float before, float amount) {
  return before < 0.f ? before * amount : before / amount;
}

__device__ __forceinline__ float grown(float before, float amount) {
  const float growth = product(fabsf(before), amount);
  return before - before == 0.f ? before + growth : before;  // infinities and NaN stay as they are
}
