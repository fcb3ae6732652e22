// Products of a few rows with a packed weight: tiles of rows x blocks of 16 outputs whose sums stay in registers.
//
// A block of weights is read from memory once for all rows of a tile, sequentially. With one row the speed is bound by the
// memory's bandwidth, with many rows by arithmetic.
#pragma once

#include <memory>

#include "ahead.h"
#include "epilogue.h"
#include "kernels.h"
#include "tiled.h"
#include "vectors.h"
#if defined(__ARM_FEATURE_DOTPROD)
#include "dot_arm.h"
#else
#include "dot.h"
#endif

namespace KERNELS {

constexpr size_t AHEAD = 128 << 10;  // most bytes of weights that are prefetched

// The most rows of a tile, and the number of blocks of a tile by its rows, chosen so that the sums fill the registers and
// leave room for weights and inputs.
#if defined(__AVX512F__)
template <bool IS_INT8>
constexpr int MOST_ROWS = 8;
template <bool IS_INT8>
constexpr int blocks_of(int rows) {
  return rows == 1 ? 8 : rows <= 4 ? 6 : rows <= 6 ? 4 : 3;
}
#elif defined(__AVX2__)
template <bool IS_INT8>
constexpr int MOST_ROWS = IS_INT8 ? (PACKED_DOT ? 6 : 2) : 6;
template <bool IS_INT8>
constexpr int blocks_of(int rows) {
  return IS_INT8 && !PACKED_DOT ? (rows == 1 ? 2 : 1) : rows == 1 ? 4 : rows == 2 ? 3 : rows == 3 ? 2 : 1;
}
#elif defined(__aarch64__)
template <bool IS_INT8>
constexpr int MOST_ROWS = IS_INT8 && !PACKED_DOT ? 3 : 6;
template <bool IS_INT8>
constexpr int blocks_of(int rows) {
  return IS_INT8 ? (rows > 1 ? 1 : PACKED_DOT ? 4 : 2) : rows == 1 ? 4 : rows == 2 ? 2 : 1;
}
#else
template <bool IS_INT8>
constexpr int MOST_ROWS = 3;
template <bool IS_INT8>
constexpr int blocks_of(int rows) {
  return rows == 1 ? 2 : 1;
}
#endif

// The number of rows above which blocks of weights of 16 bits become floats once for all tiles of rows. Below it each tile
// widens them in its registers, which costs less than fetching twice the bytes.
#if defined(__AVX2__)
template <Storage S>
constexpr int MOST_NARROW = 192;
#elif defined(__aarch64__)
template <Storage S>
constexpr int MOST_NARROW = 48;
#else
template <Storage S>
constexpr int MOST_NARROW = S == Storage::fp16 ? 6 : 192;  // without an instruction for it, fp16 takes a dozen
#endif

inline Floats load_as_float(const float* p, Storage) { return load(p); }
inline Floats load_as_float(const uint16_t* p, Storage storage) {
  return storage == Storage::fp16 ? from_fp16(p) : from_bf16(p);
}

// The sums of a tile with float inputs: [rows][blocks] of 16. Stored: float, or uint16_t for 16 bits.
template <Storage S, typename Stored, int ROWS, int BLOCKS>
inline void sums_of_floats(const Product& p, int row, int block, Floats (&found)[ROWS][BLOCKS * PARTS]) {
  Floats sums[ROWS][BLOCKS * PARTS] = {};
  const int in_line = sizeof(Stored) == 2 || p.narrow ? 2 : 1;  // inputs whose weights of a block fill a line of the cache
  const float* x = p.x + size_t(row) * p.n_in;
  const size_t step = size_t(p.n_in) * BLOCK;
  const Stored* w = static_cast<const Stored*>(p.weight) + size_t(block - p.weight_block) * step;
  const uint16_t* narrow = p.narrow ? p.narrow + size_t(block - p.weight_block) * step : nullptr;
  Ahead ahead(p, row, ROWS, p.n_in / in_line);
  for (int k = 0; k < p.n_in;) {
    if (narrow) {
      ahead.fetch<BLOCKS>(narrow, step, BLOCK * in_line);
    } else {
      ahead.fetch<BLOCKS>(w, step, BLOCK * in_line);
    }
    const int next = k + ahead.every * in_line;
    for (const int end = next < p.n_in ? next : p.n_in; k < end; k++) {
      Floats weights[BLOCKS * PARTS];
#pragma GCC unroll 16
      for (int j = 0; j < BLOCKS * PARTS; j++) {
        weights[j] = load_as_float(w + j / PARTS * step + size_t(k) * BLOCK + j % PARTS * LANES, S);
      }
#pragma GCC unroll 16
      for (int i = 0; i < ROWS; i++) {
        const float value = x[size_t(i) * p.n_in + k];
#pragma GCC unroll 16
        for (int j = 0; j < BLOCKS * PARTS; j++) sums[i][j] += value * weights[j];
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; i++) {
#pragma GCC unroll 32
    for (int j = 0; j < BLOCKS * PARTS; j++) found[i][j] = sums[i][j];
  }
}

// The sums of a tile with rows of bytes, scaled: [rows][blocks] of 16.
template <int ROWS, int BLOCKS>
inline void sums_of_bytes(const Product& p, int row, int block, Floats (&found)[ROWS][BLOCKS * PARTS]) {
  const int width = (p.n_in + 3) / 4 * 4;
  const size_t step = size_t(width) * BLOCK;
  Ints sums[ROWS][BLOCKS * PARTS] = {};
  integer_sums<ROWS, BLOCKS>(p.bytes + size_t(row) * width, width, static_cast<const int8_t*>(p.weight) + size_t(block) * step, step,
                             Ahead(p, row, ROWS, width / 4), sums);
#pragma GCC unroll 32
  for (int j = 0; j < BLOCKS * PARTS; j++) {
    const int output = block * BLOCK + j * LANES;
    const Floats scale = load(p.scale + output);
    const Wrapping weight_sum = Wrapping(load(p.weight_sum + output));
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; i++) {
      found[i][j] = scaled(p, row + i, sums[i][j], scale, weight_sum, ROW_OFFSET);
    }
  }
}

// Computes one tile, applies bias, activation and residual, and writes y.
template <Storage S, int ROWS, int BLOCKS>
inline void tile(const Product& p, int row, int block) {
  Floats sums[ROWS][BLOCKS * PARTS];
  if constexpr (S == Storage::int8) {
    sums_of_bytes<ROWS, BLOCKS>(p, row, block, sums);
  } else if constexpr (S == Storage::fp32) {
    sums_of_floats<S, float, ROWS, BLOCKS>(p, row, block, sums);
  } else {
    sums_of_floats<S, uint16_t, ROWS, BLOCKS>(p, row, block, sums);
  }
  float* first = p.y + size_t(row) * p.stride + (block - p.first_block) * BLOCK;
  if (p.activation == Activation::none && !p.residual && (block + BLOCKS) * BLOCK <= p.n_out) {
#pragma GCC unroll 16
    for (int j = 0; j < BLOCKS * PARTS; j++) {
      const Floats bias = p.bias ? load(p.bias + block * BLOCK + j * LANES) : Floats{};
#pragma GCC unroll 16
      for (int i = 0; i < ROWS; i++) store(first + size_t(i) * p.stride + j * LANES, sums[i][j] + bias);
    }
    return;
  }
  Floats kept[ROWS][BLOCKS * PARTS];  // in memory, where the loop below finds them, so that the sums need not be
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; i++) {
#pragma GCC unroll 16
    for (int j = 0; j < BLOCKS * PARTS; j++) kept[i][j] = sums[i][j];
  }
  for (int j = 0; j < BLOCKS * PARTS; j++) {
    const int output = block * BLOCK + j * LANES, n = p.n_out - output;
    const Floats bias = p.bias ? load(p.bias + output) : Floats{};
    for (int i = 0; i < ROWS; i++) put(p, row + i, output, n, kept[i][j], bias, p.activation);
  }
}

// All rows for blocks [block, block + BLOCKS), in tiles of ROWS rows, then in smaller ones.
template <Storage S, int ROWS, int BLOCKS>
inline void tiles(const Product& p, int row, int block) {
  for (; row + ROWS <= p.rows; row += ROWS) tile<S, ROWS, BLOCKS>(p, row, block);
  if constexpr (ROWS > 1) {
    if (row < p.rows) tiles<S, ROWS - 1, BLOCKS>(p, row, block);
  }
}

// All rows for blocks [block, end), BLOCKS at a time, and the rest fewer at a time. If one tile has all rows, BLOCKS
// is reduced until the blocks and the prefetched next ones fit the second-level cache together.
template <Storage S, int ROWS, int BLOCKS>
inline void groups(const Product& p, int block, int end) {
  const size_t size = size_t(p.n_in) * BLOCK * (S == Storage::int8 ? 1 : S == Storage::fp32 ? 4 : 2);
  if (p.rows > ROWS || BLOCKS == 1 || BLOCKS * size <= AHEAD) {
    for (; block + BLOCKS <= end; block += BLOCKS) tiles<S, ROWS, BLOCKS>(p, 0, block);
  }
  if constexpr (BLOCKS > 1) {
    if (block < end) groups<S, ROWS, BLOCKS <= 3 ? BLOCKS - 1 : BLOCKS / 2>(p, block, end);
  }
}

// Chooses the largest tile that the registers hold and that there are enough rows for.
template <Storage S, int ROWS>
inline void by_rows(const Product& p, int first, int end) {
  if constexpr (ROWS > 1) {
    if (p.rows < ROWS) return by_rows<S, ROWS - 1>(p, first, end);
  }
  groups<S, ROWS, blocks_of<S == Storage::int8>(ROWS)>(p, first, end);
}

// Weights of 16 bits for many rows: the blocks of a tile become floats once, and serve all tiles of rows.
template <Storage S>
inline void widen_first(const Product& p, int first, int end) {
  constexpr int TOGETHER = blocks_of<false>(MOST_ROWS<false>);
  const size_t size = size_t(p.n_in) * BLOCK;
  const std::unique_ptr<float[]> wide(new float[TOGETHER * size]);
  Product q = p;
  q.weight = wide.get();
  for (int block = first; block < end; block += TOGETHER) {
    const int n = end - block < TOGETHER ? end - block : TOGETHER;
    q.weight_block = block;
    q.narrow = static_cast<const uint16_t*>(p.weight) + size_t(block - p.weight_block) * size;
    for (size_t i = 0; i < n * size; i += LANES) store(wide.get() + i, load_as_float(q.narrow + i, S));
    by_rows<Storage::fp32, MOST_ROWS<false>>(q, block, block + n);
  }
}

template <Storage S>
inline void multiply_stored(const Product& p, int first_block, int end_block) {
  constexpr bool IS_16_BITS = S == Storage::fp16 || S == Storage::bf16;
  if (IS_16_BITS && p.rows > MOST_NARROW<S>) {
    if constexpr (IS_16_BITS) widen_first<S>(p, first_block, end_block);
  } else {
    by_rows<S, MOST_ROWS<S == Storage::int8>>(p, first_block, end_block);
  }
}

#if defined(HAS_TILES)
inline void multiply(const Product& p, int first_block, int end_block) {
  (is_tiled(p, end_block - first_block) ? multiply_tiled : kernels_avx512.multiply)(p, first_block, end_block);
}
// The same of the output projection.
inline void multiply_head(const Product& p, int first_block, int end_block) {
  const bool fits = is_tiled(p, end_block - first_block, LEAST_TILED_HEAD);
  (fits ? multiply_tiled : kernels_avx512.multiply)(p, first_block, end_block);
}
#else
inline void multiply(const Product& p, int first_block, int end_block) {
  switch (p.storage) {
    case Storage::fp32: return multiply_stored<Storage::fp32>(p, first_block, end_block);
    case Storage::int8: return multiply_stored<Storage::int8>(p, first_block, end_block);
    case Storage::fp16: return multiply_stored<Storage::fp16>(p, first_block, end_block);
    case Storage::bf16: return multiply_stored<Storage::bf16>(p, first_block, end_block);
  }
}
inline void multiply_head(const Product& p, int first_block, int end_block) { multiply(p, first_block, end_block); }
#endif

// Quantises rows to unsigned bytes, each row with a scale and a zero point so that 0 is exact: x = scale * (byte - zero).
inline void quantise(const float* x, int rows, int n_in, uint8_t* bytes, float* scale, int32_t* zero) {
  typedef uint8_t Bytes __attribute__((vector_size(LANES)));
  const int width = (n_in + 3) / 4 * 4;
  for (int row = 0; row < rows; row++, x += n_in, bytes += width) {
    Floats high[4]{}, low[4]{}, nothing[4]{};  // nothing: 0 unless a value is NaN or infinite
    const auto look = [&](int j, Floats some) {
      high[j] = larger(high[j], some);
      low[j] = smaller(low[j], some);
      nothing[j] += some * 0.0f;
    };
    int i = 0;
    for (; i + 4 * LANES <= n_in; i += 4 * LANES) {
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) look(j, load(x + i + j * LANES));
    }
    for (; i + LANES <= n_in; i += LANES) look(0, load(x + i));
    float top = maximum(larger(larger(high[0], high[1]), larger(high[2], high[3])));
    float bottom = minimum(smaller(smaller(low[0], low[1]), smaller(low[2], low[3])));
    float none = sum((nothing[0] + nothing[1]) + (nothing[2] + nothing[3]));
    for (; i < n_in; i++) {
      top = top > x[i] ? top : x[i];
      bottom = bottom < x[i] ? bottom : x[i];
      none += x[i] * 0.0f;
    }
    if (none != none) {  // no byte stands for NaN or infinity: a NaN scale makes every output of the row NaN
      scale[row] = none;
      zero[row] = 0;
      memset(bytes, 0, width);
      continue;
    }
    const float step = top > bottom ? (top - bottom) / 255.0f : 1.0f;
    const float offset = std::nearbyint(-bottom / step);
    scale[row] = step;
    zero[row] = int32_t(offset);
    const float inverse = 1.0f / step;
    const Floats shift = all(12582912.0f);  // 1.5 * 2**23: adding it rounds to an integer, which is then in the low bits
    const uint32_t rest = uint32_t(zero[row]) - 0x4b400000u;
    for (i = 0; i + 4 * LANES <= n_in; i += 4 * LANES) {
      Ints whole[4];
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) whole[j] = Ints(Wrapping(load(x + i + j * LANES) * inverse + shift) + rest);
      to_bytes(whole, bytes + i);
    }
    for (; i + LANES <= n_in; i += LANES) {
      Floats v = (load(x + i) * inverse + shift) - shift + offset;
      v = larger(smaller(v, all(255.0f)), Floats{});
      const Bytes packed = __builtin_convertvector(__builtin_convertvector(v, Ints), Bytes);
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

// y = activation(first half of a row) * second half.
inline void gate(Activation activation, int width, const float* x, float* y, int rows) {
  for (int row = 0; row < rows; row++, x += 2 * width, y += width) {
    int i = 0;
    for (; i + LANES <= width; i += LANES) store(y + i, activate(load(x + i), activation) * load(x + width + i));
    if (i == width) continue;
    float rest[LANES] = {};
    memcpy(rest, x + i, (width - i) * sizeof(float));
    store(rest, activate(load(rest), activation));
    for (int j = 0; i + j < width; j++) y[i + j] = rest[j] * x[width + i + j];
  }
}

}  // namespace KERNELS
