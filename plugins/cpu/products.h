// Products of a few rows with a packed weight: tiles of rows x blocks of 16 outputs whose sums stay in registers.
//
// A block of weights is read once from memory for all rows of a tile, in the order in which it lies there. With one row
// that is a stream at the memory's speed, with many it is bound by arithmetic.
#pragma once

#include "kernels.h"
#include "vectors.h"

namespace KERNELS {

#if defined(__AVX512F__)
constexpr int MOST_ROWS = 8;  // of a tile
constexpr int blocks_of(int rows) { return rows == 1 ? 8 : rows <= 4 ? 6 : rows <= 6 ? 4 : 3; }
#elif defined(__AVX2__)
constexpr int MOST_ROWS = 3;
constexpr int blocks_of(int rows) { return rows == 1 ? 4 : rows == 2 ? 3 : 2; }
#else
constexpr int MOST_ROWS = 2;
constexpr int blocks_of(int rows) { return rows == 1 ? 2 : 1; }
#endif

inline Floats activate(Floats x, Activation activation) {
  switch (activation) {
    case Activation::relu: return larger(x, Floats{});
    case Activation::silu: return x * sigmoid(x);
    case Activation::quick_gelu: return x * sigmoid(1.702f * x);
    case Activation::gelu: return 0.5f * x * (1.0f + error_function(x * 0.70710678118654752f));
    case Activation::gelu_tanh:
      return 0.5f * x * (1.0f + hyperbolic_tangent(0.7978845608028654f * (x + 0.044715f * x * x * x)));
    case Activation::none: break;
  }
  return x;
}

// The weights of the next BLOCKS blocks are asked for while the tiles of these are computed, each tile asking for its
// share: so memory is busy all the time, and a core waits for it less than its own prefetching lets it.
struct Ahead {
  int place, every;  // the next vector of each block to ask for; how many steps of a tile pay for one

  Ahead(const Product& p, int row, int tile_rows, int n_steps)
      : place(int(int64_t(row) * n_steps / p.rows)), every((p.rows + tile_rows - 1) / tile_rows) {}

  template <int BLOCKS, typename T>
  void fetch(const T* w, size_t step, int width) {
#pragma GCC unroll 16
    for (int j = 0; j < BLOCKS; j++) __builtin_prefetch(w + (BLOCKS + j) * step + size_t(place) * width, 0, 2);
    place++;
  }
};

// The sums of a tile, where a product's rows are floats: [rows][blocks] of 16.
template <int ROWS, int BLOCKS>
inline void sums_of_floats(const Product& p, int row, int block, Floats (&sums)[ROWS][BLOCKS]) {
  const float* x = p.x + size_t(row) * p.n_in;
  const float* w = p.weight + size_t(block) * p.n_in * LANES;
  const size_t step = size_t(p.n_in) * LANES;
  Ahead ahead(p, row, ROWS, p.n_in);
  for (int k = 0; k < p.n_in;) {
    ahead.fetch<BLOCKS>(w, step, LANES);
    for (const int end = k + ahead.every < p.n_in ? k + ahead.every : p.n_in; k < end; k++) {
      Floats weights[BLOCKS];
#pragma GCC unroll 16
      for (int j = 0; j < BLOCKS; j++) weights[j] = load(w + j * step + size_t(k) * LANES);
#pragma GCC unroll 16
      for (int i = 0; i < ROWS; i++) {
        const float value = x[size_t(i) * p.n_in + k];
#pragma GCC unroll 16
        for (int j = 0; j < BLOCKS; j++) sums[i][j] += value * weights[j];
      }
    }
  }
}

// total += four products of bytes in each of 16 lanes: unsigned `x` (the same four in all lanes) with signed `w`.
#if defined(__AVX512VNNI__)
using Sums = Ints;
inline Sums no_sums() { return Sums{}; }
inline Sums add_products(Sums total, int32_t x, const int8_t* w) {
  return Sums(_mm512_dpbusd_epi32(__m512i(total), _mm512_set1_epi32(x), _mm512_loadu_si512(w)));
}
inline Ints result(Sums total) { return total; }
#elif defined(__AVX2__)
// Widened to 16 bits, as vpmaddubsw saturates: two partial sums for each output, four outputs a register.
struct Sums {
  __m256i parts[4];
};
inline Sums no_sums() { return Sums{}; }
inline Sums add_products(Sums total, int32_t x, const int8_t* w) {
  const __m256i wide_x = _mm256_cvtepu8_epi16(_mm_set1_epi32(x));
  for (int i = 0; i < 4; i++) {
    const __m256i wide_w = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w + 16 * i)));
    total.parts[i] = _mm256_add_epi32(total.parts[i], _mm256_madd_epi16(wide_x, wide_w));
  }
  return total;
}
inline Ints result(Sums total) {
  int32_t pairs[4][8];
  memcpy(pairs, &total, sizeof pairs);
  Ints found;
  for (int i = 0; i < LANES; i++) found[i] = pairs[i / 4][i % 4 * 2] + pairs[i / 4][i % 4 * 2 + 1];
  return found;
}
#else
using Sums = Ints;
inline Sums no_sums() { return Ints{}; }
inline Sums add_products(Sums total, int32_t x, const int8_t* w) {
  uint8_t bytes[4];
  memcpy(bytes, &x, 4);
  for (int i = 0; i < LANES; i++) {
    for (int j = 0; j < 4; j++) total[i] += int32_t(bytes[j]) * int32_t(w[4 * i + j]);
  }
  return total;
}
inline Ints result(Sums total) { return total; }
#endif

