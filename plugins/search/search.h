// The search of one batch: which tokens a step wants to know of, and what it makes of them. decoding/search.py and
// decoding/rows.py are the definition, whose results these are bit for bit: single fp32 additions, products and divisions in
// the same order, and of equal candidates the lower beam's, then the lower token.
//
// Letters: B sources in the batch, K rows of each, R = B*K, M candidates, Q probed tokens, V vocabulary, P prompt length,
// T tokens generated so far, C candidates that a step of beam search chooses.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "rules.h"

extern "C" {
// What a search is made from; all is copied. Mirrored by runtime/native_graphs/library.py.
typedef struct S2SSettings {
  const int64_t* prompt;       /* [P] */
  const int64_t* end_ids;      /* [n_end] */
  const float* length_divisor; /* [max_length - P + 1]: n ** length_penalty for n tokens */
  const DeviceRule* rules;     /* in order; of effects that change every score only S2S_TIMES, which needs reads_whole and
                                  keeps_history, and S2S_RENORMALIZE, as the last */
  const int32_t* ids;
  const float* amounts;
  const int32_t* sources; /* [B, source_width], padded with -1 */
  int32_t n_sources, n_rows, vocabulary, prompt_length, n_end, max_length, n_rules, n_ids, n_amounts, source_width;
  int32_t is_beam_search;  /* 0: greedy, where every row is a source of its own */
  int32_t early_stopping;  /* 1 for True */
  int32_t bound_at_limit;  /* 1 for "never" with a length penalty above 0 */
  int32_t edits_logits;    /* greedy: the choice is made on logits, and some rule treats them differently */
  int32_t keeps_history;   /* the texts are read by rules or by `stable` */
  int32_t leave_early;     /* whether `LEAVE` is returned */
  int32_t fill;            /* what finished rows are fed */
  int32_t reads_whole;     /* whether a step tells the whole distribution, and all rules are applied to it */
} S2SSettings;
}

