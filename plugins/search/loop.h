// The decode loop of a batch: steps of the decoder and of the search, until there is something for the caller to do.
#pragma once

#include <algorithm>
#include <vector>

#include "search.h"
#include "step.h"

extern "C" {
// What changes from step to step, in the caller's memory. Mirrored by runtime/native_graphs/library.py.
typedef struct S2SBatch {
  int64_t* token;     /* [B, K] */
  int64_t* position;  /* [n_positions]: all are set to the step's position */
  int64_t* ancestors; /* [B, K, C]: see decoding/ancestors.py */
  float* watched;     /* [B] out: the log-probability of a token behind a position, of each source's first row; or null */
  int32_t n_positions, capacity;
  int32_t limit; /* positions that the decoder has; -1: as many as there are */
  int32_t step;  /* positions that were written, in and out */
  int32_t watched_position, watched_token;
} S2SBatch;
}

namespace s2s {

// The beams continue the histories of their parents, in the table of ancestors.
inline void follow(const S2SBatch& batch, const Search& search, std::vector<int64_t>& old) {
  const int K = search.K, t = batch.step;
  if (t == 0) return;
  for (int b = 0; b < search.B; b++) {
    const int64_t* parents = search.parents.data() + size_t(b) * K;
    bool stays = true;
    for (int k = 0; k < K; k++) stays &= parents[k] == k;
    if (stays) continue;
    int64_t* table = batch.ancestors + size_t(b) * K * batch.capacity;
    old.resize(size_t(K) * t);
    for (int k = 0; k < K; k++) std::copy_n(table + size_t(k) * batch.capacity, t, old.begin() + size_t(k) * t);
    for (int k = 0; k < K; k++)
      std::copy_n(old.begin() + size_t(parents[k]) * t, t, table + size_t(k) * batch.capacity);
  }
}

// The query of a watched position in the prompt.
inline Query query_for(int32_t token, size_t n_rows) {
  Query query;
  query.n_probes = 1;
  query.probe_ids.assign(n_rows, token);
  return query;
}

// Writes down what is watched, before the search changes it.
inline void watch(const S2SBatch& batch, const Search& search, const Found& found) {
  for (int b = 0; b < search.B; b++) {
    const size_t row = size_t(b) * search.K;
    if (found.log_probs) batch.watched[b] = found.log_probs[row * search.V + batch.watched_token];
    else batch.watched[b] = found.probe_log_probs[row * found.n_probes];
  }
}

constexpr int LEAST_LEFT = 4;  // steps for which it pays to leave normalisers out
constexpr size_t MOST_LEFT = 64;  // rows whose normalisers are computed together

inline bool settle(Search& search, Step& step) { return !search.n_unsettled() || search.settle(step.normalizers()); }

inline Status make_steps(Search& search, Step& step, S2SBatch& batch, int n_steps) {
  std::vector<int64_t> old;
  search.may_leave = n_steps >= LEAST_LEFT && step.can_leave();
  const int P = int(search.prompt.size());
  while (true) {
    const bool feeds_prompt = batch.step < P - 1;
    if (!feeds_prompt && n_steps-- == 0) return PAUSED;
    if (batch.limit >= 0 && batch.step >= batch.limit) return NO_POSITION;
    if (batch.step == batch.capacity) return NEEDS_ROOM;
    static const Query nothing;
    if (!feeds_prompt && !search.ask()) return TOO_MANY;
    follow(batch, search, old);
    const size_t R = size_t(search.B) * search.K;
    for (size_t r = 0; r < R; r++) batch.token[r] = feeds_prompt ? search.prompt[batch.step] : search.tokens[r];
    for (int i = 0; i < batch.n_positions; i++) batch.position[i] = batch.step;
    const bool is_watched = batch.watched && batch.step == batch.watched_position;
    Found found = step.run(!feeds_prompt ? search.query : is_watched ? query_for(batch.watched_token, R) : nothing);
    if (is_watched) watch(batch, search, found);
    batch.step++;
    if (feeds_prompt) continue;
    if (found.is_left && !search.decides(found)) found = step.complete();
    const Status status = search.advance(found);
    step.keep(search.left);
    if (status != GOES_ON) return status;
    if (search.n_unsettled() >= MOST_LEFT && !settle(search, step)) return IMPRECISE;
  }
}

// At most n_steps tokens more. The prompt is fed first: its tokens but the last are no steps of the search.
inline Status run(Search& search, Step& step, S2SBatch& batch, int n_steps) {
  const Status status = make_steps(search, step, batch, n_steps);
  return status == IMPRECISE || settle(search, step) ? status : IMPRECISE;
}

}  // namespace s2s
