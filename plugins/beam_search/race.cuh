// Draws of different continuations: an exponential race (Gumbel top-k) among all tokens of all beams of a source.
// decoding/draws.py is the definition. The tokens of a source are cut into slices, a block each:
//
//   count_drawable_tokens  how many tokens of each slice are possible: each of these has a number of the stream, in order
//   race_of_slices         the first n_drawn of each slice
//   merge_races            the first n_drawn of the source
//
// A source of one slice takes the second kernel alone. Logarithms in double precision, which are slow on small GPUs, are
// taken for the few tokens that may be among the first by a rough race in single precision.
#pragma once

#include "sampling.cuh"
#include "update.cuh"

constexpr int kMostEqual = 32;   // tokens that may follow the last one so closely that the rough race can't tell them apart
constexpr int kNoPlace = 0x7fffffff;
// How far `rough_noise` is from `noise`, at most: 3e-7 of the inner logarithm, and the last place of a number up to 38.
constexpr double kNoiseError = 1e-5;

__device__ __forceinline__ double noise(uint64_t bits) { return -log(-log(unit(bits))); }

// The same in single precision. Near 1, the logarithm of unit(bits) is computed from its distance to 1.
__device__ __forceinline__ float rough_noise(uint64_t bits) {
  const uint64_t odd = 2 * (bits >> 11) + 1;  // unit(bits), times 2^54
  const float below = static_cast<float>(odd) * 0x1p-54f;
  const float above = static_cast<float>((uint64_t{1} << 54) - odd) * 0x1p-54f;
  return -logf(odd < (uint64_t{1} << 53) ? -logf(below) : -log1pf(-above));
}

struct Racer {
  double value;
  int place;  // among the tokens of all beams of the source
};
__device__ __forceinline__ bool ahead(const Racer& a, const Racer& b) {
  return a.value > b.value || (a.value == b.value && a.place < b.place);
}

struct RaceShared {
  BlockShared block;
  double values[kMostChosen + kMostEqual];
  int32_t places[kMostChosen + kMostEqual];
};

// The first of the racers of all threads, returned to every thread.
__device__ __forceinline__ Racer block_first(Racer racer, BlockShared& shared) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    const Racer other{__shfl_xor_sync(0xffffffffu, racer.value, step), __shfl_xor_sync(0xffffffffu, racer.place, step)};
    if (ahead(other, racer)) racer = other;
  }
  if (threadIdx.x % 32 == 0) {
    shared.warp_double[threadIdx.x / 32] = racer.value;
    shared.warp_place[threadIdx.x / 32] = racer.place;
  }
  __syncthreads();
  for (int w = 0; w < kBlockWarps; ++w) {
    const Racer other{shared.warp_double[w], static_cast<int>(shared.warp_place[w])};
    if (ahead(other, racer)) racer = other;
  }
  __syncthreads();
  return racer;
}

// A thread's share of a block's slice of a source's tokens.
struct RaceShare {
  const float* scores;       // [K * V]: of the source
  const float* beam_scores;  // [K]
  float* noises;             // [K * V] scratch: rough noise; minus infinity for impossible tokens
  int vocabulary, first, end;

  __device__ __forceinline__ float sum(int place) const { return scores[place] + beam_scores[place / vocabulary]; }
  __device__ __forceinline__ bool is_possible(int place) const { return sum(place) > -INFINITY; }
  __device__ __forceinline__ int possible_before(int place) const {
    int n = 0;
    for (int at = first; at < place; ++at) n += is_possible(at);
    return n;
  }
  // The first token of the share in the rough race that comes after `last`.
  __device__ __forceinline__ Racer first_after(const Racer& last) const {
    Racer best{-INFINITY, kNoPlace};
    for (int place = first; place < end; ++place) {
      const float rough = noises[place];
      const Racer racer{rough > -INFINITY ? static_cast<double>(sum(place)) + rough : -INFINITY, place};
      if (ahead(last, racer) && ahead(racer, best)) best = racer;
    }
    return best;
  }
};

__device__ __forceinline__ RaceShare race_share(const DrawParameters& given, int list, int source) {
  const int n = given.beams * given.vocabulary, slice = (n + given.lists - 1) / given.lists;
  const int first = min(list * slice, n), end = min(first + slice, n);
  const Share share = share_of(end - first);
  const int64_t at = static_cast<int64_t>(source) * n;
  return {given.scores + at, given.beam_scores + source * given.beams, given.race + at, given.vocabulary,
          first + static_cast<int>(share.first), first + static_cast<int>(share.end)};
}