namespace s2s {

enum Status {
  ENDED = 0,
  GOES_ON = 1,
  LEAVE = 2,         // goes on; some sources are settled, and enough to leave the batch
  NEEDS_ROOM = 3,    // the caches are full
  PAUSED = 4,        // as many steps were made as were asked for
  IMPRECISE = -1,    // renormalising takes the whole distribution, which this search does not read
  NO_POSITION = -2,  // the decoder has no position for another token
  FAILED = -3,       // the step failed: see the message
  TOO_MANY = -4,     // more candidates than a step can be asked for, which takes the whole distribution too
};

constexpr float PUSHED_DOWN = -1e9f;
constexpr double LEAVE_AT = 0.25;        // of decoding/steps.py
constexpr int MOST_CANDIDATES = 512;     // of decoding/chain.py

struct Query {
  int n_candidates = 1, n_probes = 0;
  std::vector<int64_t> probe_ids;  // [R, Q], filled up with 0
  bool whole = false;              // whether the whole distribution is wanted
  int vocabulary = 0;              // V, where it is
  bool changed = true;             // whether it differs from the query before
  bool may_leave = false;          // whether the step may leave the normalisers to be computed later
};

// What a step found: arrays as of decoding/state.py's StepResult. M may be less than was asked for.
struct Found {
  const int64_t* candidate_ids;
  const float* candidate_log_probs;
  const float* log_normalizer;
  const float* probe_log_probs;
  int n_candidates, n_probes;
  float* log_probs = nullptr;  // [R, V] of a query for the whole distribution; the search changes it
  // Whether these are logits, and log_normalizer has log(sum of e**(logit - the row's best)), or LEFT_OUT.
  bool is_left = false;
};

constexpr float LEFT_OUT = INFINITY;  // of plugins/cpu: a normaliser that is yet to be computed

struct Offer {
  float value;      // the sum that it would give; greedy: the score by which it is chosen
  float log_prob;
  int32_t row, token;
};

// The best outputs of a source so far, best first.
struct Place {
  float score = PUSHED_DOWN;
  bool is_finished = false;
  int32_t step = -1, parent = 0, token = 0;
  float log_prob = 0.f;
};

class Search {
 public:
  explicit Search(const S2SSettings& s)
      : K(s.n_rows), V(s.vocabulary), prompt(s.prompt, s.prompt + s.prompt_length), is_beam_search(s.is_beam_search),
        B(s.n_sources), n_original(s.n_sources), length(s.prompt_length), given(s),
        end_ids(s.end_ids, s.end_ids + s.n_end),
        divisor(s.length_divisor, s.length_divisor + s.max_length - s.prompt_length + 1),
        sources(s.sources, s.sources + size_t(s.n_sources) * s.source_width) {
    rules.all.assign(s.rules, s.rules + s.n_rules);
    rules.ids.assign(s.ids, s.ids + s.n_ids);
    rules.amounts.assign(s.amounts, s.amounts + s.n_amounts);
    rules.check(s.max_length, s.prompt_length, V, s.reads_whole && s.keeps_history);
    rules.normalises = s.n_rules && rules.all.back().effect == S2S_RENORMALIZE;
    n_chosen = is_beam_search ? max(2, 1 + s.n_end) * K : 1;
    present.resize(B);
    for (int b = 0; b < B; b++) present[b] = b;
    tokens.assign(size_t(B) * K, prompt.back());
    parents.resize(size_t(B) * K);
    for (size_t r = 0; r < parents.size(); r++) parents[r] = int64_t(r % K);
    score.assign(size_t(B) * K, PUSHED_DOWN);
    for (int b = 0; b < B; b++) score[size_t(b) * K] = 0.f;
    pool.assign(size_t(B) * K, Place());
    is_open.assign(B, 1);
    is_finished.assign(size_t(B) * K, 0);
    n_generated.assign(size_t(B) * K, 0);
    if (s.keeps_history) {
      history.assign(size_t(B) * K * s.max_length, 0);
      for (int r = 0; r < B * K; r++)
        for (int t = 0; t < length; t++) text(r)[t] = int32_t(prompt[t]);
    }
  }

  const int K, V;
  const std::vector<int64_t> prompt;
  const bool is_beam_search;
  int B;
  std::vector<int32_t> present;          // [B]: which of the original sources are still in the batch
  std::vector<int64_t> tokens, parents;  // [B, K]: what the next step feeds
  std::vector<int32_t> settled;          // after LEAVE and ENDED: sources of the batch whose outputs are final
  Query query;
  bool may_leave = false;       // whether the steps to come may leave their normalisers out
  std::vector<int32_t> left;    // after `advance`: rows of the batch whose normalisers are needed, which `settle` takes
  double leave_at = LEAVE_AT;  // the share of the batch that has to be settled before it leaves

  // What the next step has to find out, into `query`; false where that is too much (see TOO_MANY).
  bool ask() {
    if (given.reads_whole) {
      rules.begin(length);
      query.changed = !query.whole;
      query.whole = true;
      query.vocabulary = V;
      return true;
    }
    const int was = query.n_probes, was_candidates = query.n_candidates;
    rules.begin(length);
    const bool changes = !rules.active.empty() && (rules.changed || !rules.same_everywhere);
    const int n_texts = rules.same_everywhere ? 1 : B * K;
    if (changes || rules.changed || n_named_rows != B * K) {
      named.resize(n_texts);
      query.n_probes = 0;
      for (int r = 0; r < n_texts; r++) {
        rules.find(view(r), named[r]);
        query.n_probes = max(query.n_probes, int(named[r].ids.size()));
      }
      query.probe_ids.assign(size_t(B) * K * query.n_probes, 0);
      for (int r = 0; r < B * K; r++) {
        const std::vector<int32_t>& ids = named_of(r).ids;
        std::copy(ids.begin(), ids.end(), query.probe_ids.begin() + size_t(r) * query.n_probes);
      }
      query.changed = true;
    } else {
      query.changed = false;
    }
    n_named_rows = B * K;
    query.may_leave = may_leave && !is_beam_search && !given.edits_logits && !rules.only;
    query.n_candidates = std::min(n_chosen + query.n_probes + query.may_leave, V);
    query.changed |= was != query.n_probes || was_candidates != query.n_candidates;
    return query.n_candidates <= MOST_CANDIDATES;
  }

