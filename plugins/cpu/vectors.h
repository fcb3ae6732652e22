// Arithmetic on as many floats as a register of the instruction set holds, with the compiler's vector types. This file and
// those that include it are compiled once for each instruction set, each time in another namespace.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels.h"

#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace KERNELS {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif
constexpr int PARTS = BLOCK / LANES;  // vectors of a block
typedef float Floats __attribute__((vector_size(LANES * 4)));
typedef int32_t Ints __attribute__((vector_size(LANES * 4)));
typedef uint32_t Wrapping __attribute__((vector_size(LANES * 4)));  // the same bits, whose sums may overflow
// For memory accesses only: the compiler does not keep variables of a type that may alias anything in registers.
typedef Floats FloatsAnywhere __attribute__((aligned(4), may_alias));
typedef Ints IntsAnywhere __attribute__((aligned(4), may_alias));

inline Floats load(const float* p) { return *reinterpret_cast<const FloatsAnywhere*>(p); }
inline Ints load(const int32_t* p) { return *reinterpret_cast<const IntsAnywhere*>(p); }
inline void store(float* p, Floats v) { *reinterpret_cast<FloatsAnywhere*>(p) = v; }

inline Floats all(float x) { return Floats{} + x; }
inline Floats choose(Ints condition, Floats yes, Floats no) {
  return reinterpret_cast<Floats>((reinterpret_cast<Ints>(yes) & condition) | (reinterpret_cast<Ints>(no) & ~condition));
}
// If `a` or `b` is NaN both return `b`, as the instructions do: a value whose NaN has to be kept is the second argument.
#if defined(__AVX512F__)
inline Floats larger(Floats a, Floats b) { return Floats(_mm512_max_ps(__m512(a), __m512(b))); }
inline Floats smaller(Floats a, Floats b) { return Floats(_mm512_min_ps(__m512(a), __m512(b))); }
#else
inline Floats larger(Floats a, Floats b) { return choose(a > b, a, b); }
inline Floats smaller(Floats a, Floats b) { return choose(a < b, a, b); }
#endif

// As many numbers of 16 bits as floats, exactly: IEEE's half precision (fp16), and the upper halves of floats (bf16).
#if defined(__AVX512F__)
inline Floats from_fp16(const uint16_t* p) {
  return Floats(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
}
inline Floats from_bf16(const uint16_t* p) {  // one instruction: each number goes above 16 zeros
  const __m512i halves = _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  const __m512i places = _mm512_set_epi16(15, 0, 14, 0, 13, 0, 12, 0, 11, 0, 10, 0, 9, 0, 8, 0, 7, 0, 6, 0, 5, 0, 4, 0, 3, 0,
                                          2, 0, 1, 0, 0, 0);
  return Floats(_mm512_maskz_permutexvar_epi16(0xaaaaaaaa, places, halves));
}
#elif defined(__AVX2__)
inline Floats from_fp16(const uint16_t* p) {
  return Floats(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
inline Floats from_bf16(const uint16_t* p) {
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return Floats(_mm256_slli_epi32(wide, 16));
}
#elif defined(__aarch64__)
inline Floats from_fp16(const uint16_t* p) { return Floats(vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)))); }
inline Floats from_bf16(const uint16_t* p) { return Floats(vshll_n_u16(vld1_u16(p), 16)); }
#else
inline Wrapping widened(const uint16_t* p) {
  typedef uint16_t Halves __attribute__((vector_size(LANES * 2)));
  Halves halves;
  memcpy(&halves, p, sizeof halves);
  return __builtin_convertvector(halves, Wrapping);
}
inline Floats from_fp16(const uint16_t* p) {  // as as_float in stored.h
  const Wrapping half = widened(p), rest = (half & 0x7fff) << 13, exponent = half & 0x7c00;
  const Floats normal = choose(Ints(exponent == 0x7c00), Floats(rest + (224u << 23)), Floats(rest + (112u << 23)));
  const Floats magnitude = choose(Ints(exponent == 0), Floats(rest + (113u << 23)) - 0x1p-14f, normal);
  return Floats(Wrapping(magnitude) | (half & 0x8000) << 16);
}
#if defined(__SSE2__)
inline Floats from_bf16(const uint16_t* p) {
  return Floats(_mm_unpacklo_epi16(_mm_setzero_si128(), _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
#else
inline Floats from_bf16(const uint16_t* p) { return Floats(widened(p) << 16); }
#endif
#endif

// Four vectors of whole numbers as bytes, in their order; below 0 becomes 0, above 255 becomes 255.
#if defined(__AVX512F__)
inline void to_bytes(const Ints (&v)[4], uint8_t* out) {
  const __m512i first = _mm512_packs_epi32(__m512i(v[0]), __m512i(v[1]));
  const __m512i second = _mm512_packs_epi32(__m512i(v[2]), __m512i(v[3]));
  const __m512i places = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);  // packed within 128 bits
  _mm512_storeu_si512(out, _mm512_permutexvar_epi32(places, _mm512_packus_epi16(first, second)));
}
#elif defined(__AVX2__)
inline void to_bytes(const Ints (&v)[4], uint8_t* out) {
  const __m256i first = _mm256_packs_epi32(__m256i(v[0]), __m256i(v[1]));
  const __m256i second = _mm256_packs_epi32(__m256i(v[2]), __m256i(v[3]));
  const __m256i places = _mm256_set_epi32(7, 3, 6, 2, 5, 1, 4, 0);
  const __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(first, second), places);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), bytes);
}
#else
inline void to_bytes(const Ints (&v)[4], uint8_t* out) {
  for (int i = 0; i < 4 * LANES; i++) {
    const int32_t whole = v[i / LANES][i % LANES];
    out[i] = uint8_t(whole < 0 ? 0 : whole > 255 ? 255 : whole);
  }
}
#endif

