// Attention of one decoder step. All beams of one source and one head are computed together, or where a source has a
// single row some of its heads. Which, depends on the sizes alone, so that threads change no bit.
//
// A beam reads only the positions of its own history, through the table of ancestors. Beams that share a position read
// it one right after the other, so it comes from memory once.
#pragma once

#include "kernels.h"
#include "vectors.h"

namespace KERNELS {

constexpr int GROUP = 4;         // beams whose queries and sums are kept in registers together
constexpr int FEW_VECTORS = LANES == 16 ? 16 : 8;  // vectors of queries or sums that these registers hold
constexpr int EARLY = 6;         // positions by which prefetching is ahead

// Where keys and values of a position lie: in the cache, found through the beam's ancestors, or in the source. For heads
// of a single row instead of beams, those of the k-th head are `distance` further on. shared: whether beams share them.
struct InCache {
  static constexpr bool SHARED = true;
  size_t step;  // floats from one position to the next
  int size;
  const int64_t* ancestors[GROUP];
  const float* operator()(const float* base, int beam, int t) const {
    return base + size_t(t) * step + size_t(ancestors[beam][t]) * size;
  }
};
struct InSource {
  static constexpr bool SHARED = true;
  int size;
  const int32_t* seen;  // positions that the mask shows
  const float* operator()(const float* base, int, int t) const { return base + size_t(seen[t]) * size; }
};

struct HeadsInCache {
  static constexpr bool SHARED = false;
  size_t step, distance;
  const float* operator()(const float* base, int head, int t) const { return base + size_t(t) * step + head * distance; }
};
struct HeadsInSource {
  static constexpr bool SHARED = false;
  int size;
  const int32_t* seen;
  size_t distance;
  const float* operator()(const float* base, int head, int t) const {
    return base + head * distance + size_t(seen[t]) * size;
  }
};

struct Beams {
  const float* query[GROUP];  // [D] each
  float* y[GROUP];            // [D] each
  const float* bias[GROUP];   // [positions] each, or null
};

// Replaces scores [n][GROUP], padded with minus infinity to whole vectors, by e**(score - maximum of the beam).
// factor: 1 / the sum of each beam.
inline void exponentials_of_group(float* scores, int n, float (&factor)[GROUP]) {
  constexpr int SIDE_BY_SIDE = LANES / GROUP;  // positions of a vector
  const int n_vectors = (n + SIDE_BY_SIDE - 1) / SIDE_BY_SIDE;
  for (int i = n * GROUP; i < n_vectors * LANES; i++) scores[i] = -INFINITY;
  Floats high = load(scores), total{};
  for (int i = 1; i < n_vectors; i++) high = larger(high, load(scores + i * LANES));
  Floats top;
  for (int i = 0; i < LANES; i++) {
    float most = high[i % GROUP];
    for (int j = 1; j < SIDE_BY_SIDE; j++) most = most > high[i % GROUP + j * GROUP] ? most : high[i % GROUP + j * GROUP];
    top[i] = most;
  }
  for (int i = 0; i < n_vectors; i++) {
    const Floats e = exponential(load(scores + i * LANES) - top);
    store(scores + i * LANES, e);
    total += e;
  }
  for (int k = 0; k < GROUP; k++) {
    float sum = 0.0f;
    for (int j = 0; j < SIDE_BY_SIDE; j++) sum += total[k + j * GROUP];
    factor[k] = 1.0f / sum;
  }
}

// Asks for what position t needs of keys or values.
template <int VECTORS, int BEAMS, typename Place>
inline void ask_for(const float* base, const Place& place, int t) {
#pragma GCC unroll 16
  for (int k = 0; k < (Place::SHARED ? 1 : BEAMS); k++) {
#pragma GCC unroll 16
    for (int j = 0; j < VECTORS; j++) __builtin_prefetch(place(base, k, t) + j * LANES);
  }
}

// y = softmax(scale * query keys + bias) values over n positions. D = LANES * VECTORS. scores: room for
// GROUP * (n + 4) numbers, [beam][position], or [position][beam] for a whole group.
template <int VECTORS, int BEAMS, typename Place>
void attend_beams(const Beams& b, const float* keys, const float* values, const Place& place, int n, float scale,
                  float* scores) {
  constexpr bool IS_GROUP = BEAMS == GROUP;
  Floats held[BEAMS][VECTORS];  // queries, then the weighted sums of values
#pragma GCC unroll 16
  for (int k = 0; k < BEAMS; k++) {
#pragma GCC unroll 16
    for (int j = 0; j < VECTORS; j++) held[k][j] = scale * load(b.query[k] + j * LANES);
  }
  for (int t = 0; t < n; t++) {
    if (t + EARLY < n) ask_for<VECTORS, BEAMS>(keys, place, t + EARLY);
    Floats products[BEAMS];
#pragma GCC unroll 16
    for (int k = 0; k < BEAMS; k++) {
      const float* key = place(keys, k, t);
      products[k] = held[k][0] * load(key);
#pragma GCC unroll 16
      for (int j = 1; j < VECTORS; j++) products[k] += held[k][j] * load(key + j * LANES);
    }
    if constexpr (IS_GROUP) {
      sums_of_four(products, scores + t * GROUP);
      if (b.bias[0]) {
        for (int k = 0; k < GROUP; k++) scores[t * GROUP + k] += b.bias[k][t];
      }
    } else {
#pragma GCC unroll 16
      for (int k = 0; k < BEAMS; k++) scores[k * n + t] = sum(products[k]) + (b.bias[k] ? b.bias[k][t] : 0.0f);
    }
  }
  float factor[BEAMS];
  if constexpr (IS_GROUP) {
    exponentials_of_group(scores, n, factor);
  } else {
    for (int k = 0; k < BEAMS; k++) factor[k] = 1.0f / exponentials(scores + k * n, n);
  }
#pragma GCC unroll 16
  for (int k = 0; k < BEAMS; k++) {
#pragma GCC unroll 16
    for (int j = 0; j < VECTORS; j++) held[k][j] = Floats{};
  }
  for (int t = 0; t < n; t++) {
    if (t + EARLY < n) ask_for<VECTORS, BEAMS>(values, place, t + EARLY);
#pragma GCC unroll 16
    for (int k = 0; k < BEAMS; k++) {
      const float* value = place(values, k, t);
      const float weight = IS_GROUP ? scores[t * GROUP + k] : scores[k * n + t];
#pragma GCC unroll 16
      for (int j = 0; j < VECTORS; j++) held[k][j] += weight * load(value + j * LANES);
    }
  }
#pragma GCC unroll 16
  for (int k = 0; k < BEAMS; k++) {
#pragma GCC unroll 16
    for (int j = 0; j < VECTORS; j++) store(b.y[k] + j * LANES, factor[k] * held[k][j]);
  }
}

// The same for a single beam and any D.
template <typename Place>
void attend_one(const Beams& b, int beam, const float* keys, const float* values, const Place& place, int n, int size,
                float scale, float* scores) {
  const float *query = b.query[beam], *bias = b.bias[beam];
  float* y = b.y[beam];
  for (int t = 0; t < n; t++) {
    const float* key = place(keys, beam, t);
    float product = 0.0f;
    for (int i = 0; i < size; i++) product += query[i] * key[i];
    scores[t] = scale * product + (bias ? bias[t] : 0.0f);
  }
  const float factor = 1.0f / exponentials(scores, n);
  for (int i = 0; i < size; i++) y[i] = 0.0f;
  for (int t = 0; t < n; t++) {
    const float* value = place(values, beam, t);
    for (int i = 0; i < size; i++) y[i] += factor * scores[t] * value[i];
  }
}

template <typename Place>
using AttendBeams = void (*)(const Beams&, const float*, const float*, const Place&, int, float, float*);

template <int VECTORS, typename Place>
AttendBeams<Place> for_beams(int beams) {
  if constexpr (VECTORS * 4 <= FEW_VECTORS) {
    if (beams == 4) return attend_beams<VECTORS, 4, Place>;
    if (beams == 3) return attend_beams<VECTORS, 3, Place>;
  }
  if constexpr (VECTORS * 2 <= FEW_VECTORS) {
    if (beams == 2) return attend_beams<VECTORS, 2, Place>;
  }
  return attend_beams<VECTORS, 1, Place>;
}

// The kernel for a head size and a number of beams; null if only attend_one serves them.
template <typename Place>
AttendBeams<Place> attend_for(int size, int beams) {
  switch (size) {
    case 32: return for_beams<32 / LANES, Place>(beams);
    case 64: return for_beams<64 / LANES, Place>(beams);
    case 80: return for_beams<80 / LANES, Place>(beams);
    case 96: return for_beams<96 / LANES, Place>(beams);
    case 128: return for_beams<128 / LANES, Place>(beams);
    default: return nullptr;
  }
}

inline int group_of(int size) {
  const int fitting = FEW_VECTORS * LANES / (size > 0 ? size : 1);
  return fitting >= GROUP ? GROUP : fitting >= 2 ? 2 : 1;
}

// The first `count` beams or heads, at most group_of(size).
template <typename Place>
void attend(const Beams& b, int count, const float* keys, const float* values, const Place& place, int n, int size,
            float scale, float* scores) {
  if (const auto together = attend_for<Place>(size, count)) return together(b, keys, values, place, n, scale, scores);
  for (int k = 0; k < count; k++) attend_one(b, k, keys, values, place, n, size, scale, scores);
}

inline int smaller_of(int a, int b) { return a < b ? a : b; }

inline void attend_self(const SelfAttention& a, int first_pair, int end_pair) {
  const int width = a.heads * a.size, most = group_of(a.size);
  float* scores = new float[size_t(GROUP) * (a.longest + 4)];
  const size_t step = size_t(a.n_places) * a.heads * a.beams * a.size;
  InCache place{step, a.size, {}};
  Beams b;
  for (int pair = first_pair; pair < end_pair; pair++) {
    const int source = pair / a.heads, head = pair % a.heads;
    if (a.beams == 1 && head % most) continue;  // taken together with one before it
    const int n_heads = a.beams == 1 ? smaller_of(most, a.heads - head) : 1;
    const int n = a.position_of(source) + 1;
    const size_t at = size_t(a.place_of(source)), begin = (at * a.heads + head) * a.beams * a.size;
    float* keys = a.keys + begin;
    float* values = a.values + begin;
    auto bias_of = [&](int head) {
      return a.bias ? a.bias + size_t(head) * a.capacity + (a.is_relative ? a.capacity - n : 0) : nullptr;
    };
    const size_t written = size_t(n - 1) * step;
    for (int k = 0; k < a.beams; k++) {  // heads of a single row lie side by side in both
      const float* row = a.qkv + size_t(source * a.beams + k) * 3 * width + head * a.size;
      memcpy(keys + written + k * a.size, row + width, n_heads * a.size * sizeof(float));
      memcpy(values + written + k * a.size, row + 2 * width, n_heads * a.size * sizeof(float));
    }
    if (a.beams == 1) {
      for (int k = 0; k < n_heads; k++) {
        b.query[k] = a.qkv + size_t(source) * 3 * width + (head + k) * a.size;
        b.y[k] = a.y + size_t(source) * width + (head + k) * a.size;
        b.bias[k] = bias_of(head + k);
      }
      attend(b, n_heads, keys, values, HeadsInCache{step, size_t(a.size)}, n, a.size, a.scale, scores);
      continue;
    }
    for (int first = 0, count; first < a.beams; first += count) {
      count = smaller_of(a.beams - first, most);
      for (int k = 0; k < count; k++) {
        const size_t r = size_t(source) * a.beams + first + k;
        b.query[k] = a.qkv + r * 3 * width + head * a.size;
        b.y[k] = a.y + r * width + head * a.size;
        b.bias[k] = bias_of(head);
        place.ancestors[k] = a.ancestors + (at * a.beams + first + k) * a.capacity;
      }
      attend(b, count, keys, values, place, n, a.size, a.scale, scores);
    }
  }
  delete[] scores;
}

inline void attend_cross(const CrossAttention& a, int first_pair, int end_pair) {
  const int width = a.heads * a.size, most = group_of(a.size);
  float* scores = new float[size_t(GROUP) * (a.length + 4)];
  int32_t* seen = new int32_t[a.length];
  const InSource place{a.size, seen};
  Beams b{};
  for (int pair = first_pair; pair < end_pair; pair++) {
    const int source = pair / a.heads, head = pair % a.heads;
    if (a.beams == 1 && head % most) continue;  // taken together with one before it
    const size_t at = size_t(a.place_of(source)), of_head = size_t(a.length) * a.size;
    const float* keys = a.keys + (at * a.heads + head) * of_head;
    const float* values = a.values + (at * a.heads + head) * of_head;
    int n = 0;
    for (int s = 0; s < a.length; s++) {
      if (a.mask[at * a.length + s]) seen[n++] = s;
    }
    const int n_all = a.beams == 1 ? smaller_of(most, a.heads - head) : a.beams;
    for (int first = 0, count; first < n_all; first += count) {
      count = smaller_of(n_all - first, most);
      for (int k = 0; k < count; k++) {
        const size_t r = size_t(source) * a.beams + (a.beams == 1 ? 0 : first + k);
        const size_t in_row = size_t(a.beams == 1 ? head + k : head) * a.size;
        b.query[k] = a.query + r * width + in_row;
        b.y[k] = a.y + r * width + in_row;
        if (!n) memset(b.y[k], 0, a.size * sizeof(float));  // the mask hides every position
      }
      if (n && a.beams == 1) {
        attend(b, count, keys, values, HeadsInSource{a.size, seen, of_head}, n, a.size, a.scale, scores);
      } else if (n) {
        attend(b, count, keys, values, place, n, a.size, a.scale, scores);
      }
    }
  }
  delete[] scores;
  delete[] seen;
}

}  // namespace KERNELS