  // Whether the tokens are chosen by logits as they are by log-probabilities: rounding makes these equal where two logits are
  // near, and the lower token is taken then. For a step that left its normalisers out.
  bool decides(const Found& found) {
    static const Named nothing;
    const size_t M = size_t(found.n_candidates);
    for (int r = 0; r < B * K; r++) {
      if (is_finished[r]) continue;
      const Named& of_row = rules.active.empty() ? nothing : named_of(r);
      probed.assign(of_row.ids.size(), 0.f);
      if (!probed.empty()) rules.apply(view(r), of_row, probed.data());
      for (float value : probed)
        if (value != MINUS_INFINITY) return false;  // a rule that does more than to ban
      const float* logits = found.candidate_log_probs + size_t(r) * M;
      float best[2];
      int n = 0;
      for (size_t m = 0; m < M && n < 2; m++)
        if (!of_row.holds(int32_t(found.candidate_ids[size_t(r) * M + m]))) best[n++] = logits[m];
      if (n < 2 || !(best[0] - best[1] > 1e-5f * (std::fabs(logits[0] - best[0]) + 100.f))) return false;
    }
    return true;
  }

  // Gives what was left out: log(sum of e**(logit - the best)) of the rows that `left` named, in order, since the last time.
  // Returns false where sums are imprecise.
  bool settle(const float* rests) {
    for (const Left& one : unsettled)
      if (!settle(one, *rests++)) return false;
    unsettled.clear();
    return true;
  }
  size_t n_unsettled() const { return unsettled.size(); }

  // One more token, from what the step found.
  Status advance(const Found& found) {
    left.clear();
    if (!read(found)) return IMPRECISE;
    const bool goes_on = is_beam_search ? advance_beams() : advance_rows();
    if (found.is_left && !note_left(found)) return IMPRECISE;
    return after(goes_on);
  }

  // Keep only these sources (ascending places in the batch).
  void leave(const int32_t* staying, int n) {
    for (int i = 0; i < n; i++) {
      const int b = staying[i];
      present[i] = present[b];
      is_open[i] = is_open[b];
      move(tokens, i, b, K);
      move(parents, i, b, K);
      move(score, i, b, K);
      move(pool, i, b, K);
      move(is_finished, i, b, K);
      move(n_generated, i, b, K);
      if (!history.empty()) move(history, i, b, size_t(K) * given.max_length);
      move(sources, i, b, given.source_width);
    }
    B = n;
    present.resize(n);
    is_open.resize(n);
    for (auto* values : {&tokens, &parents}) values->resize(size_t(n) * K);
  }

  // The output at a place of a source in the batch: token ids without the prompt, their log-probabilities, and the rows
  // from which they were predicted, n of each. Returns n; -1 for an empty place. of_score: beam search's.
  int output(int b, int place, int64_t* ids, float* log_probs, int32_t* rows, float* of_score) const {
    int n = T, row = place;
    const Place* found = nullptr;
    if (is_beam_search) {
      found = &pool[size_t(b) * K + place];
      *of_score = found->score;
      if (found->step < 0) return -1;
      n = found->step;
      row = found->parent;
    } else {
      n = n_generated[size_t(b) * K + place];
    }
    int at = n;
    if (found) {
      ids[n] = found->token;
      log_probs[n] = found->log_prob;
      rows[n] = row;
      at = n - 1;
    } else {
      at = n - 1;
    }
    for (int t = at; t >= 0; t--) {
      const size_t i = (size_t(t) * n_original + present[b]) * K + row;
      ids[t] = all_tokens[i];
      log_probs[t] = all_scores[i];
      row = all_parents[i];
      rows[t] = row;
    }
    return found ? n + 1 : n;
  }

