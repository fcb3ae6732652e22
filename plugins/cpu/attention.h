// Attention of one decoder step: a pair of source and head at a time, its beams one after the other.
//
// A beam reads only the T positions of its own history, through the table of ancestors; beams that share a history find
// its keys and values in the cache that the beam before left them in.
#pragma once

#include "kernels.h"
#include "vectors.h"

namespace KERNELS {

// Scores of a beam's history, then the mean of its values: y [D] of q [D]. slots [n] say where position t lies.
using Attend = void (*)(const float* q, const float* keys, const float* values, const int32_t* slots, int n, int size,
                        float scale, const float* bias, float* scores, float* y);

// For D = 16 * VECTORS, which stay in registers.
template <int VECTORS>
void attend_vectors(const float* q, const float* keys, const float* values, const int32_t* slots, int n, int size,
                    float scale, const float* bias, float* scores, float* y) {
  Floats query[VECTORS], mean[VECTORS];
#pragma GCC unroll 8
  for (int j = 0; j < VECTORS; j++) {
    query[j] = scale * load(q + j * LANES);
    mean[j] = Floats{};
  }
  for (int t = 0; t < n; t++) {
    const float* key = keys + size_t(slots[t]) * size;
    Floats products{};
#pragma GCC unroll 8
    for (int j = 0; j < VECTORS; j++) products += query[j] * load(key + j * LANES);
    scores[t] = sum(products) + (bias ? bias[t] : 0.0f);
  }
  const float factor = 1.0f / exponentials(scores, n);
  for (int t = 0; t < n; t++) {
    const float* value = values + size_t(slots[t]) * size;
#pragma GCC unroll 8
    for (int j = 0; j < VECTORS; j++) mean[j] += scores[t] * load(value + j * LANES);
  }
#pragma GCC unroll 8
  for (int j = 0; j < VECTORS; j++) store(y + j * LANES, factor * mean[j]);
}

inline void attend_any(const float* q, const float* keys, const float* values, const int32_t* slots, int n, int size,
                       float scale, const float* bias, float* scores, float* y) {
  for (int t = 0; t < n; t++) {
    float product = 0.0f;
    for (int i = 0; i < size; i++) product += q[i] * keys[size_t(slots[t]) * size + i];
    scores[t] = scale * product + (bias ? bias[t] : 0.0f);
  }
  const float factor = 1.0f / exponentials(scores, n);
  for (int i = 0; i < size; i++) y[i] = 0.0f;
  for (int t = 0; t < n; t++) {
    for (int i = 0; i < size; i++) y[i] += factor * scores[t] * values[size_t(slots[t]) * size + i];
  }
}

inline Attend attend_for(int size) {
  switch (size) {
    case 32: return attend_vectors<2>;
    case 64: return attend_vectors<4>;
    case 80: return attend_vectors<5>;
    case 96: return attend_vectors<6>;
    case 128: return attend_vectors<8>;
    default: return attend_any;
  }
}

inline void attend_self(const SelfAttention& a, int first_pair, int end_pair) {
  const int n = int(a.position) + 1, width = a.heads * a.size;
  float* scores = new float[n];
  int32_t* slots = new int32_t[n];
  const Attend attend = attend_for(a.size);
  for (int pair = first_pair; pair < end_pair; pair++) {
    const int source = pair / a.heads, head = pair % a.heads;
    float* keys = a.keys + size_t(pair) * a.n_slots * a.size;
    float* values = a.values + size_t(pair) * a.n_slots * a.size;
    const size_t written = size_t(a.position) * a.beams;
    for (int k = 0; k < a.beams; k++) {
      const float* row = a.qkv + size_t(source * a.beams + k) * 3 * width + head * a.size;
      memcpy(keys + (written + k) * a.size, row + width, a.size * sizeof(float));
      memcpy(values + (written + k) * a.size, row + 2 * width, a.size * sizeof(float));
    }
    for (int k = 0; k < a.beams; k++) {
      const size_t r = size_t(source) * a.beams + k;
      const int64_t* ancestors = a.ancestors + r * a.capacity;
      for (int t = 0; t < n; t++) slots[t] = t * a.beams + int32_t(ancestors[t]);
      attend(a.qkv + r * 3 * width + head * a.size, keys, values, slots, n, a.size, a.scale,
             a.bias ? a.bias + size_t(head) * a.capacity : nullptr, scores, a.y + r * width + head * a.size);
    }
  }
  delete[] scores;
  delete[] slots;
}

inline void attend_cross(const CrossAttention& a, int first_pair, int end_pair) {
  const int width = a.heads * a.size;
  float* scores = new float[a.length];
  int32_t* slots = new int32_t[a.length];
  const Attend attend = attend_for(a.size);
  for (int pair = first_pair; pair < end_pair; pair++) {
    const int source = pair / a.heads, head = pair % a.heads;
    const float* keys = a.keys + size_t(pair) * a.length * a.size;
    const float* values = a.values + size_t(pair) * a.length * a.size;
    int n = 0;
    for (int s = 0; s < a.length; s++) {
      if (a.mask[size_t(source) * a.length + s]) slots[n++] = s;
    }
    for (int k = 0; k < a.beams; k++) {
      const size_t r = size_t(source) * a.beams + k;
      float* y = a.y + r * width + head * a.size;
      if (n) {
        attend(a.query + r * width + head * a.size, keys, values, slots, n, a.size, a.scale, nullptr, scores, y);
      } else {
        memset(y, 0, a.size * sizeof(float));
      }
    }
  }
  delete[] scores;
  delete[] slots;
}

}  // namespace KERNELS
