// Sums of products of bytes on Arm, for products.h: [rows][blocks] of 16 outputs.
//
// The rows lie as unsigned bytes, the weights of four inputs of four outputs side by side: what SDOT (dotprod) and SUDOT
// (i8mm) multiply, by four inputs of a row that one register holds 16 of. From two rows on, i8mm multiplies two rows with
// two outputs and eight inputs at once (USMMLA).
#pragma once

#include <arm_neon.h>

#include "ahead.h"
#include "vectors.h"

namespace KERNELS {

constexpr bool PACKED_DOT = true;  // one instruction multiplies four pairs of bytes and adds the products

#if defined(__ARM_FEATURE_MATMUL_INT8)

constexpr int ROW_OFFSET = 0;  // what is taken from a row's bytes before they are multiplied
typedef uint8x16_t RowBytes;
inline RowBytes row_bytes(const uint8_t* x) { return vld1q_u8(x); }
template <int LANE>
inline int32x4_t dot(int32x4_t sum, int8x16_t weights, RowBytes row) {
  return vsudotq_laneq_s32(sum, weights, row, LANE);
}

#else

constexpr int ROW_OFFSET = 128;
typedef int8x16_t RowBytes;
inline RowBytes row_bytes(const uint8_t* x) { return vreinterpretq_s8_u8(veorq_u8(vld1q_u8(x), vdupq_n_u8(0x80))); }
template <int LANE>
inline int32x4_t dot(int32x4_t sum, int8x16_t weights, RowBytes row) {
  return vdotq_laneq_s32(sum, weights, row, LANE);
}

#endif

// Four inputs, those of one lane of the rows' registers.
template <int LANE, int ROWS, int BLOCKS>
inline void add_four(const RowBytes (&rows)[ROWS], const int8_t* w, size_t step, Ints (&sums)[ROWS][BLOCKS * PARTS]) {
#pragma GCC unroll 16
  for (int j = 0; j < BLOCKS * PARTS; j++) {
    const int8x16_t weights = vld1q_s8(w + j / PARTS * step + j % PARTS * 16);
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; i++) sums[i][j] = Ints(dot<LANE>(int32x4_t(sums[i][j]), weights, rows[i]));
  }
}

template <int ROWS, int BLOCKS>
inline void sums_by_dot(const uint8_t* x, int width, const int8_t* w, size_t step, Ahead& ahead,
                        Ints (&sums)[ROWS][BLOCKS * PARTS]) {
  RowBytes rows[ROWS];
  int k = 0;
  for (; k + 16 <= width; k += 16) {
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; i++) rows[i] = row_bytes(x + size_t(i) * width + k);
    for (int four = 0; four < 4; four++) ahead.step<BLOCKS>(w, step, 4 * BLOCK);
    const int8_t* at = w + size_t(k) * BLOCK;
    add_four<0, ROWS, BLOCKS>(rows, at, step, sums);
    add_four<1, ROWS, BLOCKS>(rows, at + 4 * BLOCK, step, sums);
    add_four<2, ROWS, BLOCKS>(rows, at + 8 * BLOCK, step, sums);
    add_four<3, ROWS, BLOCKS>(rows, at + 12 * BLOCK, step, sums);
  }
  for (; k < width; k += 4) {
    for (int i = 0; i < ROWS; i++) {
      uint8_t four[16] = {};
      memcpy(four, x + size_t(i) * width + k, 4);
      rows[i] = row_bytes(four);
    }
    add_four<0, ROWS, BLOCKS>(rows, w + size_t(k) * BLOCK, step, sums);
  }
}

#if defined(__ARM_FEATURE_MATMUL_INT8)

// Two rows and their products with eight inputs of each pair of outputs. w: of four inputs; `next`: of the four after
// them, or zeros.
template <int PAIRS>
inline void add_eight(const uint8x16_t (&pairs)[PAIRS], const int8_t* w, const int8_t* next,
                      int32x4_t (&sums)[PAIRS][2 * PARTS]) {
#pragma GCC unroll 16
  for (int j = 0; j < PARTS; j++) {
    const int32x4_t near = vreinterpretq_s32_s8(vld1q_s8(w + 16 * j));
    const int32x4_t far = vreinterpretq_s32_s8(vld1q_s8(next + 16 * j));
    const int8x16_t first = vreinterpretq_s8_s32(vzip1q_s32(near, far)), last = vreinterpretq_s8_s32(vzip2q_s32(near, far));
#pragma GCC unroll 16
    for (int i = 0; i < PAIRS; i++) {
      sums[i][2 * j] = vusmmlaq_s32(sums[i][2 * j], pairs[i], first);
      sums[i][2 * j + 1] = vusmmlaq_s32(sums[i][2 * j + 1], pairs[i], last);
    }
  }
}

template <int ROWS>
inline void sums_by_pairs(const uint8_t* x, int width, const int8_t* w, size_t step, Ahead& ahead,
                          Ints (&found)[ROWS][PARTS]) {
  constexpr int PAIRS = (ROWS + 1) / 2;  // the last row of an odd number is its own partner
  static const int8_t zeros[4 * BLOCK] = {};
  int32x4_t sums[PAIRS][2 * PARTS] = {};
  uint8x16_t pairs[PAIRS];
  const auto row = [&](int i) { return x + size_t(i < ROWS ? i : ROWS - 1) * width; };
  int k = 0;
  for (; k + 8 <= width; k += 8) {
#pragma GCC unroll 16
    for (int i = 0; i < PAIRS; i++) pairs[i] = vcombine_u8(vld1_u8(row(2 * i) + k), vld1_u8(row(2 * i + 1) + k));
    for (int four = 0; four < 2; four++) ahead.step<1>(w, step, 4 * BLOCK);
    add_eight(pairs, w + size_t(k) * BLOCK, w + size_t(k + 4) * BLOCK, sums);
  }
  if (k < width) {
    for (int i = 0; i < PAIRS; i++) {
      uint8_t both[16] = {};
      memcpy(both, row(2 * i) + k, 4);
      memcpy(both + 8, row(2 * i + 1) + k, 4);
      pairs[i] = vld1q_u8(both);
    }
    add_eight(pairs, w + size_t(k) * BLOCK, zeros, sums);
  }
  for (int i = 0; i < ROWS; i++) {
    for (int j = 0; j < PARTS; j++) {
      const int32x4_t first = sums[i / 2][2 * j], last = sums[i / 2][2 * j + 1];  // a row's two outputs each
      found[i][j] = i % 2 ? Ints(vcombine_s32(vget_high_s32(first), vget_high_s32(last)))
                          : Ints(vcombine_s32(vget_low_s32(first), vget_low_s32(last)));
    }
  }
}

#endif

template <int ROWS, int BLOCKS>
inline void integer_sums(const uint8_t* x, int width, const int8_t* w, size_t step, Ahead ahead,
                         Ints (&sums)[ROWS][BLOCKS * PARTS]) {
#if defined(__ARM_FEATURE_MATMUL_INT8)
  if constexpr (ROWS > 1 && BLOCKS == 1) return sums_by_pairs<ROWS>(x, width, w, step, ahead, sums);
#endif
  sums_by_dot<ROWS, BLOCKS>(x, width, w, step, ahead, sums);
}

}  // namespace KERNELS