  // The tokens, with the prompt, of a source's best output that can't change any more. Needs keeps_history.
  int stable(int b, int64_t* out) {
    if (!is_beam_search) {
      const int n = int(prompt.size()) + n_generated[size_t(b) * K];
      for (int t = 0; t < n; t++) out[t] = text(b * K)[t];
      return n;
    }
    int common = 0;
    while (common < length && agree(b, common)) common++;
    const Place& best = pool[size_t(b) * K];
    if (best.step < 0) {
      for (int t = 0; t < common; t++) out[t] = text(b * K)[t];
      return common;
    }
    const int P = int(prompt.size());
    std::vector<float> log_probs(best.step + 1);
    std::vector<int32_t> rows(best.step + 1);
    float of_score;
    for (int t = 0; t < P; t++) out[t] = prompt[t];
    const int n = P + output(b, 0, out + P, log_probs.data(), rows.data(), &of_score);
    if (is_settled(b)) return n;
    int same = 0;
    while (same < std::min(common, n) && out[same] == text(b * K)[same]) same++;
    return same;
  }

 private:
  const int n_original;
  int length;         // of the texts, with the prompt
  int T = 0;          // generated
  int n_chosen = 1;   // C
  const S2SSettings given;  // its pointers are not used
  const std::vector<int64_t> end_ids;
  const std::vector<float> divisor;
  std::vector<int32_t> sources;
  Rules rules;
  std::vector<float> logits;  // [V], of one row
  std::vector<Named> named;  // [R], or one for all rows
  int n_named_rows = -1;
  std::vector<float> score;     // [B, K]: sums of the running beams
  std::vector<Place> pool;      // [B, K]
  std::vector<uint8_t> is_open; // [B]
  std::vector<uint8_t> is_finished;    // [B, K], greedy
  std::vector<int32_t> n_generated;    // [B, K], greedy; with the end token
  std::vector<int32_t> history;        // [B, K, max_length]
  std::vector<int32_t> all_tokens, all_parents;  // [T, original B, K]
  std::vector<float> all_scores;
  std::vector<Offer> offers;  // [B, C]: chosen, best first
  std::vector<float> probed, choice;
  std::vector<int32_t> moved;
  struct Left {  // a chosen token whose log-probability is yet to be computed
    size_t place;  // in all_scores
    float logit, top;
    bool normalises;
    std::vector<float> banned;  // the logits of what was banned, where it normalises
  };
  std::vector<Left> of_step;  // [R]
  std::vector<Left> unsettled;

  bool settle(const Left& one, float rest) {
    float log_prob = (one.logit - one.top) - rest;
    if (one.normalises) {
      std::vector<float> had(one.banned), none(one.banned.size(), MINUS_INFINITY);
      for (float& value : had) value = (value - one.top) - rest;
      const float less = log_sum(had.data(), none.data(), int(had.size()), false, 0.0);
      if (std::isnan(less)) return false;
      log_prob -= less;
    }
    all_scores[one.place] = log_prob;
    return true;
  }

  template <class Value>
  static void move(std::vector<Value>& values, size_t to, size_t from, size_t n) {
    if (to != from) std::copy_n(values.begin() + from * n, n, values.begin() + to * n);
  }

  int32_t* text(int row) { return history.data() + size_t(row) * given.max_length; }
  const Named& named_of(int row) const { return named[named.size() == 1 ? 0 : row]; }

  RuleView view(int row) {
    static const int32_t no_text = 0;  // of rules that read none
    return RuleView{nullptr,
                    history.empty() ? &no_text : text(row),
                    sources.data() + size_t(row / K) * given.source_width,
                    rules.ids.data(),
                    rules.amounts.data(),
                    V,
                    length,
                    given.source_width};
  }

