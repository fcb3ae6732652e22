// The end of a step: recording it for the hypotheses and the rules, the update of independent rows, and what the host sees.
#pragma once

#include "block.cuh"
#include "loop_parameters.h"
#include "top.cuh"
#include "update.cuh"

#ifndef __CUDACC__
// Replacements for the host build: a condition is a number in memory, and a single thread needs no fence.
inline void cudaGraphSetConditional(uint64_t condition, unsigned value) { *reinterpret_cast<unsigned*>(condition) = value; }
inline void __threadfence_system() {}
#endif

// What a step chooses from: candidates that were drawn, in the order of the draw.
__device__ __forceinline__ void take_drawn(const BeamStepParameters& given, int source, int n_chosen, UpdateShared& shared) {
  for (int c = threadIdx.x; c < n_chosen; c += blockDim.x) {
    const int64_t at = static_cast<int64_t>(source) * n_chosen + c;
    shared.chosen[c] = Offer{number(given.drawn_sums[at]), given.drawn_beams[at], static_cast<int32_t>(given.drawn_ids[at])};
  }
  __syncthreads();
}

// The log-probability of a beam's token, read from the distribution if there is one, else from the candidates.
__device__ __forceinline__ float score_of(const RecordParameters& given, int source, int beam, int32_t token) {
  const int64_t row = static_cast<int64_t>(source) * given.beams + beam;
  if (given.scores != nullptr) return given.scores[row * given.vocabulary + token];
  for (int m = 0; m < given.candidates; ++m)
    if (given.candidate_ids[row * given.candidates + m] == token)
      return given.candidate_log_probs[row * given.candidates + m];
  return -INFINITY;
}

// Records the scores of the tokens that were taken, and every beam's text. One block per source, after the update.
__device__ __forceinline__ void record_step(const RecordParameters& given, int source, int step) {
  const int K = given.beams;
  const int64_t at = (static_cast<int64_t>(step) * given.n_sources + source) * K;
  const int32_t* tokens = given.tokens + at;
  const int32_t* parents = given.parents + at;
  for (int k = threadIdx.x; k < K; k += blockDim.x) {
    given.token_scores[at + k] = score_of(given, source, parents[k], tokens[k]);
    const int place = source * K + k;
    if (given.pool_steps[place] == step) {
      int earlier = 0;
      for (int j = 0; j < k; ++j) earlier += given.pool_steps[source * K + j] == step;
      given.finished_scores[at + earlier] = score_of(given, source, given.pool_parents[place], given.pool_tokens[place]);
    }
  }
  if (given.history == nullptr) return;
  // Each thread has positions of its own: it reads all beams' tokens at one before it writes any.
  int32_t* history = given.history + static_cast<int64_t>(source) * K * given.history_width;
  const int length = given.prompt + step;
  for (int t = threadIdx.x; t <= length && t < given.history_width; t += blockDim.x) {
    int32_t old[kUpdateBeams];
    for (int k = 0; k < K; ++k) old[k] = t < length ? history[parents[k] * given.history_width + t] : tokens[k];
    for (int k = 0; k < K; ++k) history[k * given.history_width + t] = old[k];
  }
}

// The update of greedy search and independent samples: all rows, the position and the stop flag. One block.
__device__ __forceinline__ void update_rows(const RowUpdateParameters& given) {
  SHARED_MEMORY(int32_t, running);
  const int64_t position = *given.position;
  const int stopped = *given.stop;
  const int step = static_cast<int>(position) - given.prompt + 1;
  if (threadIdx.x == 0) running = 0;
  __syncthreads();
  if (stopped || step < 0 || step >= given.limit) return;  // the same for all threads
  for (int row = threadIdx.x; row < given.rows; row += blockDim.x) {
    const int was_finished = given.finished[row];
    const int32_t chosen = static_cast<int32_t>(given.chosen_ids[row]);
    const int32_t token = was_finished ? given.fill : chosen;
    int finished = was_finished;
    for (int e = 0; e < given.n_end; ++e) finished |= given.end_ids[e] == token;
    given.finished[row] = finished;
    given.n_generated[row] += !was_finished;
    given.next_tokens[row] = token;
    const int64_t at = static_cast<int64_t>(step) * given.rows + row;
    given.tokens[at] = token;
    given.token_scores[at] = given.scores != nullptr ? given.scores[static_cast<int64_t>(row) * given.vocabulary + chosen]
                                                     : given.chosen_log_probs[row];
    if (given.history != nullptr && given.prompt + step < given.history_width)
      given.history[static_cast<int64_t>(row) * given.history_width + given.prompt + step] = token;
    if (!finished) running = 1;  // several threads may write, all the same value
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    if (running && step + 1 < given.limit) *given.position = position + 1;
    else *given.stop = 1;
  }
}

