// One step of beam search over candidates, as transformers' generate() does it: reference.py is the definition.
//
// One block per source. The rank of an item is found by counting the items that come before it, which takes no
// rounds, and resolves ties as a stable sort does. All arithmetic on scores is single fp32 additions and divisions in the
// definition's order, so that results are equal bit for bit.
#pragma once

#include "../common/cuda_or_host.cuh"
#include "parameters.h"

constexpr int kUpdateThreads = 256;
constexpr int kUpdateBeams = 16;
constexpr int kMostOffers = 2048;   // K * M
constexpr int kMostChosen = 128;    // candidates that a step looks at: max(2, 1 + n_end) * K
constexpr float kFar = -1e9f;       // what generate() adds to push something to the end

struct Offer {
  float value;
  int32_t beam, token;
};

struct UpdateShared {
  float offered[kMostOffers];
  int64_t offered_order[kMostOffers];             // beam, then token: decides between equal scores
  Offer chosen[kMostChosen];
  int32_t hit[kMostChosen];
  float running[kMostChosen];                     // scores of the chosen; those that end their text are pushed to the end
  float ranked[kUpdateBeams + kMostChosen];       // scores of the pool, then of the chosen as finished hypotheses
  float pool_score[kUpdateBeams], new_score[kUpdateBeams];
  int32_t pool_finished[kUpdateBeams], pool_step[kUpdateBeams], pool_parent[kUpdateBeams], pool_token[kUpdateBeams];
  int32_t parent[kUpdateBeams];
  int32_t full;                                   // the pool held K finished hypotheses before this step
};

__device__ __forceinline__ float number(float value) { return value == value ? value : -INFINITY; }

// How many of values[0..n) come before values[i] in a stable descending sort.
__device__ __forceinline__ int rank_of(const float* values, int n, int i) {
  int rank = 0;
  for (int j = 0; j < n; ++j) rank += values[j] > values[i] || (values[j] == values[i] && j < i);
  return rank;
}

__device__ __forceinline__ bool ends(const BeamUpdateParameters& given, int32_t token, int step) {
  if (step + 1 >= given.limit) return true;
  for (int e = 0; e < given.n_end; ++e)
    if (given.end_ids[e] == token) return true;
  return false;
}

// The best of all K * M continuations, into shared.chosen in order; ties by beam, then by lower token.
__device__ __forceinline__ void choose(const BeamUpdateParameters& given, int source, int n_chosen, UpdateShared& shared) {
  const int M = given.candidates, n = given.beams * M;
  const int64_t first = static_cast<int64_t>(source) * n;
  for (int i = threadIdx.x; i < n; i += blockDim.x) {
    const int beam = i / M;
    shared.offered[i] = number(given.candidate_log_probs[first + i] + given.scores[source * given.beams + beam]);
    shared.offered_order[i] = static_cast<int64_t>(beam) << 32 | given.candidate_ids[first + i];
  }
  __syncthreads();
  for (int i = threadIdx.x; i < n; i += blockDim.x) {
    const float value = shared.offered[i];
    const int64_t order = shared.offered_order[i];
    int rank = 0;
    for (int j = 0; j < n; ++j) {
      const float other = shared.offered[j];
      rank += other > value || (other == value && shared.offered_order[j] < order);
    }
    if (rank < n_chosen) shared.chosen[rank] = Offer{value, static_cast<int32_t>(order >> 32), static_cast<int32_t>(order)};
  }
  __syncthreads();
}

// The K best candidates that do not end their text become the beams, with the history of their parents.
__device__ __forceinline__ void advance(const BeamUpdateParameters& given, int source, int step, int n_chosen,
                                        UpdateShared& shared) {
  const int K = given.beams;
  for (int c = threadIdx.x; c < n_chosen; c += blockDim.x) {
    const Offer offer = shared.chosen[c];
    shared.hit[c] = ends(given, offer.token, step);
    shared.running[c] = shared.hit[c] ? offer.value + kFar : offer.value;
  }
  __syncthreads();
  for (int c = threadIdx.x; c < n_chosen; c += blockDim.x) {
    const int k = rank_of(shared.running, n_chosen, c);
    if (k >= K) continue;
    const Offer offer = shared.chosen[c];
    const int64_t at = (static_cast<int64_t>(step) * given.sources + source) * K + k;
    shared.parent[k] = offer.beam;
    shared.new_score[k] = shared.running[c];
    given.scores[source * K + k] = shared.running[c];
    given.next_tokens[source * K + k] = offer.token;
    given.tokens[at] = offer.token;
    given.parents[at] = offer.beam;
  }
  __syncthreads();
  // Each thread has positions of its own: it reads all beams' entries at one before it writes any.
  const int written = static_cast<int>(*given.position);
  int64_t* ancestors = given.ancestors + static_cast<int64_t>(source) * K * given.capacity;
  for (int t = threadIdx.x; t <= written + 1 && t < given.capacity; t += blockDim.x) {
    int64_t old[kUpdateBeams];
    for (int k = 0; k < K; ++k) old[k] = t <= written ? ancestors[shared.parent[k] * given.capacity + t] : k;
    for (int k = 0; k < K; ++k) ancestors[k * given.capacity + t] = old[k];
  }
}