  bool agree(int b, int t) {
    for (int k = 1; k < K; k++)
      if (text(b * K + k)[t] != text(b * K)[t]) return false;
    return true;
  }

  // `offers` from what a step found; false where sums are imprecise.
  bool read(const Found& found) {
    offers.resize(size_t(B) * n_chosen);
    for (int b = 0; b < B; b++) {
      Best best{offers.data() + size_t(b) * n_chosen, n_chosen};
      bool has_nan = false;
      for (int k = 0; k < K; k++) {
        if (given.reads_whole) read_whole_row(found, b * K + k, k, best);
        else if (found.is_left) read_left_row(found, b * K + k, k, best);
        else if (!read_row(found, b * K + k, k, best, has_nan)) return false;
      }
      if (!is_beam_search && has_nan) best.n = 0;
      for (int c = best.n; c < n_chosen; c++)  // too few tokens are possible
        best.offers[c] = Offer{MINUS_INFINITY, MINUS_INFINITY, 0, is_beam_search ? c % V : 0};
    }
    return true;
  }

  // The best offers so far, in order.
  struct Best {
    Offer* offers;
    int most, n = 0;
    void add(const Offer& offer) {
      if (!(offer.value > MINUS_INFINITY)) return;
      if (n == most && !before(offer, offers[n - 1])) return;
      int i = n < most ? n++ : n - 1;
      for (; i > 0 && before(offer, offers[i - 1]); i--) offers[i] = offers[i - 1];
      offers[i] = offer;
    }
    // A score that a token of a later row, or a later token, must exceed to be among the best; rounding makes it lower.
    float least_score(const Normaliser& by, float sum) const {
      if (n < most) return MINUS_INFINITY;
      const double exact = double(offers[n - 1].value) - sum + by.rest + by.top;
      const double size = std::fabs(offers[n - 1].value) + std::fabs(sum) + std::fabs(by.rest) + std::fabs(by.top);
      const float found = float(exact - 1e-6 * size - 1e-30);
      return found == found ? found : MINUS_INFINITY;
    }
    static bool before(const Offer& a, const Offer& b) {
      if (a.value != b.value) return a.value > b.value;
      return a.row != b.row ? a.row < b.row : a.token < b.token;
    }
  };

  bool read_row(const Found& found, int r, int k, Best& best, bool& has_nan) {
    static const Named nothing;
    const Named& of_row = rules.active.empty() ? nothing : named_of(r);
    const int Q = int(of_row.ids.size()), M = found.n_candidates;
    const float* had = found.probe_log_probs + size_t(r) * found.n_probes;
    const bool any_changed = query.n_probes > 0;
    // Greedy search chooses by logits where a rule treats them differently.
    const bool shifts = given.edits_logits && (any_changed || !rules.normalises);
    const float shift = shifts ? found.log_normalizer[r] : 0.f;
    probed.assign(had, had + Q);
    if (Q) rules.apply(view(r), of_row, probed.data());
    float less = 0.f, less_shifted = 0.f;
    if (rules.normalises && any_changed) {
      less = log_sum(had, probed.data(), Q, rules.only, 0.0);
      if (std::isnan(less)) return false;
    }
    if (shifts) {
      choice.resize(Q);
      for (int q = 0; q < Q; q++) choice[q] = had[q] + shift;
      if (Q) rules.apply(view(r), of_row, choice.data());
      if (rules.normalises) {
        less_shifted = log_sum(had, choice.data(), Q, rules.only, double(shift));
        if (std::isnan(less_shifted)) return false;
      }
    }
    const bool normalises = rules.normalises && any_changed;
    const float sum = is_beam_search ? score[r] : 0.f;
    auto offer = [&](float log_prob, float logit, int32_t token) {
      if (normalises) log_prob -= less;
      if (shifts && rules.normalises) logit -= less_shifted;
      const float value = is_beam_search ? log_prob + sum : shifts ? logit : log_prob;
      has_nan |= value != value;
      best.add(Offer{value, log_prob, k, token});
    };
    if (!rules.only) {
      const int64_t* ids = found.candidate_ids + size_t(r) * M;
      const float* log_probs = found.candidate_log_probs + size_t(r) * M;
      for (int m = 0; m < M; m++) {
        const int32_t token = int32_t(ids[m]);
        if (Q && of_row.holds(token)) continue;
        offer(log_probs[m], shifts ? log_probs[m] + shift : 0.f, token);
      }
    }
    for (int q = 0; q < Q; q++) offer(probed[q], shifts ? choice[q] : 0.f, of_row.ids[q]);
    return true;
  }

