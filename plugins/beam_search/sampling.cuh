// Random draws of tokens. decoding/draws.py is the definition: Philox4x64-10 with the same keys and counters, so that a GPU
// draws the same tokens as a CPU unless rounding decides.
#pragma once

#include "block.cuh"
#include "loop_parameters.h"

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

// A number between 0 and 1, excluding both.
__device__ __forceinline__ double unit(uint64_t bits) { return (static_cast<double>(bits >> 11) + 0.5) * 0x1p-53; }

// Reads the stream from number `index` on. Each block gives four numbers.
class Uniforms {
 public:
  __device__ Uniforms(uint64_t seed, uint64_t source, uint64_t row, uint64_t length, uint64_t index)
      : seed_(seed), source_(source), row_(row), length_(length), index_(index) {
    philox(seed_, source_, row_, length_, index_ / 4, block_);
  }
  __device__ uint64_t next_bits() {
    const int place = index_ % 4;
    const uint64_t bits = place == 0 ? block_[0] : place == 1 ? block_[1] : place == 2 ? block_[2] : block_[3];
    if (++index_ % 4 == 0) philox(seed_, source_, row_, length_, index_ / 4, block_);
    return bits;
  }
  __device__ double next() { return unit(next_bits()); }

 private:
  uint64_t seed_, source_, row_, length_, index_, block_[4];
};

// Draws a token for a row from the row's softmax. One block per row.
__device__ __forceinline__ void draw_row(const DrawParameters& given) {
  SHARED_MEMORY(BlockShared, shared);
  if (*given.stop) return;
  const int row = blockIdx.x, V = given.vocabulary;
  const float* scores = given.scores + static_cast<int64_t>(row) * V;
  float maximum = -INFINITY;
  for (int id = threadIdx.x; id < V; id += kBlockThreads) maximum = fmaxf(maximum, scores[id]);
  maximum = block_maximum(maximum, shared);
  const Share share = share_of(V);
  double mine = 0.0;
  for (int64_t id = share.first; id < share.end; ++id) mine += expf(scores[id] - maximum);
  const double before = block_before(mine, shared), total = block_sum(mine, shared);
  const uint64_t length = static_cast<uint64_t>(*given.position) + 1;
  const double point =
      total * Uniforms(*given.seed, given.numbers[row / given.beams], row % given.beams, length, 0).next();
  // The first token at which the running sum exceeds the point; the last token where rounding leaves none.
  if (threadIdx.x == 0) shared.warp_place[0] = V - 1;
  __syncthreads();
  if (before <= point && point < before + mine) {
    double sum = before;
    int64_t id = share.first;
    for (; id + 1 < share.end; ++id) {
      sum += expf(scores[id] - maximum);
      if (sum > point) break;
    }
    shared.warp_place[0] = id;  // at most one thread gets here, as shares do not overlap
  }
  __syncthreads();
  if (threadIdx.x == 0) given.drawn_ids[row] = shared.warp_place[0];
}
