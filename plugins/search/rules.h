// The decoding rules on the few tokens that they name. decoding/chain.py is the definition.
//
// A token that no rule names keeps its score, so a step asks for the best tokens of each row and for the tokens that the
// rules name (it probes them). Letters: R rows, M candidates of a row, Q probed tokens of a row.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <vector>

#ifndef __device__
#define __device__
#define __forceinline__ inline
#endif
using std::max;
using std::min;
inline float product(float a, float b) { return a * b; }
#include "../beam_search/named.cuh"
#include "../beam_search/times.cuh"
#include "whole.h"

namespace s2s {

constexpr float MINUS_INFINITY = -INFINITY;
constexpr double LEAST_SUM = 0.05;  // of decoding/chain.py: with less, sums of the few tokens are imprecise
constexpr double MOST_EXPONENT = 700.0;  // of decoding/numerics.py: above, an exponential counts as infinite

// libm's exponential, as Python's math.exp: the definition and this search so have the same last bits.
inline double exponential(double x) { return x > MOST_EXPONENT ? INFINITY : std::exp(x); }

// The tokens that the active rules name in one row: each once, ascending; and where each mention lies among them.
struct Named {
  std::vector<int32_t> ids;
  std::vector<int32_t> places;  // of every mention of every active rule, in order; -1: it names no token
  void clear() {
    ids.clear();
    places.clear();
  }
  bool holds(int32_t id) const { return std::binary_search(ids.begin(), ids.end(), id); }
};

// Whisper's order of times among words, of the scores [V] of what follows a text. decoding/rules/timestamps.py is the
// definition; what may come next is said once for this search and that on a GPU.
inline void order_times(const OrderOfTimes& rule, const RuleView& view, float* scores) {
  const int V = view.vocabulary, begin = rule.begin, n = view.length - rule.prompt;
  const int32_t* text = view.history + rule.prompt;
  int latest = n - 1;
  while (latest >= 0 && text[latest] < begin) latest--;
  const PossibleTokens may = possible_tokens(rule, text, n, latest, V);
  std::fill(scores, scores + may.first_word, MINUS_INFINITY);
  std::fill(scores + may.end_word, scores + may.first_time, MINUS_INFINITY);
  std::fill(scores + may.end_time, scores + V, MINUS_INFINITY);
  if (may.first_word >= may.end_word || may.first_time >= may.end_time) return;
  const float best_time = largest(scores + begin, V - begin);
  const double sum = std::isfinite(best_time) ? sum_of_exponentials(scores + begin, V - begin, best_time) : 0.0;
  if (takes_time(sum, best_time, largest(scores, begin))) std::fill(scores, scores + begin, MINUS_INFINITY);
}

struct Rules {
  std::vector<DeviceRule> all;
  std::vector<int32_t> ids;
  std::vector<float> amounts;
  bool normalises = false;
  std::vector<int> active;   // of the length that `begin` was told
  bool only = false;         // whether one of them lets its own tokens pass only
  bool same_everywhere = true;  // whether they name the same tokens in every row

  // Throws where a rule would read what it was not given. longest: most tokens of a text, prompt included; n_prompt: of
  // them, the prompt's; reads_all: whether the rules are given whole distributions, and the texts.
  void check(int longest, int n_prompt, int vocabulary, bool reads_all) const {
    for (const DeviceRule& rule : all) {
      const bool is_ngram = rule.which == S2S_NGRAM || rule.which == S2S_SOURCE_NGRAM;
      const bool is_listed = rule.which == S2S_LISTED, is_sequences = rule.which == S2S_SEQUENCES;
      const int64_t n_read = is_listed ? rule.count : is_sequences ? int64_t(rule.count) * (int64_t(rule.n) + 1) : 0;
      bool fits = rule.which >= S2S_LISTED && rule.which <= S2S_SEQUENCES && rule.count >= 0 && rule.n >= (is_ngram ? 1 : 0) &&
                  rule.first_id >= 0 && rule.first_amount >= 0 && rule.first_id + n_read <= int64_t(ids.size());
      for (int i = 0; fits && is_sequences && i < rule.count; i++) {
        const int32_t n_tokens = ids[rule.first_id + size_t(i) * (rule.n + 1)];
        fits = n_tokens >= 1 && n_tokens <= rule.n;
      }
      int64_t n_amounts = 0;
      if (rule.effect == S2S_ADD) n_amounts = rule.which == S2S_HISTORY ? longest : rule.count;
      if (rule.effect == S2S_GROW)
        n_amounts = std::max<int64_t>(std::min(rule.last_length, longest) - int64_t(rule.first_length) + 1, 0);
      if (!fits || rule.first_amount + n_amounts > int64_t(amounts.size()))
        throw std::invalid_argument("a decoding rule names ids or amounts that were not given");
      if (rule.effect != S2S_TIMES) continue;
      const int32_t* given = ids.data() + rule.first_id;
      if (!is_listed || rule.count != 4 || given[0] <= 0 || given[0] >= vocabulary || given[2] != n_prompt || !reads_all)
        throw std::invalid_argument("the rule of times has other tokens than the vocabulary, or is not given what it reads");
    }
  }