  // The token is chosen by logits (see `decides`); its log-probability is left open.
  void read_left_row(const Found& found, int r, int k, Best& best) {
    static const Named nothing;
    const Named& of_row = rules.active.empty() ? nothing : named_of(r);
    const size_t first = size_t(r) * found.n_candidates;
    size_t m = first;
    while (!is_finished[r] && of_row.holds(int32_t(found.candidate_ids[m]))) m++;  // there is one: see `decides`
    of_step.resize(size_t(B) * K);
    Left& one = of_step[r];
    one.logit = found.candidate_log_probs[m];
    one.top = found.candidate_log_probs[first];
    one.normalises = rules.normalises && query.n_probes > 0;
    const float* banned = found.probe_log_probs + size_t(r) * found.n_probes;
    one.banned.assign(banned, banned + (one.normalises ? of_row.ids.size() : 0));
    best.add(Offer{one.logit, 0.f, k, int32_t(found.candidate_ids[m])});
  }

  // Applies all rules to the scores [V] of a row. Returns whether any token is left; `by` makes them log-probabilities.
  bool apply_to_all(int r, float* scores, Normaliser& by) {
    rules.apply_to_all(view(r), scores);
    return !rules.normalises || normalise(scores, V, by);
  }

  void read_whole_row(const Found& found, int r, int k, Best& best) {
    float* log_probs = found.log_probs + size_t(r) * V;
    Normaliser by, of_logits;
    if (given.edits_logits) {  // by which greedy search chooses
      const float shift = found.log_normalizer[r];
      logits.resize(V);
      for (int i = 0; i < V; i++) logits[i] = log_probs[i] + shift;
      if (!apply_to_all(r, logits.data(), of_logits)) return;
    }
    const bool has_tokens = apply_to_all(r, log_probs, by);
    if (!has_tokens && !given.edits_logits) return;
    const float* choice = given.edits_logits ? logits.data() : log_probs;
    const Normaliser& of_choice = given.edits_logits ? of_logits : by;
    if (!is_beam_search && !rules.normalises && std::isnan(largest(choice, V))) return;  // nothing is the largest
    scan(choice, of_choice, is_beam_search ? score[r] : 0.f, k, best);
    if (given.edits_logits && best.n) best.offers[0].log_prob = has_tokens ? by(log_probs[best.offers[0].token]) : NAN;
  }

  // Offers the tokens of a row, of whose scores [V] most are too low: these are passed over LANES at a time.
  void scan(const float* scores, const Normaliser& by, float sum, int k, Best& best) const {
    auto offer = [&](int token) {
      const float log_prob = by(scores[token]);
      best.add(Offer{is_beam_search ? log_prob + sum : log_prob, log_prob, k, token});
    };
    float least = best.least_score(by, sum);
    int i = 0;
    for (; i + LANES <= V; i += LANES) {
      if (!any_above(scores + i, least)) continue;
      for (int j = i; j < i + LANES; j++)
        if (scores[j] > least) offer(j);
      least = best.least_score(by, sum);
    }
    for (; i < V; i++)
      if (scores[i] > least) offer(i);
  }