// One block per slice and source: grid (lists, B).
__device__ __forceinline__ void count_possible(const DrawParameters& given) {
  SHARED_MEMORY(BlockShared, shared);
  if (*given.stop) return;
  const RaceShare share = race_share(given, blockIdx.x, blockIdx.y);
  uint64_t possible[1] = {static_cast<uint64_t>(share.possible_before(share.end))};
  block_sums(possible, shared);
  if (threadIdx.x == 0) given.race_counts[blockIdx.y * given.lists + blockIdx.x] = static_cast<int32_t>(possible[0]);
}

__device__ __forceinline__ void write_drawn(const DrawParameters& given, int source, int rank, int place) {
  const int64_t at = static_cast<int64_t>(source) * given.n_drawn + rank;
  const int beam = place / given.vocabulary;
  const int64_t n = static_cast<int64_t>(given.beams) * given.vocabulary;
  given.drawn_beams[at] = beam;
  given.drawn_ids[at] = place % given.vocabulary;
  given.drawn_sums[at] = given.scores[source * n + place] + given.beam_scores[source * given.beams + beam];
}

// One block per slice and source: grid (lists, B).
__device__ __forceinline__ void race_slice(const DrawParameters& given) {
  SHARED_MEMORY(RaceShared, shared);
  if (*given.stop) return;
  const int list = blockIdx.x, source = blockIdx.y, n = given.n_drawn;
  const RaceShare share = race_share(given, list, source);
  const uint64_t seed = *given.seed, number = given.numbers[source], length = static_cast<uint64_t>(*given.position) + 1;
  uint64_t earlier[1] = {0};  // possible tokens of the slices before this one
  for (int l = threadIdx.x; l < list; l += kBlockThreads) earlier[0] += given.race_counts[source * given.lists + l];
  block_sums(earlier, shared.block);
  const uint64_t before = block_before(static_cast<uint64_t>(share.possible_before(share.end)), shared.block);
  const uint64_t index = earlier[0] + before;  // of the share's first number in the stream
  Uniforms uniforms(seed, number, 0, length, index);
  for (int place = share.first; place < share.end; ++place)
    share.noises[place] = share.is_possible(place) ? rough_noise(uniforms.next_bits()) : -INFINITY;
  // The first n by the rough race, and those that may be ahead of one of them. No barrier: a thread reads only what it
  // wrote itself.
  Racer mine = share.first_after(Racer{INFINITY, -1});
  double least = -INFINITY;
  int found = 0;
  while (found < n + kMostEqual) {
    const Racer best = block_first(mine, shared.block);
    if (best.place == kNoPlace || (found >= n && (best.value < least || best.value == -INFINITY))) break;
    if (best.place == mine.place) {
      Racer exact = best;
      if (best.value > -INFINITY) {
        Uniforms again(seed, number, 0, length, index + share.possible_before(best.place));
        exact.value = share.sum(best.place) + noise(again.next_bits());
      }
      shared.values[found] = exact.value;
      shared.places[found] = exact.place;
      mine = share.first_after(best);
    }
    if (++found == n) least = best.value - 2 * kNoiseError;
  }
  __syncthreads();
  const int64_t lists = (static_cast<int64_t>(source) * given.lists + list) * n;
  for (int i = threadIdx.x; i < found; i += kBlockThreads) {
    const Racer racer{shared.values[i], shared.places[i]};
    int rank = 0;
    for (int j = 0; j < found; ++j) rank += ahead(Racer{shared.values[j], shared.places[j]}, racer);
    if (rank >= n) continue;
    if (given.lists == 1) {
      write_drawn(given, source, rank, racer.place);
    } else {
      given.race_values[lists + rank] = racer.value;
      given.race_places[lists + rank] = racer.place;
    }
  }
  if (given.lists == 1) return;
  for (int i = found + threadIdx.x; i < n; i += kBlockThreads) {
    given.race_values[lists + i] = -INFINITY;
    given.race_places[lists + i] = kNoPlace;
  }
}

// One block per source.
__device__ __forceinline__ void merge_slices(const DrawParameters& given) {
  SHARED_MEMORY(BlockShared, shared);
  if (*given.stop) return;
  const int source = blockIdx.x, n = given.lists * given.n_drawn;
  const double* values = given.race_values + static_cast<int64_t>(source) * n;
  const int32_t* places = given.race_places + static_cast<int64_t>(source) * n;
  const auto first_after = [&](const Racer& last) {
    Racer best{-INFINITY, kNoPlace};
    for (int i = threadIdx.x; i < n; i += kBlockThreads) {
      const Racer racer{values[i], places[i]};
      if (ahead(last, racer) && ahead(racer, best)) best = racer;
    }
    return best;
  };
  Racer mine = first_after(Racer{INFINITY, -1});
  for (int rank = 0; rank < given.n_drawn; ++rank) {
    const Racer best = block_first(mine, shared);
    if (best.place == mine.place) {
      write_drawn(given, source, rank, best.place);
      mine = first_after(best);
    }
  }
}
