// Attention of an encoder: every position looks at every position of its source. The matrix of scores is never whole in
// memory: some queries at a time are multiplied with all keys, which are packed like a weight, so that both products are
// those of products.h.
#pragma once

#include "kernels.h"
#include "products.h"

namespace KERNELS {

constexpr int MOST_SCORES = 96 << 10;  // of a group of queries: with them, keys and values stay in the second-level cache

inline int queries_of(int length) {
  const int fitting = MOST_SCORES / length / 8 * 8;  // whole tiles
  return fitting < 8 ? 8 : fitting > 64 ? 64 : fitting;
}

// Keys as a weight [S/16][D][16], of which they are the outputs; and values as a weight [D/16][S][16], of which they are
// the inputs. Padded with zeros.
inline void pack_source(const EncoderAttention& a, const float* keys, const float* values, float* packed_keys,
                        float* packed_values) {
  const size_t row = size_t(3) * a.heads * a.size;
  const int key_blocks = (a.length + BLOCK - 1) / BLOCK, value_blocks = (a.size + BLOCK - 1) / BLOCK;
  for (int s = 0; s < key_blocks * BLOCK; s++) {
    float* to = packed_keys + size_t(s / BLOCK) * a.size * BLOCK + s % BLOCK;
    for (int d = 0; d < a.size; d++) to[size_t(d) * BLOCK] = s < a.length ? keys[size_t(s) * row + d] : 0.0f;
  }
  for (int block = 0; block < value_blocks; block++) {
    const int first = block * BLOCK, n = a.size - first < BLOCK ? a.size - first : BLOCK;
    float* to = packed_values + size_t(block) * a.length * BLOCK;
    for (int s = 0; s < a.length; s++, to += BLOCK) {
      for (int d = 0; d < BLOCK; d++) to[d] = d < n ? values[size_t(s) * row + first + d] : 0.0f;
    }
  }
}

// Adds what the mask has for a query to its scores; strides of 0 stand for sizes of 1.
inline void add_mask(const EncoderAttention& a, int source, int head, int query, float* scores) {
  if (!a.mask) return;
  const float* mask = a.mask + size_t(source) * a.mask_source + size_t(head) * a.mask_head + size_t(query) * a.mask_query;
  int i = 0;
  for (; i + LANES <= a.length; i += LANES) store(scores + i, load(scores + i) + load(mask + i));
  for (; i < a.length; i++) scores[i] += mask[i];
}

inline void attend_encoder(const EncoderAttention& a, int first_pair, int end_pair) {
  const size_t width = size_t(a.heads) * a.size;
  const int group = queries_of(a.length);
  float* packed_keys = new float[size_t(a.length + BLOCK) * a.size];
  float* packed_values = new float[size_t(a.size + BLOCK) * a.length];
  float* queries = new float[size_t(group) * a.size];
  float* scores = new float[size_t(group) * a.length];
  float* totals = new float[group];
  for (int pair = first_pair; pair < end_pair; pair++) {
    const int source = pair / a.heads, head = pair % a.heads;
    const float* rows = a.rows + size_t(source) * a.length * 3 * width + size_t(head) * a.size;
    pack_source(a, rows + width, rows + 2 * width, packed_keys, packed_values);
    for (int first = 0; first < a.length; first += group) {
      const int n = a.length - first < group ? a.length - first : group;
      for (int i = 0; i < n; i++) {
        const float* from = rows + size_t(first + i) * 3 * width;
        for (int d = 0; d < a.size; d++) queries[size_t(i) * a.size + d] = a.scale * from[d];
      }
      Product look{};
      look.rows = n, look.n_in = a.size, look.n_out = a.length, look.stride = a.length;
      look.x = queries, look.weight = packed_keys, look.y = scores;
      multiply(look, 0, (a.length + BLOCK - 1) / BLOCK);
      for (int i = 0; i < n; i++) {
        float* of_query = scores + size_t(i) * a.length;
        add_mask(a, source, head, first + i, of_query);
        totals[i] = exponentials(of_query, a.length);
      }
      Product gather{};
      gather.rows = n, gather.n_in = a.length, gather.n_out = a.size, gather.stride = int(width);
      gather.x = scores, gather.weight = packed_values;
      gather.y = a.y + (size_t(source) * a.length + first) * width + size_t(head) * a.size;
      multiply(gather, 0, (a.size + BLOCK - 1) / BLOCK);
      for (int i = 0; i < n; i++) {
        const float factor = 1.0f / totals[i];
        for (int d = 0; d < a.size; d++) gather.y[size_t(i) * width + d] *= factor;
      }
    }
  }
  delete[] packed_keys;
  delete[] packed_values;
  delete[] queries;
  delete[] scores;
  delete[] totals;
}

}  // namespace KERNELS
