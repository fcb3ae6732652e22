// Draws of different continuations: an exponential race (Gumbel top-k) among all tokens of all beams of a source.
// decoding/draws.py is the definition. One launch, a block for every slice of a source's tokens: it finds the first n_drawn of
// its slice, and the last block of a source to finish those of the source.
#pragma once

#include "sampling.cuh"
#include "update.cuh"

constexpr int kRaceEach = S2S_DRAW_SLICE / kBlockThreads;
static_assert(kRaceEach == 4, "a thread has the four numbers of a Philox block, one for each of its tokens");

// draws.exponential_numbers: -log u, u being (b + 1/2) / 2^53 for the upper 53 bits. Near 1, the logarithm is computed from the
// distance to 1.
__device__ __forceinline__ float exponential_number(uint64_t bits) {
  const int64_t odd = static_cast<int64_t>(bits >> 11) * 2 + 1;  // u, times 2^54
  const float below_one = static_cast<float>((int64_t{1} << 54) - odd) * 0x1p-54f;
  return -(below_one < 0.25f ? logarithm(0, -below_one) : logarithm(static_cast<float>(odd) * 0x1p-54f));
}

// A token's place among those of all beams of the source and its value in the race, as one number: the first has the largest,
// of equal values the one with the lower place. 0 is nobody.
__device__ __forceinline__ uint64_t racer(float value, int place) {
  return static_cast<uint64_t>(order_of(value)) << 32 | (0xffffffffu - static_cast<uint32_t>(place));
}
__device__ __forceinline__ int place_of(uint64_t racer) { return static_cast<int>(0xffffffffu - static_cast<uint32_t>(racer)); }

__device__ __forceinline__ uint64_t block_first(uint64_t racer, BlockShared& shared) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) racer = max(racer, __shfl_xor_sync(0xffffffffu, racer, step));
  if (threadIdx.x % 32 == 0) shared.warp_sums[0][threadIdx.x / 32] = racer;
  __syncthreads();
  racer = shared.warp_sums[0][0];
  for (int w = 1; w < kBlockWarps; ++w) racer = max(racer, shared.warp_sums[0][w]);
  __syncthreads();
  return racer;
}

// Calls take(rank, racer) for the first n of the racers of all threads, nobody where there are fewer: the thread that has it
// does. next(last): the first of a thread's racers that come after `last`.
template <class Next, class Take>
__device__ __forceinline__ void take_first(int n, Next next, Take take, BlockShared& shared) {
  uint64_t mine = next(~uint64_t{0});
  for (int rank = 0; rank < n; ++rank) {
    const uint64_t best = block_first(mine, shared);
    if (best == 0 ? threadIdx.x == 0 : best == mine) {
      take(rank, best);
      mine = next(best);
    }
  }
}

__device__ __forceinline__ void write_drawn(const DrawParameters& given, int source, int rank, uint64_t racer) {
  const int place = place_of(racer), beam = place / given.vocabulary;
  const int64_t at = static_cast<int64_t>(source) * given.n_drawn + rank;
  given.drawn_beams[at] = beam;
  given.drawn_ids[at] = place % given.vocabulary;
  given.drawn_sums[at] = given.scores[static_cast<int64_t>(source) * given.beams * given.vocabulary + place] +
                         given.beam_scores[source * given.beams + beam];
}

// One block per slice and source: grid (lists, B).
__device__ __forceinline__ void race_beams(const DrawParameters& given) {
  SHARED_MEMORY(BlockShared, shared);
  if (*given.stop) return;
  const int list = blockIdx.x, source = blockIdx.y, V = given.vocabulary, all = given.beams * V, n = given.n_drawn;
  const float* scores = given.scores + static_cast<int64_t>(source) * all;
  const int first = (list * kBlockThreads + threadIdx.x) * kRaceEach;
  float sums[kRaceEach];
  bool any = false;
#pragma unroll
  for (int i = 0; i < kRaceEach; ++i) {
    const int place = first + i;
    sums[i] = place < all ? scores[place] + given.beam_scores[source * given.beams + place / V] : -INFINITY;
    any |= sums[i] > -INFINITY;
  }
  uint64_t numbers[4] = {0, 0, 0, 0};
  if (any) philox(*given.seed, given.numbers[source], 0, static_cast<uint64_t>(*given.position) + 1, first / kRaceEach, numbers);
  uint64_t racers[kRaceEach];
#pragma unroll
  for (int i = 0; i < kRaceEach; ++i) {
    const float value = sums[i] > -INFINITY ? sums[i] - logarithm(exponential_number(numbers[i])) : -INFINITY;
    racers[i] = first + i < all ? racer(value, first + i) : 0;
  }
  uint64_t* found = given.race + static_cast<int64_t>(source) * given.lists * n;
  take_first(
      n,
      [&](uint64_t last) {
        uint64_t next = 0;
#pragma unroll
        for (int i = 0; i < kRaceEach; ++i)
          if (racers[i] < last) next = max(next, racers[i]);
        return next;
      },
      [&](int rank, uint64_t racer) { found[list * n + rank] = racer; }, shared);
  if (!is_last_block(given.arrived + source)) return;
  const int n_found = given.lists * n;
  take_first(
      n,
      [&](uint64_t last) {
        uint64_t next = 0;
        for (int i = threadIdx.x; i < n_found; i += kBlockThreads)
          if (found[i] < last) next = max(next, found[i]);
        return next;
      },
      [&](int rank, uint64_t racer) { write_drawn(given, source, rank, racer); }, shared);
}