// The end of a step: reports to the host, and tells the WHILE node whether there is another step. One block.
__device__ __forceinline__ void publish(const PublishParameters& given) {
  const int K = given.beams, stop = *given.stop;
  const int step = static_cast<int>(*given.position) - given.prompt + (stop ? 1 : 0);
  if (given.news != nullptr && step >= 0) {
    for (int b = threadIdx.x; b < given.n_sources; b += blockDim.x) {
      const int64_t at = (static_cast<int64_t>(step) * given.n_sources + b) * K;
      int32_t* news = given.news + (static_cast<int64_t>(step) * given.n_sources + b) * (2 * K + 4);
      for (int k = 0; k < K; ++k) {
        news[k] = given.tokens[at + k];
        news[K + k] = given.parents != nullptr ? given.parents[at + k] : k;
      }
      int full = 1;
      news[2 * K] = given.pool_steps[b * K];
      if (given.parents == nullptr) continue;
      news[2 * K + 1] = given.pool_parents[b * K];
      news[2 * K + 2] = given.pool_tokens[b * K];
      for (int k = 0; k < K; ++k) full &= given.pool_finished[b * K + k] != 0;
      news[2 * K + 3] = full && (given.early_stopping == S2S_EARLY_STOPPING_TRUE || !given.open[b]);
    }
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence_system();  // the barrier above puts the whole block's writes before the counter's
    *static_cast<volatile uint64_t*>(given.progress) = static_cast<uint32_t>(step + 1) | (stop ? S2S_STOPPED : 0);
    const int iterations = ++*given.iterations;
    // A bound on the loop: if no step ever sets the stop flag, the graph ends and the host raises an error.
    if (given.condition != 0) cudaGraphSetConditional(given.condition, !stop && iterations < given.limit);
  }
}

// Everything that follows a step's candidates in beam search: a block for each source merges its beams' lists or takes what
// was drawn, updates the beams and the pool and records the tokens; the last block to finish does what concerns all.
__device__ __forceinline__ void beam_step(const BeamStepParameters& given) {
  SHARED_MEMORY(UpdateShared, shared);
  const BeamUpdateParameters& update = given.update;
  const int source = blockIdx.x, step = static_cast<int>(*update.position) - update.prompt + 1;
  const int n_chosen = candidates_of_a_step(update);
  if (!*update.stop && step >= 0 && step < update.limit) {  // the same for all threads of all blocks
    if (given.drawn_ids != nullptr) {
      take_drawn(given, source, n_chosen, shared);
    } else {
      for (int k = threadIdx.x / 32; k < update.beams; k += kUpdateThreads / 32) merge_lists(given.top, source * update.beams + k);
      __syncthreads();
      choose(update, source, n_chosen, shared);
    }
    go_on(update, source, step, n_chosen, shared);
    __syncthreads();
    record_step(given.record, source, step);
  }
  if (!is_last_block(given.arrived)) return;
  if (threadIdx.x < 32) beam_stop(given.stop);
  __syncthreads();
  publish(given.publish);
}

// The same for independent rows (greedy search and samples): a warp merges a row's lists, unless the tokens were drawn.
__device__ __forceinline__ void row_step(const RowStepParameters& given) {
  const int row = blockIdx.x * (kUpdateThreads / 32) + threadIdx.x / 32;
  if (given.merges && !*given.rows.stop && row < given.top.rows) merge_lists(given.top, row);
  if (!is_last_block(given.arrived)) return;
  update_rows(given.rows);
  __syncthreads();
  publish(given.publish);
}