  void begin(int length) {
    std::vector<int> now;
    for (size_t i = 0; i < all.size(); i++)
      if ((all[i].effect <= S2S_ONLY || all[i].effect == S2S_TIMES) && length >= all[i].first_length && length <= all[i].last_length)
        now.push_back(int(i));
    changed = now != active || first;
    first = false;
    active.swap(now);
    only = false;
    same_everywhere = true;
    for (int i : active) {
      only |= all[i].effect == S2S_ONLY;
      same_everywhere &= all[i].which == S2S_LISTED || (all[i].which == S2S_SEQUENCES && all[i].n == 1);
    }
  }
  // Whether the last `begin` found other rules active than the one before.
  bool changed = true;

  void find(const RuleView& view, Named& named) const {
    named.clear();
    for (int i : active) mention(all[i], view, named);
    index(named);
  }

  // Applies the active rules to the scores [V] of all tokens of a row, in place, one rule after the other.
  void apply_to_all(const RuleView& view, float* scores) const {
    for (int i : active) {
      const DeviceRule& rule = all[i];
      if (rule.effect == S2S_TIMES) {
        order_times(::order_of_times(ids.data() + rule.first_id), view, scores);
        continue;
      }
      const int n = mentions(rule, view);
      if (rule.effect == S2S_BAN) {
        for (int j = 0; j < n; j++)
          if (const int32_t token = token_of(rule, view, j); token >= 0) scores[token] = MINUS_INFINITY;
        continue;
      }
      of_one.clear();
      mention(rule, view, of_one);
      index(of_one);
      few.resize(of_one.ids.size());
      for (size_t q = 0; q < few.size(); q++) few[q] = scores[of_one.ids[q]];
      edit(rule, view, of_one.places.data(), n, few.data(), int(few.size()));
      if (rule.effect == S2S_ONLY) std::fill(scores, scores + view.vocabulary, MINUS_INFINITY);
      for (size_t q = 0; q < few.size(); q++) scores[of_one.ids[q]] = few[q];
    }
  }

  // Applies the active rules to the scores of a row's named tokens, in place.
  void apply(const RuleView& view, const Named& named, float* scores) const {
    const int n_named = int(named.ids.size());
    const int32_t* places = named.places.data();
    for (int i : active) {
      const DeviceRule& rule = all[i];
      const int n = mentions(rule, view);
      edit(rule, view, places, n, scores, n_named);
      places += n;
    }
  }

 private:
  bool first = true;
  mutable std::vector<float> before, few;
  mutable Named of_one;

  // Adds the tokens of a rule's mentions to `places`.
  void mention(const DeviceRule& rule, const RuleView& view, Named& named) const {
    for (int j = 0, n = mentions(rule, view); j < n; j++) named.places.push_back(token_of(rule, view, j));
  }

  // Makes ids of the tokens in `places`, and places of them.
  static void index(Named& named) {
    for (int32_t token : named.places)
      if (token >= 0) named.ids.push_back(token);
    std::sort(named.ids.begin(), named.ids.end());
    named.ids.erase(std::unique(named.ids.begin(), named.ids.end()), named.ids.end());
    for (int32_t& token : named.places)
      if (token >= 0)
        token = int32_t(std::lower_bound(named.ids.begin(), named.ids.end(), token) - named.ids.begin());
  }

  // What `mentioned` says, less what adds nothing: frequency_penalty lists the prompt, with the amount 0.
  int32_t token_of(const DeviceRule& rule, const RuleView& view, int j) const {
    if (rule.effect == S2S_ADD && rule.which == S2S_HISTORY && amounts[rule.first_amount + j] == 0.f) return -1;
    return mentioned(rule, view, j);
  }

  void edit(const DeviceRule& rule, const RuleView& view, const int32_t* places, int n, float* scores,
            int n_named) const {
    if (rule.effect == S2S_BAN || rule.effect == S2S_ONLY) {
      if (rule.effect == S2S_ONLY) std::fill(scores, scores + n_named, MINUS_INFINITY);
      for (int j = 0; j < n; j++)
        if (places[j] >= 0) scores[places[j]] = rule.effect == S2S_BAN ? MINUS_INFINITY : 0.f;
      return;
    }
    if (rule.effect == S2S_ADD) {
      before.assign(n_named, 0.f);  // the sum of each token's amounts
      for (int j = 0; j < n; j++)
        if (places[j] >= 0) before[places[j]] += amounts[rule.first_amount + j];
      for (int q = 0; q < n_named; q++) scores[q] += before[q];
      return;
    }
    before.assign(scores, scores + n_named);  // a token that is named several times is changed once
    for (int j = 0; j < n; j++) {
      if (places[j] < 0) continue;
      const float score = before[places[j]];
      scores[places[j]] = rule.effect == S2S_SCALE
                              ? scaled(score, rule.amount)
                              : grown(score, amounts[rule.first_amount + view.length - rule.first_length]);
    }
  }
};

// The logarithm of the sum of all probabilities of a row after the rules, plus the shift, by which scores are reduced to be
// log-probabilities again; NaN where it is imprecise. had, have: log-probabilities of the named tokens and their scores
// with the shift.
inline float log_sum(const float* had, const float* have, int n, bool only, double shift) {
  double before = 0.0, after = 0.0;
  for (int q = 0; q < n; q++) before += exponential(double(had[q]));
  for (int q = 0; q < n; q++) after += exponential(double(have[q]) - shift);
  const double total = (only ? 0.0 : 1.0 - before) + after;
  if (!(total >= LEAST_SUM) || std::isinf(total)) return NAN;
  return float(std::log(total) + shift);
}

}  // namespace s2s
