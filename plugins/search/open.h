// Steps of an open batch for several searches: each has sources of its own, which came together, and which have places in
// the caches and positions of their own. As runtime/decoding/joining.py, whose definition it is.
#pragma once

#include <algorithm>
#include <chrono>
#include <vector>

#include "search.h"
#include "step.h"

extern "C" {
// An open batch, in the caller's memory. P places. Mirrored by runtime/native_graphs/library.py.
typedef struct S2SOpenBatch {
  int64_t* token;         /* [B, K], inputs of the step */
  int64_t* position;      /* [B], likewise */
  const int64_t* places;  /* [B], likewise; those of the first search's sources, then of the second's, and so on */
  int64_t* positions;     /* [P] of the next step of each place's source */
  int64_t* ancestors;     /* [P, K, C]: see decoding/ancestors.py */
  const int64_t* version; /* as soon as it is not `expected` any more, no second step begins; or null */
  int64_t expected;
  double seconds;  /* after as many, likewise */
  int32_t n_sources, capacity;
  int32_t limit;   /* positions that the decoder has; -1: as many as there are */
  int32_t n_steps; /* out: that were made */
} S2SOpenBatch;
}

namespace s2s {

class OpenSteps {
 public:
  OpenSteps(S2SOpenBatch& batch, Search* const* searches, int n) : batch(batch), searches(searches, searches + n) {}

  // At most `most` steps. Returns PAUSED, NEEDS_ROOM or NO_POSITION; GOES_ON where a search has something to tell, of which
  // statuses [n] are told: a search that has GOES_ON has nothing.
  Status run(Step& step, int most, int32_t* statuses) {
    const auto begin = std::chrono::steady_clock::now();
    std::fill_n(statuses, searches.size(), int32_t(GOES_ON));
    batch.n_steps = 0;
    while (true) {
      if (batch.n_steps == most || is_wanted(begin)) return PAUSED;
      int64_t last = 0;
      for (int b = 0; b < batch.n_sources; b++) last = std::max(last, batch.positions[batch.places[b]]);
      if (batch.limit >= 0 && last >= batch.limit) return NO_POSITION;
      if (last >= batch.capacity) return NEEDS_ROOM;
      if (!ask(statuses)) return GOES_ON;
      feed();
      const Found found = step.run(query);
      for (int b = 0; b < batch.n_sources; b++) batch.positions[batch.places[b]]++;
      batch.n_steps++;
      if (!advance(found, statuses)) return GOES_ON;
    }
  }

 private:
  S2SOpenBatch& batch;
  const std::vector<Search*> searches;
  Query query;
  std::vector<int64_t> old, candidates;
  std::vector<float> log_probs;

  bool is_wanted(std::chrono::steady_clock::time_point begin) const {
    if (!batch.n_steps) return false;  // one step is always made, however many arrive
    if (batch.version && __atomic_load_n(batch.version, __ATOMIC_RELAXED) != batch.expected) return true;
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count() >= batch.seconds;
  }

  // One query that asks all that the searches ask. False where one of them would ask too much.
  bool ask(int32_t* statuses) {
    bool fits = true, changed = false;
    const int n_candidates = query.n_candidates, n_probes = query.n_probes;
    query.n_candidates = 1;
    query.n_probes = 0;
    for (size_t i = 0; i < searches.size(); i++) {
      Search& search = *searches[i];
      if (!search.ask()) {
        statuses[i] = TOO_MANY;
        fits = false;
      }
      changed |= search.query.changed;
      query.n_candidates = std::max(query.n_candidates, search.query.n_candidates);
      query.n_probes = std::max(query.n_probes, search.query.n_probes);
    }
    if (!fits) return false;
    query.changed = changed || query.n_candidates != n_candidates || query.n_probes != n_probes;
    const size_t K = size_t(searches[0]->K), Q = size_t(query.n_probes);
    query.probe_ids.assign(size_t(batch.n_sources) * K * Q, 0);
    int64_t* to = query.probe_ids.data();
    for (const Search* search : searches) {
      const size_t own = size_t(search->query.n_probes);
      const int64_t* from = search->query.probe_ids.data();
      for (size_t r = 0; r < size_t(search->B) * K; r++, to += Q) std::copy_n(from + r * own, own, to);
    }
    return true;
  }

  // What the step is fed: tokens, positions, and the histories that the beams continue, in the table of ancestors.
  void feed() {
    const int K = searches[0]->K;
    int b = 0;
    for (const Search* search : searches) {
      for (int own = 0; own < search->B; own++, b++) {
        const int64_t place = batch.places[b], t = batch.positions[place];
        const int64_t* parents = search->parents.data() + size_t(own) * K;
        int64_t* table = batch.ancestors + size_t(place) * K * batch.capacity;
        bool stays = true;
        for (int k = 0; k < K; k++) stays &= parents[k] == k;
        if (!stays && t > 0) {
          old.resize(size_t(K) * t);
          for (int k = 0; k < K; k++) std::copy_n(table + size_t(k) * batch.capacity, t, old.begin() + size_t(k) * t);
          for (int k = 0; k < K; k++)
            std::copy_n(old.begin() + size_t(parents[k]) * t, t, table + size_t(k) * batch.capacity);
        }
        for (int k = 0; k < K; k++) table[size_t(k) * batch.capacity + t] = k;
        std::copy_n(search->tokens.data() + size_t(own) * K, K, batch.token + size_t(b) * K);
        batch.position[b] = t;
      }
    }
  }

  // Each search goes on with its part of what was found. False where one of them has something to tell.
  bool advance(const Found& found, int32_t* statuses) {
    bool all_go_on = true;
    size_t first = 0;
    for (size_t i = 0; i < searches.size(); i++) {
      Search& search = *searches[i];
      const size_t n_rows = size_t(search.B) * search.K, M = size_t(found.n_candidates);
      Found part = found;
      part.candidate_ids += first * M;
      part.candidate_log_probs += first * M;
      part.log_normalizer += first;
      part.probe_log_probs += first * size_t(found.n_probes);
      if (const size_t wanted = size_t(search.query.n_candidates); wanted != M) {
        candidates.resize(n_rows * wanted);
        log_probs.resize(n_rows * wanted);
        for (size_t r = 0; r < n_rows; r++) {
          std::copy_n(part.candidate_ids + r * M, wanted, candidates.begin() + int64_t(r * wanted));
          std::copy_n(part.candidate_log_probs + r * M, wanted, log_probs.begin() + int64_t(r * wanted));
        }
        part.candidate_ids = candidates.data();
        part.candidate_log_probs = log_probs.data();
        part.n_candidates = int(wanted);
      }
      first += n_rows;
      statuses[i] = search.advance(part);
      all_go_on &= statuses[i] == GOES_ON;
    }
    return all_go_on;
  }
};

}  // namespace s2s
