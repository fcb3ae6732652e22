// Random draws of tokens. decoding/draws.py is the definition: Philox4x64-10 with the same keys and counters, and the same
// arithmetic in whole numbers and single precision, so that a GPU draws the same tokens from the same scores.
//
// A token of a row takes two launches, each a block for every slice of the row:
//
//   find_row_maxima  the largest score of each slice
//   draw_row_tokens  the sum of the weights of each slice; the last block of a row to finish finds the token
#pragma once

#include "loop_parameters.h"
#include "weights.cuh"

__device__ __forceinline__ uint64_t high_product(uint64_t a, uint64_t b) {
#ifdef __CUDACC__
  return __umul64hi(a, b);
#else
  return static_cast<uint64_t>((static_cast<unsigned __int128>(a) * b) >> 64);
#endif
}

// One block, four numbers of 64 bits, of the stream with key (seed, source) and counter (0, 0, row, length).
__device__ __forceinline__ void philox(uint64_t seed, uint64_t source, uint64_t row, uint64_t length, uint64_t block,
                                       uint64_t (&counter)[4]) {
  counter[0] = 1 + block;  // numpy's generator increments its counter before the first block
  counter[1] = 0;
  counter[2] = row;
  counter[3] = length;
  uint64_t key[2] = {seed, source};
  for (int round = 0; round < 10; ++round) {
    const uint64_t high0 = high_product(0xD2E7470EE14C6C93ull, counter[0]), low0 = 0xD2E7470EE14C6C93ull * counter[0];
    const uint64_t high1 = high_product(0xCA5A826395121157ull, counter[2]), low1 = 0xCA5A826395121157ull * counter[2];
    counter[0] = high1 ^ counter[1] ^ key[0];
    counter[1] = low1;
    counter[2] = high0 ^ counter[3] ^ key[1];
    counter[3] = low0;
    key[0] += 0x9E3779B97F4A7C15ull;
    key[1] += 0xBB67AE8584CAA73Bull;
  }
}

// One block per slice and row: grid (lists, R).
__device__ __forceinline__ void find_maxima(const DrawParameters& given) {
  SHARED_MEMORY(BlockShared, shared);
  if (*given.stop) return;
  const int list = blockIdx.x, row = blockIdx.y, first = list * S2S_DRAW_SLICE, V = given.vocabulary;
  const float* scores = given.scores + static_cast<int64_t>(row) * V;
  const float maximum = largest_of(scores, first, min(first + S2S_DRAW_SLICE, V), shared);
  if (threadIdx.x == 0) given.maxima[static_cast<int64_t>(row) * given.lists + list] = maximum;
}

struct Point {
  uint64_t rest;  // what is left of the point behind the items before `at`
  int at;
};

// Which of n items takes the running sum of their weights beyond the point; `otherwise` where none does. By a whole block.
template <class Weight>
__device__ __forceinline__ Point item_at(uint64_t point, int n, int otherwise, Weight weight, BlockShared& shared) {
  SHARED_MEMORY(Point, found);
  const Share share = share_of(n);
  uint64_t mine = 0;
  for (int64_t i = share.first; i < share.end; ++i) mine += weight(i);
  uint64_t before = block_before(mine, shared);
  if (threadIdx.x == 0) found = {0, otherwise};
  __syncthreads();
  if (before <= point && point - before < mine) {  // at most one thread gets here, as shares do not overlap
    int64_t i = share.first;
    for (uint64_t one = weight(i); point - before >= one; one = weight(++i)) before += one;
    found = {point - before, static_cast<int>(i)};
  }
  __syncthreads();
  const Point result = found;
  __syncthreads();
  return result;
}

// Draws a token for a row from the row's softmax. One block per slice and row: grid (lists, R).
__device__ __forceinline__ void draw_row(const DrawParameters& given) {
  SHARED_MEMORY(BlockShared, shared);
  if (*given.stop) return;
  const int list = blockIdx.x, row = blockIdx.y, V = given.vocabulary;
  const float* scores = given.scores + static_cast<int64_t>(row) * V;
  const int64_t lists = static_cast<int64_t>(row) * given.lists;
  const float maximum = largest_of(given.maxima + lists, 0, given.lists, shared);
  const int first = list * S2S_DRAW_SLICE;
  const uint64_t mine = weight_of_slice(scores, first, min(first + S2S_DRAW_SLICE, V), maximum, shared);
  if (threadIdx.x == 0) given.weights[lists + list] = mine;
  if (!is_last_block(given.arrived + row)) return;
  uint64_t total[1] = {0};
  for (int l = threadIdx.x; l < given.lists; l += kBlockThreads) total[0] += given.weights[lists + l];
  block_sums(total, shared);
  uint64_t numbers[4];
  philox(*given.seed, given.numbers[row / given.beams], row % given.beams, static_cast<uint64_t>(*given.position) + 1, 0, numbers);
  const Point slice = item_at(high_product(numbers[0], total[0]), given.lists, given.lists - 1,
                              [&](int64_t l) { return given.weights[lists + l]; }, shared);
  const int start = slice.at * S2S_DRAW_SLICE, n = min(V - start, static_cast<int>(S2S_DRAW_SLICE));
  const Point token = item_at(slice.rest, n, n - 1, [&](int64_t i) { return exponential_weight(scores[start + i] - maximum); }, shared);
  if (threadIdx.x == 0) given.drawn_ids[row] = start + token.at;
}
