// Attention of an encoder in whose model int8 weights are wanted: both products are of bytes.
//
// Queries and keys are quantised for each position, values for each channel, after the mean over the positions was taken
// from keys and values: softmax does not change when all scores of a query grow alike, and the weights of a query add up
// to 1, so that the values' mean is added to the result as it is. Of scores that are near each other the weights are small
// and many; they have 16 bits, as two bytes with a product each. Keys and queries as in SageAttention (arXiv:2410.02367).
#pragma once

#include "kernels.h"
#include "products.h"

namespace KERNELS {

constexpr int MOST_POSITIONS = 32768;      // more might not fit the sums of 32 bits
constexpr float WEIGHT_STEPS = 255 * 256;  // what the largest weight of a query becomes

inline int in_fours(int n) { return (n + 3) / 4 * 4; }
inline int in_blocks(int n) { return (n + BLOCK - 1) / BLOCK * BLOCK; }
inline int in_tiles(int n) { return (n + TILE_BYTES - 1) / TILE_BYTES * TILE_BYTES; }

// A weight of bytes that was made of a source's keys or values. mean [n_in or n_out]: what was taken from its rows.
struct Bytes {
  int n_out, width;
  int8_t* values;
  float* scale;
  int32_t* sum;
  float* inverse;  // of the scales
  float* mean;

  Bytes(int n_out_, int n_in) : n_out(in_blocks(n_out_)), width(in_fours(n_in)) {
    values = new int8_t[size_t(n_out) * width];
    scale = new float[n_out];
    sum = new int32_t[n_out];
    inverse = new float[n_out];
    mean = new float[in_blocks(n_out > n_in ? n_out : n_in)]();
  }
  ~Bytes() {
    delete[] values;
    delete[] scale;
    delete[] sum;
    delete[] inverse;
    delete[] mean;
  }
  Bytes(const Bytes&) = delete;