inline Floats to_floats(Ints a) { return __builtin_convertvector(a, Floats); }

inline Floats magnitude(Floats a) { return Floats(Wrapping(a) & 0x7fffffff); }

// The nearest whole numbers, of two the even one; any number for what 32 bits don't hold.
#if defined(__AVX512F__)
inline Ints to_nearest(Floats a) { return Ints(_mm512_cvtps_epi32(__m512(a))); }
#elif defined(__AVX2__)
inline Ints to_nearest(Floats a) { return Ints(_mm256_cvtps_epi32(__m256(a))); }
#elif defined(__SSE2__)
inline Ints to_nearest(Floats a) { return Ints(_mm_cvtps_epi32(__m128(a))); }
#elif defined(__aarch64__)
inline Ints to_nearest(Floats a) { return Ints(vcvtnq_s32_f32(float32x4_t(a))); }
#else
inline Ints to_nearest(Floats a) {
  Ints found;
  for (int i = 0; i < LANES; i++) found[i] = std::fabs(a[i]) < 2e9f ? int32_t(std::nearbyint(a[i])) : 0;
  return found;
}
#endif

// Combines the two halves again and again, which takes log2(LANES) steps.
template <typename Pick>
inline float reduce(Floats v, Pick pick) {
  float lanes[LANES];
  store(lanes, v);
  for (int width = LANES / 2; width; width /= 2) {
    for (int i = 0; i < width; i++) lanes[i] = pick(lanes[i], lanes[i + width]);
  }
  return lanes[0];
}
#if defined(__AVX512F__)
inline float sum(Floats v) { return _mm512_reduce_add_ps(__m512(v)); }
inline float maximum(Floats v) { return _mm512_reduce_max_ps(__m512(v)); }
inline float minimum(Floats v) { return _mm512_reduce_min_ps(__m512(v)); }
// A bit for each element that is larger.
inline uint32_t which_larger(Floats a, float b) { return _mm512_cmp_ps_mask(__m512(a), _mm512_set1_ps(b), _CMP_GT_OQ); }
// Writes the sums of four vectors to `out`; their elements are interleaved and added in the same steps.
inline void sums_of_four(const Floats (&v)[4], float* out) {
  const __m512 a = _mm512_unpacklo_ps(__m512(v[0]), __m512(v[1])) + _mm512_unpackhi_ps(__m512(v[0]), __m512(v[1]));
  const __m512 b = _mm512_unpacklo_ps(__m512(v[2]), __m512(v[3])) + _mm512_unpackhi_ps(__m512(v[2]), __m512(v[3]));
  const __m512 c = __m512(_mm512_unpacklo_pd(__m512d(a), __m512d(b))) + __m512(_mm512_unpackhi_pd(__m512d(a), __m512d(b)));
  const __m256 d = _mm512_castps512_ps256(c) + __m256(_mm512_extractf64x4_pd(__m512d(c), 1));
  _mm_storeu_ps(out, _mm256_castps256_ps128(d) + _mm256_extractf128_ps(d, 1));
}
#else
inline float sum(Floats v) {
  return reduce(v, [](float a, float b) { return a + b; });
}
inline float maximum(Floats v) {
  return reduce(v, [](float a, float b) { return a > b ? a : b; });
}
inline float minimum(Floats v) {
  return reduce(v, [](float a, float b) { return a < b ? a : b; });
}
inline uint32_t which_larger(Floats a, float b) {
  uint32_t found = 0;
  for (int i = 0; i < LANES; i++) found |= uint32_t(a[i] > b) << i;
  return found;
}
inline void sums_of_four(const Floats (&v)[4], float* out) {
  for (int i = 0; i < 4; i++) out[i] = sum(v[i]);
}
#endif

