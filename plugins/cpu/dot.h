// Sums of products of bytes on x86 and with no extension, for products.h: [rows][blocks] of 16 outputs.
#pragma once

#include "ahead.h"
#include "vectors.h"

namespace KERNELS {

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
constexpr bool PACKED_DOT = true;  // whether one instruction multiplies four pairs of bytes and adds the products
#else
constexpr bool PACKED_DOT = false;
#endif
constexpr int ROW_OFFSET = 0;  // what is taken from a row's bytes before they are multiplied

// Weights: four inputs of a block, ready to be multiplied. Sums: the 16 outputs' sums over inputs. `add` multiplies four
// unsigned bytes `x`, the same for all outputs, with the signed weights of each output, and adds the four products.
#if defined(__AVX512VNNI__)
struct Weights {
  __m512i all;
  Weights() = default;
  explicit Weights(const int8_t* w) : all(_mm512_loadu_si512(w)) {}
};
struct Sums {
  Ints all{};
  void add(int32_t x, const Weights& w) { all = Ints(_mm512_dpbusd_epi32(__m512i(all), _mm512_set1_epi32(x), w.all)); }
  Ints part(int) const { return all; }
};
#elif defined(__AVXVNNI__)
struct Weights {
  __m256i halves[2];
  Weights() = default;
  explicit Weights(const int8_t* w) {
    for (int i = 0; i < 2; i++) halves[i] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w + 32 * i));
  }
};
struct Sums {
  Ints halves[2]{};
  void add(int32_t x, const Weights& w) {
    const __m256i four = _mm256_set1_epi32(x);
    halves[0] = Ints(_mm256_dpbusd_avx_epi32(__m256i(halves[0]), four, w.halves[0]));
    halves[1] = Ints(_mm256_dpbusd_avx_epi32(__m256i(halves[1]), four, w.halves[1]));
  }
  Ints part(int i) const { return halves[i]; }
};
#elif defined(__AVX2__)
// Bytes are widened to 16 bits, as vpmaddubsw saturates. A register has four outputs, with two sums each.
struct Weights {
  __m256i wide[4];
  Weights() = default;
  explicit Weights(const int8_t* w) {
    for (int i = 0; i < 4; i++) {
      wide[i] = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w + 16 * i)));
    }
  }
};
struct Sums {
  Ints pairs[4]{};
  void add(int32_t x, const Weights& w) {
    const __m256i four = _mm256_cvtepu8_epi16(_mm_set1_epi32(x));
    for (int i = 0; i < 4; i++) pairs[i] += Ints(_mm256_madd_epi16(four, w.wide[i]));
  }
  Ints part(int i) const {
    const __m256i sums = _mm256_hadd_epi32(__m256i(pairs[2 * i]), __m256i(pairs[2 * i + 1]));
    return Ints(_mm256_permute4x64_epi64(sums, 0xd8));  // hadd adds within 128-bit halves: 0 1 4 5 2 3 6 7
  }
};
#else
struct Weights {
  const int8_t* w;
  Weights() = default;
  explicit Weights(const int8_t* given) : w(given) {}
};
struct Sums {
  Ints parts[PARTS]{};
  void add(int32_t x, const Weights& w) {
    uint8_t bytes[4];
    memcpy(bytes, &x, 4);
    for (int i = 0; i < BLOCK; i++) {
      for (int j = 0; j < 4; j++) parts[i / LANES][i % LANES] += int32_t(bytes[j]) * int32_t(w.w[4 * i + j]);
    }
  }
  Ints part(int i) const { return parts[i]; }
};
#endif

// The sums of products of bytes: [rows][blocks] of 16.
template <int ROWS, int BLOCKS>
inline void integer_sums(const uint8_t* x, int width, const int8_t* w, size_t step, Ahead ahead,
                         Ints (&found)[ROWS][BLOCKS * PARTS]) {
  Sums sums[ROWS][BLOCKS];
  for (int k = 0; k < width;) {
    ahead.fetch<BLOCKS>(w, step, 4 * BLOCK);
    for (const int end = k + 4 * ahead.every < width ? k + 4 * ahead.every : width; k < end; k += 4) {
      Weights weights[BLOCKS];
#pragma GCC unroll 16
      for (int j = 0; j < BLOCKS; j++) weights[j] = Weights(w + j * step + size_t(k) * BLOCK);
#pragma GCC unroll 16
      for (int i = 0; i < ROWS; i++) {
        int32_t four;
        memcpy(&four, x + size_t(i) * width + k, 4);
#pragma GCC unroll 16
        for (int j = 0; j < BLOCKS; j++) sums[i][j].add(four, weights[j]);
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; i++) {
#pragma GCC unroll 16
    for (int j = 0; j < BLOCKS * PARTS; j++) found[i][j] = sums[i][j / PARTS].part(j % PARTS);
  }
}

}  // namespace KERNELS