template <int ROWS, int BLOCKS>
inline void sums_of_bytes(const Product& p, int row, int block, Floats (&found)[ROWS][BLOCKS]) {
  const int width = (p.n_in + 3) / 4 * 4;
  const uint8_t* x = p.bytes + size_t(row) * width;
  const int8_t* w = p.weight8 + size_t(block) * width * LANES;
  const size_t step = size_t(width) * LANES;
  Sums sums[ROWS][BLOCKS];
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; i++) {
#pragma GCC unroll 16
    for (int j = 0; j < BLOCKS; j++) sums[i][j] = no_sums();
  }
  Ahead ahead(p, row, ROWS, width / 4);
  for (int k = 0; k < width;) {
    ahead.fetch<BLOCKS>(w, step, 4 * LANES);
    for (const int end = k + 4 * ahead.every < width ? k + 4 * ahead.every : width; k < end; k += 4) {
#pragma GCC unroll 16
      for (int i = 0; i < ROWS; i++) {
        int32_t four;
        memcpy(&four, x + size_t(i) * width + k, 4);
#pragma GCC unroll 16
        for (int j = 0; j < BLOCKS; j++) sums[i][j] = add_products(sums[i][j], four, w + j * step + size_t(k) * LANES);
      }
    }
  }
#pragma GCC unroll 16
  for (int j = 0; j < BLOCKS; j++) {
    const int output = (block + j) * LANES;
    const Floats scale = load(p.scale + output);
    const Ints weight_sum = load(p.weight_sum + output);
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; i++) {
      const Ints exact = result(sums[i][j]) - p.row_zero[row + i] * weight_sum;
      found[i][j] = to_floats(exact) * (scale * p.row_scale[row + i]);
    }
  }
}

// One tile: its sums with bias, activation and residual go to y.
template <bool IS_INT8, int ROWS, int BLOCKS>
inline void tile(const Product& p, int row, int block) {
  Floats sums[ROWS][BLOCKS] = {};
  if constexpr (IS_INT8) {
    sums_of_bytes<ROWS, BLOCKS>(p, row, block, sums);
  } else {
    sums_of_floats<ROWS, BLOCKS>(p, row, block, sums);
  }
  for (int j = 0; j < BLOCKS; j++) {
    const int output = (block + j) * LANES, n = p.n_out - output;
    const Floats bias = p.bias ? load(p.bias + output) : Floats{};
    for (int i = 0; i < ROWS; i++) {
      const Floats values = activate(sums[i][j] + bias, p.activation);
      float* y = p.y + size_t(row + i) * p.stride + (output - p.first_block * LANES);
      const float* residual = p.residual ? p.residual + size_t(row + i) * p.n_out + output : nullptr;
      if (n >= LANES) {
        store(y, residual ? values + load(residual) : values);
      } else {
        for (int lane = 0; lane < n; lane++) y[lane] = values[lane] + (residual ? residual[lane] : 0.0f);
      }
    }
  }
}

// All rows for blocks [block, block + BLOCKS), in tiles of at most ROWS rows; then the rest.
template <bool IS_INT8, int ROWS, int BLOCKS>
inline void tiles(const Product& p, int row, int block) {
  for (; row + ROWS <= p.rows; row += ROWS) tile<IS_INT8, ROWS, BLOCKS>(p, row, block);
  if constexpr (ROWS > 1) {
    if (row < p.rows) tiles<IS_INT8, ROWS - 1, BLOCKS>(p, row, block);
  }
}