// The pool becomes the best K of itself and of the candidates that end now; older ones win ties.
__device__ __forceinline__ void finish(const BeamUpdateParameters& given, int source, int step, int n_chosen,
                                       UpdateShared& shared) {
  const int K = given.beams;
  const bool open = given.open[source] != 0;
  const float divisor = given.length_divisor[step + 1];
  for (int i = threadIdx.x; i < K; i += blockDim.x) {
    shared.ranked[i] = shared.pool_score[i] = given.pool_scores[source * K + i];
    shared.pool_finished[i] = given.pool_finished[source * K + i];
    shared.pool_step[i] = given.pool_steps[source * K + i];
    shared.pool_parent[i] = given.pool_parents[source * K + i];
    shared.pool_token[i] = given.pool_tokens[source * K + i];
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    shared.full = 1;
    for (int i = 0; i < K; ++i) shared.full &= shared.pool_finished[i] != 0;
  }
  __syncthreads();
  for (int c = threadIdx.x; c < n_chosen; c += blockDim.x) {
    float score = shared.chosen[c].value / divisor;
    if (shared.full && given.early_stopping == S2S_EARLY_STOPPING_TRUE) score += kFar;
    if (!open) score += kFar;
    if (!(shared.hit[c] && c < K)) score += kFar;  // only the best K may finish
    shared.ranked[K + c] = score;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < K + n_chosen; i += blockDim.x) {
    const int slot = rank_of(shared.ranked, K + n_chosen, i);
    if (slot >= K) continue;
    const int at = source * K + slot, c = i - K;
    given.pool_scores[at] = shared.ranked[i];
    given.pool_finished[at] = c < 0 ? shared.pool_finished[i] : (shared.hit[c] && c < K);
    given.pool_steps[at] = c < 0 ? shared.pool_step[i] : step;
    given.pool_parents[at] = c < 0 ? shared.pool_parent[i] : shared.chosen[c].beam;
    given.pool_tokens[at] = c < 0 ? shared.pool_token[i] : shared.chosen[c].token;
  }
  __syncthreads();
}

// Whether a hypothesis better than the pool's worst may still finish. Once false, it stays false.
__device__ __forceinline__ void close(const BeamUpdateParameters& given, int source, int step, int n_chosen,
                                      UpdateShared& shared) {
  const int K = given.beams;
  const float best = shared.new_score[0] / given.length_divisor[given.bound_at_limit ? given.limit : step + 1];
  float worst = INFINITY;
  int unfinished = 0, all_hit = 1;
  for (int i = 0; i < K; ++i) {
    worst = fminf(worst, given.pool_scores[source * K + i]);
    unfinished |= given.pool_finished[source * K + i] == 0;
  }
  for (int c = 0; c < n_chosen; ++c) all_hit &= shared.hit[c];
  // A full pool is beaten by a score above its worst, an empty slot by any above -1e9.
  bool finished_any = false;
  for (int i = 0; i < K; ++i) finished_any |= given.pool_finished[source * K + i] != 0;
  const bool better = (finished_any && best > worst) || (unfinished && best > kFar);
  given.open[source] = given.open[source] != 0 && better;
  given.all_hit[source] = all_hit;
}

__device__ __forceinline__ int candidates_of_a_step(const BeamUpdateParameters& given) {
  return (given.n_end > 1 ? 1 + given.n_end : 2) * given.beams;
}

// Writes the tables from shared.chosen.
__device__ __forceinline__ void go_on(const BeamUpdateParameters& given, int source, int step, int n_chosen,
                                      UpdateShared& shared) {
  advance(given, source, step, n_chosen, shared);
  finish(given, source, step, n_chosen, shared);
  if (threadIdx.x == 0) close(given, source, step, n_chosen, shared);
}

__device__ __forceinline__ void beam_update(const BeamUpdateParameters& given) {
  SHARED_MEMORY(UpdateShared, shared);
  const int source = blockIdx.x;
  const int step = static_cast<int>(*given.position) - given.prompt + 1;
  const int n_chosen = candidates_of_a_step(given);
  if (*given.stop || step < 0 || step >= given.limit) return;  // after the end of the search; the same for all threads
  choose(given, source, n_chosen, shared);
  go_on(given, source, step, n_chosen, shared);
}

// After the update of all sources: whether the whole batch stops, and the next position if it does not. One warp.
__device__ __forceinline__ void beam_stop(const BeamStopParameters& given) {
  const int stopped = *given.stop;
  __syncwarp();
  if (stopped) return;
  int open = 0, all_hit = 1, all_full = 1;
  for (int b = threadIdx.x; b < given.sources; b += 32) {
    open |= given.open[b];
    all_hit &= given.all_hit[b];
  }
  for (int i = threadIdx.x; i < given.sources * given.beams; i += 32) all_full &= given.pool_finished[i] != 0;
  open = __ballot_sync(0xffffffffu, open) != 0;
  all_hit = __ballot_sync(0xffffffffu, !all_hit) == 0;
  all_full = __ballot_sync(0xffffffffu, !all_full) == 0;
  if (threadIdx.x == 0) {
    const bool settled = given.early_stopping == S2S_EARLY_STOPPING_TRUE && all_full;
    const bool goes_on = open && !settled && !all_hit;
    *given.stop = !goes_on;
    if (goes_on) *given.position += 1;
  }
}
