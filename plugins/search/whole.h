// Sums over a row's whole distribution [V], and its largest number. decoding/numerics.py is the definition, whose results
// these are bit for bit: every number is rounded where numpy rounds it, and what is summed are whole numbers.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace s2s {

constexpr int LANES = 16;        // numbers that are looked at together
constexpr float LEAST = -87.f;   // of decoding/numerics.py: exponentials of less count as 0
constexpr int WEIGHT_BITS = 44;  // likewise, of a weight of 1
// What every processor has registers for; wider ones would save a hundredth of a step.
constexpr int WIDTH = 4, PARTS = LANES / WIDTH;
typedef float Floats __attribute__((vector_size(4 * WIDTH)));
typedef int32_t Wholes __attribute__((vector_size(4 * WIDTH)));
typedef uint32_t Bits __attribute__((vector_size(4 * WIDTH)));
typedef double Doubles __attribute__((vector_size(8 * WIDTH)));
typedef uint64_t Weights __attribute__((vector_size(8 * WIDTH)));

inline Floats load(const float* x) {
  Floats found;
  std::memcpy(&found, x, sizeof found);
  return found;
}

inline bool any(const Wholes& found) {
  int64_t halves[2];
  std::memcpy(halves, &found, sizeof halves);
  return (halves[0] | halves[1]) != 0;
}

// Written out, so that what is indexed by the part stays in registers.
template <typename Each>
inline void by_parts(Each each) {
  each(0), each(1), each(2), each(3);
}
static_assert(PARTS == 4, "by_parts");

// Calls each(numbers) for LANES numbers after the other; the last ones are filled up.
template <typename Each>
inline void by_lanes(const float* x, int n, float filler, Each each) {
  int i = 0;
  for (; i + LANES <= n; i += LANES) each(x + i);
  if (i == n) return;
  float rest[LANES];
  for (int j = 0; j < LANES; j++) rest[j] = i + j < n ? x[i + j] : filler;
  each(rest);
}

// numerics.exponentials_up_to_one, of numbers that are no NaN.
inline Floats exponential(const Floats& x) {
  constexpr float SHIFT = 12582912.f;  // 1.5 * 2**23: adding it rounds to an integer, which is then in the low bits
  const Floats rounded = x * 1.44269504088896341f + SHIFT;
  const Floats n = rounded - SHIFT;
  const Floats r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  Floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.f;
  const Bits found = Bits(p) + (Bits(rounded) << 23);  // times 2**n, by adding n to the exponent
  return Floats(found & Bits(x > LEAST));
}

// numerics.sum_of_exponentials: of x[i] - top. What is added to a number rounds it to a weight, which is in the low bits then;
// how often it was added is subtracted in the end.
inline double sum_of_exponentials(const float* x, int n, float top) {
  constexpr double ONE = double(1 << (52 - WEIGHT_BITS));
  Weights lanes[PARTS] = {};
  by_lanes(x, n, -INFINITY, [&](const float* numbers) {
    by_parts([&](int part) {
      const Floats each = exponential(load(numbers + part * WIDTH) - top);
      lanes[part] += Weights(__builtin_convertvector(each, Doubles) + ONE);
    });
  });
  uint64_t total = 0, one;
  for (const Weights& part : lanes)
    for (int j = 0; j < WIDTH; j++) total += part[j];
  std::memcpy(&one, &ONE, sizeof one);
  total -= one * ((uint64_t(n) + LANES - 1) / LANES * LANES);
  return double(total) * (1.0 / double(uint64_t(1) << WEIGHT_BITS));
}

// The largest of n numbers; NaN where one is NaN, minus infinity of none.
inline float largest(const float* x, int n) {
  Floats best[PARTS];
  Wholes has_nan[PARTS] = {};
  for (Floats& part : best) part = Floats{} - INFINITY;
  by_lanes(x, n, -INFINITY, [&](const float* numbers) {
    by_parts([&](int part) {
      const Floats some = load(numbers + part * WIDTH);
      best[part] = some > best[part] ? some : best[part];
      has_nan[part] |= some != some;
    });
  });
  float found = -INFINITY;
  for (int part = 0; part < PARTS; part++) {
    if (any(has_nan[part])) return NAN;
    for (int j = 0; j < WIDTH; j++) found = best[part][j] > found ? best[part][j] : found;
  }
  return found;
}

// Whether one of LANES numbers is larger than a limit.
inline bool any_above(const float* x, float limit) {
  Wholes found{};
  by_parts([&](int part) { found |= load(x + part * WIDTH) > limit; });
  return any(found);
}

// By how much scores are reduced to be log-probabilities again: numerics.normalised. A distribution whose largest score is
// not finite has no tokens.
struct Normaliser {
  float top = 0.f, rest = 0.f;
  float operator()(float score) const { return (score - top) - rest; }
};
inline bool normalise(const float* scores, int n, Normaliser& found) {
  found.top = largest(scores, n);
  if (!std::isfinite(found.top)) return false;
  found.rest = float(std::log(sum_of_exponentials(scores, n, found.top)));
  return true;
}

}  // namespace s2s