// e**x within 2 units in the last place for x in [-87, 88]; x is clamped to that range. Cody and Waite's range reduction
// and the polynomial of Cephes' expf.
inline Floats exponential(Floats x) {
  x = larger(all(-87.0f), smaller(all(88.0f), x));
  const Floats shift = all(12582912.0f);  // 1.5 * 2**23: adding it rounds to an integer, which is then in the low bits
  const Floats rounded = x * 1.44269504088896341f + shift;
  const Floats n = rounded - shift;
  const Floats r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  Floats p = all(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  return Floats(Wrapping(p) + (Wrapping(rounded) << 23));  // times 2**n, by adding n to the exponent
}

inline Floats sigmoid(Floats x) { return 1.0f / (1.0f + exponential(-x)); }
inline Floats hyperbolic_tangent(Floats x) { return 1.0f - 2.0f / (exponential(x + x) + 1.0f); }

// erf(x) by a quotient of polynomials over [-4, 4], within 3e-7.
inline Floats error_function(Floats x) {
  x = larger(all(-4.0f), smaller(all(4.0f), x));
  const Floats s = x * x;
  Floats p = all(-2.72614225801306e-10f);
  p = p * s + 2.77068142495902e-08f;
  p = p * s + -2.10102402082508e-06f;
  p = p * s + -5.69250639462346e-05f;
  p = p * s + -7.34990630326855e-04f;
  p = p * s + -2.95459980854025e-03f;
  p = p * s + -1.60960333262415e-02f;
  Floats q = all(-1.45660718464996e-05f);
  q = q * s + -2.13374055278905e-04f;
  q = q * s + -1.68282697438203e-03f;
  q = q * s + -7.37332916720468e-03f;
  q = q * s + -1.42647390514189e-02f;
  return x * p / q;
}

// Replaces n numbers x by e**(x - their maximum). Returns the sum. Each lane sums every LANES-th number, also of what is
// left over: so numbers that follow and are next to nothing, as those of padding are, change no bit of the sum.
inline float exponentials(float* x, int n) {
  float top = x[0];
  int i = 0;
  if (n >= LANES) {
    Floats high = load(x);
    for (i = LANES; i + LANES <= n; i += LANES) high = larger(high, load(x + i));
    top = maximum(high);
  }
  for (; i < n; i++) top = top > x[i] ? top : x[i];
  Floats sums{};
  i = 0;
  for (; i + LANES <= n; i += LANES) {
    const Floats e = exponential(load(x + i) - top);
    store(x + i, e);
    sums += e;
  }
  if (i < n) {
    float rest[LANES];
    for (int j = 0; j < LANES; j++) rest[j] = j < n - i ? x[i + j] : -INFINITY;
    store(rest, exponential(load(rest) - top));
    memcpy(x + i, rest, (n - i) * sizeof(float));
    for (int j = n - i; j < LANES; j++) rest[j] = 0.0f;
    sums += load(rest);
  }
  return sum(sums);
}

}  // namespace KERNELS
