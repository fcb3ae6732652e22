// The order of times among the words of a speech model: which tokens may come next, and whether a time has to. The
// arithmetic is for the search on a GPU (rules.cuh) and the search on a CPU (plugins/search) alike.
// decoding/rules/timestamps.py is the definition.
#pragma once

#include <cmath>
#include <cstdint>

// What the ids of a rule with the effect S2S_TIMES say, in this order.
struct OrderOfTimes {
  int begin;        // the first time; the token before it is <|notimestamps|>
  int end_of_text;
  int prompt;       // tokens of the decoder prompt, which the rule does not read
  int most_first;   // steps from `begin` to the latest first time, or -1
};

__device__ __forceinline__ OrderOfTimes order_of_times(const int32_t* ids) { return {ids[0], ids[1], ids[2], ids[3]}; }

// The tokens that may come next: words from `first_word` and times from `first_time` on, up to these ends.
struct PossibleTokens {
  int first_word, end_word, first_time, end_time;
};

// text: the n tokens behind the prompt. latest: the place of the last time among them, or -1.
__device__ __forceinline__ PossibleTokens possible_tokens(
    const OrderOfTimes& rule, const int32_t* text, int n, int latest, int vocabulary) {
  const int begin = rule.begin, end_word = begin > 0 ? begin - 1 : 0;
  if (n == 0) {
    const bool is_bounded = rule.most_first >= 0 && rule.most_first < vocabulary - begin;
    return {end_word, end_word, begin, is_bounded ? begin + rule.most_first + 1 : vocabulary};
  }
  const bool is_last = text[n - 1] >= begin, is_before = n < 2 || text[n - 2] >= begin;
  if (is_last && is_before) return {0, end_word, vocabulary, vocabulary};  // a pair is complete: text follows
  const int least = latest < 0 ? begin : text[latest];
  if (is_last) {  // its second time follows, or the end
    const int end = rule.end_of_text;
    return {end < end_word ? end : end_word, end_word, min(max(end, least), vocabulary), vocabulary};
  }
  return {0, end_word, latest < 0 ? begin : least + 1, vocabulary};
}

// What is subtracted from the scores of times before their exponentials are added up.
__device__ __forceinline__ float shift_of_times(float best_time) { return best_time - best_time == 0.f ? best_time : 0.f; }

// Whether all times together are likelier than the best word. sum: of exp(score - shift) over the times. The normaliser of
// both sides is the same, so it is left out.
__device__ __forceinline__ bool takes_time(double sum, float best_time, float best_word) {
  const bool is_finite = best_time - best_time == 0.f;
  return (is_finite ? best_time + log(sum) : static_cast<double>(best_time)) > best_word;
}