// All rows for blocks [block, end), BLOCKS at a time; then the rest, half as many at a time.
template <bool IS_INT8, int ROWS, int BLOCKS>
inline void groups(const Product& p, int block, int end) {
  for (; block + BLOCKS <= end; block += BLOCKS) tiles<IS_INT8, ROWS, BLOCKS>(p, 0, block);
  if constexpr (BLOCKS > 1) {
    if (block < end) groups<IS_INT8, ROWS, BLOCKS / 2>(p, block, end);
  }
}

// The largest tiles that the rows fill and the registers hold.
template <bool IS_INT8, int ROWS>
inline void by_rows(const Product& p, int first, int end) {
  if constexpr (ROWS > 1) {
    if (p.rows < ROWS) return by_rows<IS_INT8, ROWS - 1>(p, first, end);
  }
  groups<IS_INT8, ROWS, blocks_of(ROWS)>(p, first, end);
}

inline void multiply(const Product& p, int first_block, int end_block) {
  if (p.weight8) {
    by_rows<true, MOST_ROWS>(p, first_block, end_block);
  } else {
    by_rows<false, MOST_ROWS>(p, first_block, end_block);
  }
}

// Rows to unsigned bytes with a scale and a zero point each, so that 0 is exact: x = scale * (byte - zero).
inline void quantise(const float* x, int rows, int n_in, uint8_t* bytes, float* scale, int32_t* zero) {
  const int width = (n_in + 3) / 4 * 4;
  for (int row = 0; row < rows; row++, x += n_in, bytes += width) {
    Floats high{}, low{};
    float top = 0.0f, bottom = 0.0f;
    int i = 0;
    for (; i + LANES <= n_in; i += LANES) {
      high = larger(high, load(x + i));
      low = smaller(low, load(x + i));
    }
    top = maximum(high);
    bottom = minimum(low);
    for (; i < n_in; i++) {
      top = top > x[i] ? top : x[i];
      bottom = bottom < x[i] ? bottom : x[i];
    }
    const float step = top > bottom ? (top - bottom) / 255.0f : 1.0f;
    const float offset = std::nearbyint(-bottom / step);
    scale[row] = step;
    zero[row] = int32_t(offset);
    const float inverse = 1.0f / step;
    const Floats shift = all(12582912.0f);
    for (i = 0; i + LANES <= n_in; i += LANES) {
      Floats v = (load(x + i) * inverse + shift) - shift + offset;
      v = larger(smaller(v, all(255.0f)), Floats{});
      const Ints whole = __builtin_convertvector(v, Ints);
      typedef uint8_t Bytes __attribute__((vector_size(16)));
      const Bytes packed = __builtin_convertvector(whole, Bytes);
      memcpy(bytes + i, &packed, sizeof packed);
    }
    for (; i < n_in; i++) {
      const float v = std::nearbyint(x[i] * inverse) + offset;
      bytes[i] = uint8_t(v < 0.0f ? 0.0f : v > 255.0f ? 255.0f : v);
    }
    for (; i < width; i++) bytes[i] = 0;
  }
}

inline void normalise(const Norm& n, const float* x, float* y, int first_row, int end_row) {
  const int width = n.width;
  for (int row = first_row; row < end_row; row++) {
    const float* in = x + size_t(row) * width;
    float* out = y + size_t(row) * width;
    float mean = 0.0f;
    int i;
    if (n.bias) {
      Floats total{};
      for (i = 0; i + LANES <= width; i += LANES) total += load(in + i);
      mean = sum(total);
      for (; i < width; i++) mean += in[i];
      mean /= float(width);
    }
    Floats squares{};
    for (i = 0; i + LANES <= width; i += LANES) {
      const Floats d = load(in + i) - mean;
      squares += d * d;
    }
    float variance = sum(squares);
    for (; i < width; i++) variance += (in[i] - mean) * (in[i] - mean);
    const float factor = 1.0f / std::sqrt(variance / float(width) + n.epsilon);
    for (i = 0; i + LANES <= width; i += LANES) {
      const Floats v = (load(in + i) - mean) * factor * load(n.weight + i);
      store(out + i, n.bias ? v + load(n.bias + i) : v);
    }
    for (; i < width; i++) out[i] = (in[i] - mean) * factor * n.weight[i] + (n.bias ? n.bias[i] : 0.0f);
  }
}

}  // namespace KERNELS