  void clear() {
    memset(values, 0, size_t(n_out) * width);
    memset(sum, 0, n_out * sizeof(int32_t));
    for (int i = 0; i < n_out; i++) scale[i] = inverse[i] = 0.0f;
  }
  // most: the largest absolute value of the output; NaN where one is none, which makes the whole output NaN.
  void scale_to(int output, float most) {
    const bool is_nothing = most < 1e-30f;  // whose inverse would be no number
    scale[output] = is_nothing ? 1.0f : most / 127.0f;
    inverse[output] = is_nothing ? 0.0f : 127.0f / most;
  }
};

// n numbers, of which a vector holds as many as it can; behind them are zeros.
inline Floats load_some(const float* x, int n) {
  if (n >= LANES) return load(x);
  float some[LANES] = {};
  if (n > 0) memcpy(some, x, n * sizeof(float));
  return load(some);
}

// The mean of each channel over the positions, and its largest distance from it, NaN where a number is none.
inline void means_of(const float* rows, size_t row, int length, int size, float* mean, float* most) {
  for (int d = 0; d < size; d++) mean[d] = most[d] = 0.0f;
  for (int s = 0; s < length; s++) {
    for (int d = 0; d < size; d++) mean[d] += rows[s * row + d];
  }
  for (int d = 0; d < size; d++) mean[d] /= float(length);
  for (int s = 0; s < length; s++) {
    for (int d = 0; d < size; d++) {
      const float distance = std::fabs(rows[s * row + d] - mean[d]);
      most[d] = most[d] > distance ? most[d] : distance;
    }
  }
  for (int d = 0; d < size; d++) {
    if (!(std::fabs(mean[d]) < INFINITY)) most[d] = NAN;
  }
}

// LANES numbers without their means; 0 for those beyond the n that there are.
inline Floats centred(const float* x, const float* mean, int n) { return load_some(x, n) - load_some(mean, n); }

// From -127 to 127; 0 for what is no number.
inline Ints in_bytes(Floats x) { return to_nearest(x) & Ints(magnitude(x) < 127.5f); }

inline void pack_keys(const float* keys, size_t row, int length, int size, Bytes& packed) {
  typedef int8_t Packed __attribute__((vector_size(LANES)));
  packed.clear();
  float* most = new float[size];
  means_of(keys, row, length, size, packed.mean, most);
  for (int s = 0; s < length; s++) {
    const float* key = keys + s * row;
    Floats largest{}, nothing{};
    for (int d = 0; d < size; d += LANES) {
      const Floats value = magnitude(centred(key + d, packed.mean + d, size - d));
      largest = larger(largest, value);
      nothing += value * 0.0f;
    }
    packed.scale_to(s, maximum(largest) + sum(nothing));
    int8_t* to = packed.values + (size_t(s / BLOCK) * packed.width * BLOCK + s % BLOCK * 4);
    Ints sums{};
    for (int d = 0; d < size; d += LANES) {
      const Ints whole = in_bytes(centred(key + d, packed.mean + d, size - d) * packed.inverse[s]);
      const Packed bytes = __builtin_convertvector(whole, Packed);
      for (int i = 0; i < LANES && d + i < packed.width; i += 4) {
        memcpy(to + (d + i) * BLOCK, reinterpret_cast<const int8_t*>(&bytes) + i, 4);
      }
      sums += whole;
    }
    for (int lane = 0; lane < LANES; lane++) packed.sum[s] += sums[lane];
  }
  delete[] most;
}

inline void pack_values(const float* values, size_t row, int length, int size, Bytes& packed) {
  packed.clear();
  float* most = new float[size];
  means_of(values, row, length, size, packed.mean, most);
  for (int d = size; d < packed.n_out; d++) packed.mean[d] = 0.0f;  // it is a bias, padded like one
  for (int d = 0; d < size; d++) packed.scale_to(d, most[d]);
  for (int d = 0; d < size; d += LANES) {
    const Floats inverse = load(packed.inverse + d);
    int8_t* to = packed.values + (size_t(d / BLOCK) * packed.width * BLOCK + d % BLOCK * 4);
    Ints sums{};
    for (int s = 0; s < length; s += 4, to += 4 * BLOCK) {  // four bytes of each channel side by side
      Wrapping four{};
      for (int i = 0; i < 4 && s + i < length; i++) {
        const Ints whole = in_bytes(centred(values + (s + i) * row + d, packed.mean + d, size - d) * inverse);
        four |= (Wrapping(whole) & 255) << (8 * i);
        sums += whole;
      }
      memcpy(to, &four, sizeof four);
    }
    memcpy(packed.sum + d, &sums, sizeof sums);
  }
  delete[] most;
}

// Makes weights of a query's scores [n], e**(score - the largest), as high and low bytes [width], the rest of which is 0.
// Returns the sum of all, NaN where a score is none.
inline float split_weights(const float* scores, int n, int width, uint8_t* high, uint8_t* low) {
  typedef uint8_t Eight __attribute__((vector_size(LANES)));
  Floats largest = all(-INFINITY);
  int i = 0;
  for (; i + LANES <= n; i += LANES) largest = larger(largest, load(scores + i));
  float top = maximum(largest);
  for (; i < n; i++) top = top > scores[i] ? top : scores[i];
  Floats nothing{};
  const auto steps = [&](Floats of_scores) {
    const Floats weights = exponential(of_scores - top);
    nothing += weights * 0.0f;
    return __builtin_convertvector(larger(smaller(weights * WEIGHT_STEPS + 0.5f, all(WEIGHT_STEPS)), Floats{}), Ints);
  };
  Ints sums{};
  for (i = 0; i + LANES <= n; i += LANES) {
    const Ints whole = steps(load(scores + i));
    const Eight upper = __builtin_convertvector(whole >> 8, Eight), lower = __builtin_convertvector(whole & 255, Eight);
    memcpy(high + i, &upper, sizeof upper);
    memcpy(low + i, &lower, sizeof lower);
    sums += whole;
  }
  float total = 0.0f;
  for (int lane = 0; lane < LANES; lane++) total += float(sums[lane]);
  const Ints rest = i < n ? steps(load_some(scores + i, n - i)) : Ints{};
  for (int lane = 0; i < n; i++, lane++) {
    high[i] = uint8_t(rest[lane] >> 8);
    low[i] = uint8_t(rest[lane]);
    total += float(rest[lane]);
  }
  for (; i < width; i++) high[i] = low[i] = 0;
  return total + sum(nothing);
}

// A product with few outputs. Four blocks, as of heads of 64, are those of one tile where it has six rows; with eight rows
// they would be three and one, and the tile of one block reads as many inputs as that of three.
inline void multiply_narrow(Product p) {
  const int n_blocks = (p.n_out + BLOCK - 1) / BLOCK, n_rows = p.rows;
  constexpr int ROWS = 6;
  if (n_blocks != 4 || blocks_of<true>(ROWS) != n_blocks || MOST_ROWS<true> < ROWS || is_tiled(p, n_blocks)) {
    return multiply(p, 0, n_blocks);
  }
  for (int first = 0; first < n_rows; first += ROWS) {
    p.rows = n_rows - first < ROWS ? n_rows - first : ROWS;
    multiply(p, 0, n_blocks);
    p.y += size_t(ROWS) * p.stride;
    p.bytes += size_t(ROWS) * in_fours(p.n_in);
    p.row_scale += ROWS, p.row_zero += ROWS;
    if (p.residual) p.residual += size_t(ROWS) * p.n_out;
  }
}

// Queries [rows, D] on all keys and values of one source and head. y: rows `stride` floats apart.
class ByteAttention {
 public:
  ByteAttention(int length, int size, int group)
      : length_(length), size_(size), keys_(length, size), values_(size, in_tiles(length)) {
    bytes_ = new uint8_t[size_t(group) * (keys_.width > 2 * values_.width ? keys_.width : 2 * values_.width)];
    scale_ = new float[size_t(group) * 2];
    zero_ = new int32_t[group];
    low_ = new float[size_t(group) * size];
  }
  ~ByteAttention() {
    delete[] bytes_;
    delete[] scale_;
    delete[] zero_;
    delete[] low_;
  }
  ByteAttention(const ByteAttention&) = delete;