  bool ends(int32_t token) const {
    if (length + 1 >= given.max_length) return true;
    for (int64_t end : end_ids)
      if (end == token) return true;
    return false;
  }

  bool advance_beams() {
    bool all_end = true, any_open = false, all_full = true;
    const int n_tokens = T + 1;  // with the one that is chosen now
    std::vector<uint8_t> hit(size_t(B) * n_chosen);
    std::vector<float> finished(size_t(B) * n_chosen);
    bool any_better = false;
    for (int b = 0; b < B; b++) {
      const Offer* chosen = offers.data() + size_t(b) * n_chosen;
      const Place* places = pool.data() + size_t(b) * K;
      const bool full = is_full(b);
      float largest = MINUS_INFINITY;
      bool has_nan = false;
      for (int c = 0; c < n_chosen; c++) {
        const size_t i = size_t(b) * n_chosen + c;
        hit[i] = ends(chosen[c].token);
        all_end &= hit[i] != 0;
        float value = chosen[c].value / divisor[n_tokens];
        if (given.early_stopping) value += full ? PUSHED_DOWN : 0.f;
        value += is_open[b] ? 0.f : PUSHED_DOWN;
        value += hit[i] && c < K ? 0.f : PUSHED_DOWN;
        finished[i] = value;
        has_nan |= value != value;
        largest = max(largest, value);
      }
      any_better |= !has_nan && largest > places[K - 1].score;
    }
    grow_tables();
    for (int b = 0; b < B; b++) {
      const Offer* chosen = offers.data() + size_t(b) * n_chosen;
      const uint8_t* of_hit = hit.data() + size_t(b) * n_chosen;
      if (any_better) merge(b, chosen, of_hit, finished.data() + size_t(b) * n_chosen);
      // The K best that don't end go on; of equal ones the earlier.
      std::vector<float>& running = probed;
      running.resize(n_chosen);
      for (int c = 0; c < n_chosen; c++) running[c] = chosen[c].value + (of_hit[c] ? PUSHED_DOWN : 0.f);
      order.resize(n_chosen);
      for (int c = 0; c < n_chosen; c++) order[c] = c;
      stable_order(order, running);
      for (int k = 0; k < K; k++) {
        const int c = order[k];
        score[size_t(b) * K + k] = running[c];
        take(b, k, chosen[c].token, chosen[c].row, chosen[c].log_prob);
      }
      close(b, n_tokens);
      any_open |= is_open[b] != 0;
      all_full &= is_full(b);
    }
    follow();
    return any_open && !(given.early_stopping && all_full) && !all_end;
  }

  std::vector<int32_t> order;

  // Descending and stable, NaN last, as numpy sorts.
  static void stable_order(std::vector<int32_t>& order, const std::vector<float>& values) {
    for (size_t i = 1; i < order.size(); i++) {
      const int32_t item = order[i];
      const float value = values[item];
      size_t j = i;
      for (; j > 0; j--) {
        const float other = values[order[j - 1]];
        if (!(value > other || (other != other && value == value))) break;
        order[j] = order[j - 1];
      }
      order[j] = item;
    }
  }

  void merge(int b, const Offer* chosen, const uint8_t* hit, const float* value) {
    Place* places = pool.data() + size_t(b) * K;
    std::vector<float>& all = choice;
    all.resize(K + n_chosen);
    for (int k = 0; k < K; k++) all[k] = places[k].score;
    std::copy(value, value + n_chosen, all.begin() + K);
    order.resize(K + n_chosen);
    for (int i = 0; i < K + n_chosen; i++) order[i] = i;
    stable_order(order, all);
    std::vector<Place> merged(K);
    for (int k = 0; k < K; k++) {
      const int i = order[k], c = i - K;
      merged[k] = c < 0 ? places[i]
                        : Place{all[i], hit[c] && c < K, T, chosen[c].row, chosen[c].token, chosen[c].log_prob};
    }
    std::copy(merged.begin(), merged.end(), places);
  }

