// Exponentials as whole numbers, whose sums are the same in any order, and logarithms in single precision. The arithmetic is
// decoding/numerics.py's, operation by operation: no product is fused with an addition, so results are equal bit for bit.
#pragma once

#include <cmath>
#include <cstring>

#include "block.cuh"

constexpr float kLeastExponent = -87.f;  // exponentials of less count as 0
constexpr float kWeightOfOne = 0x1p44f;

__device__ __forceinline__ uint32_t bits_of(float value) {
#ifdef __CUDACC__
  return __float_as_uint(value);
#else
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
#endif
}
__device__ __forceinline__ float float_of(uint32_t bits) {
#ifdef __CUDACC__
  return __uint_as_float(bits);
#else
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
#endif
}

// numerics.weights, of a number up to 0: its exponential in units of 2^-44, rounded to the nearest and halves to even. That of
// a NaN is 0.
__device__ __forceinline__ uint64_t exponential_weight(float value) {
  if (!(value > kLeastExponent)) return 0;
  constexpr float kShift = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer, which is then in the low bits
  const float rounded = product(value, 1.44269504088896341f) + kShift, n = rounded - kShift;
  const float rest = (value - product(n, 0.693359375f)) - product(n, -2.12194440e-4f);
  float found = product(rest, 1.9875691500e-4f) + 1.3981999507e-3f;
  found = product(found, rest) + 8.3334519073e-3f;
  found = product(found, rest) + 4.1665795894e-2f;
  found = product(found, rest) + 1.6666665459e-1f;
  found = product(found, rest) + 5.0000001201e-1f;
  found = product(product(found, rest), rest) + rest + 1.f;
  const float weight = float_of(bits_of(found) + (bits_of(rounded) << 23)) * kWeightOfOne;  // exact: a power of two
#ifdef __CUDACC__
  return __float2ull_rn(weight);
#else
  return static_cast<uint64_t>(std::nearbyint(weight));
#endif
}

__device__ __forceinline__ double sum_of_exponentials(uint64_t weights) { return static_cast<double>(weights) * 0x1p-44; }

// numerics.float_logarithms, of a positive normal number.
__device__ __forceinline__ float logarithm(int n, float m) {
  const float square = product(m, m), exponent = static_cast<float>(n);
  float found = product(m, 7.0376836292e-2f) + -1.1514610310e-1f;
  found = product(found, m) + 1.1676998740e-1f;
  found = product(found, m) + -1.2420140846e-1f;
  found = product(found, m) + 1.4249322787e-1f;
  found = product(found, m) + -1.6668057665e-1f;
  found = product(found, m) + 2.0000714765e-1f;
  found = product(found, m) + -2.4999993993e-1f;
  found = product(found, m) + 3.3333331174e-1f;
  found = product(product(found, m), square) + product(exponent, -2.12194440e-4f);
  return ((found - product(square, 0.5f)) + m) + product(exponent, 0.693359375f);
}
__device__ __forceinline__ float logarithm(float value) {
  const uint32_t bits = bits_of(value);
  const int n = static_cast<int>(bits - 0x3f3504f3u) >> 23;
  return logarithm(n, float_of(bits - (static_cast<uint32_t>(n) << 23)) - 1.f);
}

// The largest of values[first..end), NaN where one is. By a whole block, as is the next.
__device__ __forceinline__ float largest_of(const float* values, int first, int end, BlockShared& shared) {
  float maximum = -INFINITY;
  int has_nan = 0;
  for (int i = first + threadIdx.x; i < end; i += kBlockThreads) {
    maximum = fmaxf(maximum, values[i]);
    has_nan |= values[i] != values[i];
  }
  maximum = block_maximum(maximum, shared);
  return __syncthreads_or(has_nan) ? NAN : maximum;
}

// The sum of the weights of scores[first..end); 0 where the maximum is not finite.
__device__ __forceinline__ uint64_t weight_of_slice(
    const float* scores, int first, int end, float maximum, BlockShared& shared) {
  uint64_t sums[1] = {0};
  for (int id = first + threadIdx.x; id < end; id += kBlockThreads) sums[0] += exponential_weight(scores[id] - maximum);
  block_sums(sums, shared);
  return sums[0];
}