  void pack(const float* keys, const float* values, size_t row) {
    pack_keys(keys, row, length_, size_, keys_);
    pack_values(values, row, length_, size_, values_);
  }

  // scores [rows, S]
  void look(const float* queries, int rows, float* scores) {
    quantise(queries, rows, size_, bytes_, scale_, zero_);
    Product p = product(rows, size_, length_, keys_, bytes_, scale_, zero_);
    p.y = scores, p.stride = length_;
    multiply(p, 0, keys_.n_out / BLOCK);
  }

  void gather(const float* scores, int rows, float* y, size_t stride) {
    const size_t width = size_t(values_.width);
    uint8_t *high = bytes_, *low = bytes_ + rows * width;
    float *of_high = scale_, *of_low = scale_ + rows;
    for (int i = 0; i < rows; i++) {
      const float* of_query = scores + size_t(i) * length_;
      of_low[i] = 1.0f / split_weights(of_query, length_, values_.width, high + i * width, low + i * width);
      of_high[i] = 256.0f * of_low[i];
      zero_[i] = 0;
    }
    Product p = product(rows, values_.width, size_, values_, low, of_low, zero_);
    p.bias = values_.mean, p.y = low_, p.stride = size_;
    multiply_narrow(p);
    p = product(rows, values_.width, size_, values_, high, of_high, zero_);
    p.residual = low_, p.y = y, p.stride = int(stride);
    multiply_narrow(p);
  }

 private:
  static Product product(int rows, int n_in, int n_out, const Bytes& weight, const uint8_t* bytes, const float* scale,
                         const int32_t* zero) {
    Product p{};
    p.rows = rows, p.n_in = n_in, p.n_out = n_out;
    p.storage = Storage::int8, p.weight = weight.values, p.scale = weight.scale, p.weight_sum = weight.sum;
    p.bytes = bytes, p.row_scale = scale, p.row_zero = zero;
    return p;
  }

  const int length_, size_;
  Bytes keys_, values_;
  uint8_t* bytes_;
  float* scale_;
  int32_t* zero_;
  float* low_;
};

}  // namespace KERNELS
