// Attention of an encoder: every position looks at every position of its source. The matrix of scores is never whole in
// memory: some queries at a time are multiplied with all keys, which are packed like a weight, so that both products are
// those of products.h.
#pragma once

#include "encoder_bytes.h"
#include "kernels.h"
#include "products.h"

namespace KERNELS {

constexpr int MOST_SCORES = 96 << 10;  // of a group of queries: with them, keys and values stay in the second-level cache

inline int queries_of(int length, int most) {
  const int fitting = MOST_SCORES / length / 8 * 8;  // whole tiles
  return fitting < 8 ? 8 : fitting > most ? most : fitting;
}

// Keys as a weight [S/16][D][16], of which they are the outputs; and values as a weight [D/16][S][16], of which they are
// the inputs. Padded with zeros.
inline void pack_source(const float* keys, const float* values, size_t row, int length, int size, float* packed_keys,
                        float* packed_values) {
  const int key_blocks = (length + BLOCK - 1) / BLOCK, value_blocks = (size + BLOCK - 1) / BLOCK;
  for (int s = 0; s < key_blocks * BLOCK; s++) {
    float* to = packed_keys + size_t(s / BLOCK) * size * BLOCK + s % BLOCK;
    for (int d = 0; d < size; d++) to[size_t(d) * BLOCK] = s < length ? keys[size_t(s) * row + d] : 0.0f;
  }
  for (int block = 0; block < value_blocks; block++) {
    const int first = block * BLOCK, n = size - first < BLOCK ? size - first : BLOCK;
    float* to = packed_values + size_t(block) * length * BLOCK;
    for (int s = 0; s < length; s++, to += BLOCK) {
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

// Packs a source and a head, and attends to it; in floats.
class FloatAttention {
 public:
  static constexpr int MOST_QUERIES = 64;  // together

  FloatAttention(int length, int size, int group) : length_(length), size_(size) {
    queries_ = new float[size_t(group) * size];
    keys_ = new float[size_t(length + BLOCK) * size];
    values_ = new float[size_t(size + BLOCK) * length];
    totals_ = new float[group];
  }
  ~FloatAttention() {
    delete[] queries_;
    delete[] keys_;
    delete[] values_;
    delete[] totals_;
  }
  FloatAttention(const FloatAttention&) = delete;
  static int stride_of(int length) { return length; }

  void pack(const float* keys, const float* values, size_t row) {
    pack_source(keys, values, row, length_, size_, keys_, values_);
  }

  // queries: rows `row` floats apart, to be multiplied by `scale`
  void look(const float* queries, size_t row, int rows, float scale, float* scores) {
    for (int i = 0; i < rows; i++) {
      for (int d = 0; d < size_; d++) queries_[size_t(i) * size_ + d] = scale * queries[i * row + d];
    }
    Product p{};
    p.rows = rows, p.n_in = size_, p.n_out = length_, p.stride = length_;
    p.x = queries_, p.weight = keys_, p.y = scores;
    multiply(p, 0, (length_ + BLOCK - 1) / BLOCK);
  }

  // scores [rows, S]: become their exponentials
  void gather(float* scores, int rows, float* y, size_t stride) {
    for (int i = 0; i < rows; i++) totals_[i] = exponentials(scores + size_t(i) * length_, length_);
    Product p{};
    p.rows = rows, p.n_in = length_, p.n_out = size_, p.stride = int(stride);
    p.x = scores, p.weight = values_, p.y = y;
    multiply(p, 0, (size_ + BLOCK - 1) / BLOCK);
    for (int i = 0; i < rows; i++) {
      const float factor = 1.0f / totals_[i];
      for (int d = 0; d < size_; d++) y[size_t(i) * stride + d] *= factor;
    }
  }

 private:
  const int length_, size_;
  float *queries_, *keys_, *values_, *totals_;
};

template <typename Attention>
void attend_all(const EncoderAttention& a, int first_pair, int end_pair) {
  const size_t width = size_t(a.heads) * a.size;
  const int group = queries_of(a.length, Attention::MOST_QUERIES);
  Attention attention(a.length, a.size, group);
  const size_t stride = Attention::stride_of(a.length);
  float* scores = new float[group * stride];
  for (int pair = first_pair; pair < end_pair; pair++) {
    const int source = pair / a.heads, head = pair % a.heads;
    const float* rows = a.rows + size_t(source) * a.length * 3 * width + size_t(head) * a.size;
    attention.pack(rows + width, rows + 2 * width, 3 * width);
    for (int first = 0; first < a.length; first += group) {
      const int n = a.length - first < group ? a.length - first : group;
      attention.look(rows + size_t(first) * 3 * width, 3 * width, n, a.scale, scores);
      for (int i = 0; i < n; i++) add_mask(a, source, head, first + i, scores + i * stride);
      attention.gather(scores, n, a.y + (size_t(source) * a.length + first) * width + size_t(head) * a.size, width);
    }
  }
  delete[] scores;
}

inline void attend_encoder(const EncoderAttention& a, int first_pair, int end_pair) {
  if (a.is_int8 && !a.mask && a.length <= MOST_POSITIONS) {
    attend_all<ByteAttention>(a, first_pair, end_pair);
  } else {
    attend_all<FloatAttention>(a, first_pair, end_pair);
  }
}

}  // namespace KERNELS
