// How the numbers of a packed weight are kept, one at a time: for what reads single rows. vectors.h reads many at once.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kernels.h"

template <Storage S>
constexpr bool IS_INT8 = S == Storage::int8;

template <Storage S>
using Number = std::conditional_t<S == Storage::fp32, float, std::conditional_t<IS_INT8<S>, int8_t, uint16_t>>;

inline float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// The number, exactly, whatever the thread does with subnormal numbers; of int8 before it is scaled.
template <Storage S>
float as_float(Number<S> stored) {
  if constexpr (S == Storage::bf16) {
    return float_of(uint32_t(stored) << 16);
  } else if constexpr (S == Storage::fp16) {
    const uint32_t sign = uint32_t(stored & 0x8000) << 16, rest = uint32_t(stored & 0x7fff) << 13;
    const bool is_subnormal = !(stored & 0x7c00), is_finite = (stored & 0x7c00) != 0x7c00;
    const float magnitude = is_subnormal ? float_of(rest + (113u << 23)) - 0x1p-14f
                                         : float_of(rest + ((is_finite ? 112u : 224u) << 23));  // other biases
    return sign ? -magnitude : magnitude;
  } else {
    return float(stored);
  }
}

// Row `row` [n_in] of a packed weight of floats or of 16 bits.
template <Storage S>
void row_as_floats(const void* weight, int64_t row, int64_t n_in, float* out) {
  static_assert(!IS_INT8<S>, "rows of int8 have scales and another layout");
  const Number<S>* from = static_cast<const Number<S>*>(weight) + row / BLOCK * BLOCK * n_in + row % BLOCK;
  for (int64_t k = 0; k < n_in; k++) out[k] = as_float<S>(from[k * BLOCK]);
}