  bool is_full(int b) const {
    for (int k = 0; k < K; k++)
      if (!pool[size_t(b) * K + k].is_finished) return false;
    return true;
  }

  bool is_settled(int b) const {
    if (is_beam_search) return (given.early_stopping || !is_open[b]) && is_full(b);
    for (int k = 0; k < K; k++)
      if (!is_finished[size_t(b) * K + k]) return false;
    return true;
  }

  void close(int b, int n_tokens) {
    const Place* places = pool.data() + size_t(b) * K;
    const int bound = given.bound_at_limit ? given.max_length - int(prompt.size()) : n_tokens;
    const float best = score[size_t(b) * K] / divisor[bound];
    float least = places[0].score;
    for (int k = 1; k < K; k++) least = least != least || least < places[k].score ? least : places[k].score;
    bool better = false;
    for (int k = 0; k < K; k++) better |= best > (places[k].is_finished ? least : PUSHED_DOWN);
    is_open[b] &= better;
  }

  bool advance_rows() {
    grow_tables();
    bool all = true;
    for (int r = 0; r < B * K; r++) {
      const Offer& chosen = offers[r];
      const int32_t token = is_finished[r] ? given.fill : chosen.token;
      n_generated[r] += !is_finished[r];
      is_finished[r] |= ends(token);
      all &= is_finished[r] != 0;
      take(r / K, r % K, token, r % K, chosen.log_prob);
    }
    follow();
    return !all;
  }

  // Notes which log-probabilities are open. Returns false where sums are imprecise.
  bool note_left(const Found& found) {
    for (int r = 0; r < B * K; r++) {
      const size_t i = size_t(r);
      if (n_generated[i] != T) continue;  // the row had finished before
      Left& one = of_step[i];
      one.place = (size_t(T - 1) * n_original + present[i / K]) * K + i % K;
      if (found.log_normalizer[r] != LEFT_OUT) {
        if (!settle(one, found.log_normalizer[r])) return false;
        continue;
      }
      unsettled.push_back(std::move(one));
      left.push_back(r);
    }
    return true;
  }

  void grow_tables() {
    const size_t n = size_t(T + 1) * n_original * K;
    all_tokens.resize(n);
    all_parents.resize(n);
    all_scores.resize(n);
  }

  void take(int b, int k, int32_t token, int32_t parent, float log_prob) {
    const size_t i = (size_t(T) * n_original + present[b]) * K + k;
    all_tokens[i] = token;
    all_parents[i] = parent;
    all_scores[i] = log_prob;
    tokens[size_t(b) * K + k] = token;
    parents[size_t(b) * K + k] = parent;
  }

  // The texts follow the rows that were continued.
  void follow() {
    if (!history.empty()) {
      for (int b = 0; b < B; b++) {
        const int64_t* from = parents.data() + size_t(b) * K;
        bool stays = true;
        for (int k = 0; k < K; k++) stays &= from[k] == k;
        if (!stays) {
          moved.resize(size_t(K) * length);
          for (int k = 0; k < K; k++)
            std::copy_n(text(b * K + int(from[k])), length, moved.begin() + size_t(k) * length);
          for (int k = 0; k < K; k++)
            std::copy_n(moved.begin() + size_t(k) * length, length, text(b * K + k));
        }
        for (int k = 0; k < K; k++)
          if (length < given.max_length) text(b * K + k)[length] = int32_t(tokens[size_t(b) * K + k]);
      }
    }
    length++;
    T++;
  }

  Status after(bool goes_on) {
    settled.clear();
    for (int b = 0; b < B; b++)
      if (!goes_on || is_settled(b)) settled.push_back(b);
    if (!goes_on) return ENDED;
    const bool enough = double(settled.size()) >= std::max(1.0, leave_at * B);
    return given.leave_early && enough ? LEAVE : GOES_ON;
  }
};

}  // namespace s2s
