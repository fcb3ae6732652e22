// Attention of an encoder in whose model int8 weights are wanted: both products are of bytes.
//
// Queries and keys are quantised for each position, values for each channel, after the mean over the positions was taken
// from keys and values: softmax does not change when all scores of a query grow alike, and the weights of a query add up
// to 1, so that the values' mean is added to the result as it is. Keys and queries as in SageAttention (arXiv:2410.02367).
//
// Of scores that are near each other the weights are small and many, and rounding each of them to a byte would lose much
// of their sum. So what is rounded off a weight is added to that of the next position, whose values are like its own: the
// error of a sum of neighbours stays below a step. For that positions are laid out so that neighbours follow each other
// from one vector to the next.
#pragma once

#include "kernels.h"
#include "products.h"

namespace KERNELS {

constexpr int MOST_POSITIONS = 32768;      // more might not fit the sums of 32 bits
#if defined(__AVX512BW__)
constexpr int SCORES_AT_ONCE = 64;  // scores that become weights together
constexpr int SIDE_BY_SIDE = 32;    // of them, those in one register
#else
constexpr int SCORES_AT_ONCE = LANES, SIDE_BY_SIDE = LANES;
#endif

// The position of a source that stands at a place of its keys and values: neighbours follow each other in the same lane,
// one vector further.
inline int position_at(int place, int length) {
  const int lane = place % SIDE_BY_SIDE, whole = length / SIDE_BY_SIDE, left = length % SIDE_BY_SIDE;
  return lane * whole + (lane < left ? lane : left) + place / SIDE_BY_SIDE;
}

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
    const float* key = keys + position_at(s, length) * row;
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
        const float* value = values + position_at(s + i, length) * row + d;
        const Ints whole = in_bytes(centred(value, packed.mean + d, size - d) * inverse);
        four |= (Wrapping(whole) & 255) << (8 * i);
        sums += whole;
      }
      memcpy(to, &four, sizeof four);
    }
    memcpy(packed.sum + d, &sums, sizeof sums);
  }
  delete[] most;
}

// Makes weights of a query's scores [n], e**(score - the largest), as bytes, the largest of which is 255 or next to it;
// those up to `filled` are 0. What rounding takes from a weight, the next key's gets. Returns the sum of all, NaN where a
// score is none.
#if defined(__AVX512BW__)
// 2**(x/2048 - 1) of 32 whole numbers from -32768 to 2047, with 14 bits behind the point: a polynomial of third degree
// within 1.2e-4 for what is behind the point of x/2048, and a shift for what is before it.
inline __m512i powers_of_two(__m512i x) {
  const __m512i f = _mm512_slli_epi16(_mm512_and_si512(x, _mm512_set1_epi16(2047)), 4);
  const auto next = [&](__m512i sum, short coefficient) {
    return _mm512_add_epi16(_mm512_mulhrs_epi16(sum, f), _mm512_set1_epi16(coefficient));
  };
  const __m512i behind = _mm512_mulhrs_epi16(next(next(_mm512_set1_epi16(2592), 7353), 22823), f);
  const __m512i power = _mm512_or_si512(behind, _mm512_set1_epi16(short(0x8000)));
  const __m512i shifted = _mm512_srlv_epi16(power, _mm512_sub_epi16(__m512i{}, _mm512_srai_epi16(x, 11)));
  return _mm512_avg_epu16(shifted, __m512i{});  // half of it, rounded
}

inline float weigh(float* scores, int n, int, uint8_t* bytes) {
  constexpr int AT_ONCE = SCORES_AT_ONCE;
  for (int i = n; i % AT_ONCE; i++) scores[i] = -3e38f;  // a number, unlike infinity, still when it is multiplied by 0
  Floats largest[4], nothing{};
  for (auto& some : largest) some = all(-INFINITY);
  for (int i = 0; i < n; i += AT_ONCE) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
      const Floats some = load(scores + i + j * LANES);
      largest[j] = larger(largest[j], some);
      nothing += some * 0.0f;
    }
  }
  const float top = maximum(larger(larger(largest[0], largest[1]), larger(largest[2], largest[3])));
  constexpr float STEPS = 1.44269504f * 2048;
  const __m512 factor = _mm512_set1_ps(STEPS), offset = _mm512_set1_ps(2047 - top * STEPS);
  const __m512i places = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);  // packed within 128 bits
  __m512i sums{}, rest = _mm512_set1_epi16(64);  // a half
  for (int i = 0; i < n; i += AT_ONCE) {
    __m512i whole[4], upper[2];
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
      whole[j] = _mm512_cvtps_epi32(_mm512_fmadd_ps(_mm512_loadu_ps(scores + i + j * LANES), factor, offset));
    }
#pragma GCC unroll 2
    for (int j = 0; j < 2; j++) {
      const __m512i x = _mm512_min_epi16(_mm512_packs_epi32(whole[2 * j], whole[2 * j + 1]), _mm512_set1_epi16(2047));
      const __m512i weights = _mm512_add_epi16(powers_of_two(x), rest);
      upper[j] = _mm512_srli_epi16(weights, 7);
      rest = _mm512_and_si512(weights, _mm512_set1_epi16(127));
    }
    const __m512i packed = _mm512_permutexvar_epi32(places, _mm512_packus_epi16(upper[0], upper[1]));
    _mm512_storeu_si512(bytes + i, packed);
    sums = _mm512_add_epi64(sums, _mm512_sad_epu8(packed, __m512i{}));
  }
  return float(_mm512_reduce_add_epi64(sums)) + sum(nothing);
}
#else
inline float weigh(float* scores, int n, int filled, uint8_t* bytes) {
  typedef uint8_t Packed __attribute__((vector_size(LANES)));
  Floats largest = all(-INFINITY);
  int i = 0;
  for (; i + LANES <= n; i += LANES) largest = larger(largest, load(scores + i));
  float top = maximum(largest);
  for (; i < n; i++) top = top > scores[i] ? top : scores[i];
  for (; i % LANES; i++) scores[i] = -INFINITY;
  Floats nothing{}, rest = all(0.5f);
  Ints sums{};
  for (i = 0; i < n; i += LANES) {
    const Floats exact = exponential(load(scores + i) - top) * 255.0f;
    nothing += exact * 0.0f;
    const Floats weights = smaller(exact + rest, all(255.0f));
    const Ints whole = __builtin_convertvector(larger(weights, Floats{}), Ints);
    rest = weights - to_floats(whole);
    const Packed packed = __builtin_convertvector(whole, Packed);
    memcpy(bytes + i, &packed, sizeof packed);
    sums += whole;
  }
  float total = 0.0f;
  for (int lane = 0; lane < LANES; lane++) total += float(sums[lane]);
  for (; i < filled; i++) bytes[i] = 0;
  return total + sum(nothing);
}
#endif

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
      : length_(length), stride_(stride_of(length)), size_(size), keys_(length, size), values_(size, in_tiles(length)) {
    const int widest = keys_.width > values_.width ? keys_.width : values_.width;
    bytes_ = new uint8_t[size_t(group) * widest + SCORES_AT_ONCE];  // the last row's end may be written over
    scale_ = new float[group];
    zero_ = new int32_t[group];
  }
  ~ByteAttention() {
    delete[] bytes_;
    delete[] scale_;
    delete[] zero_;
  }
  ByteAttention(const ByteAttention&) = delete;

  // The distance of the scores of two queries.
  static int stride_of(int length) { return (length + SCORES_AT_ONCE - 1) / SCORES_AT_ONCE * SCORES_AT_ONCE; }

  void pack(const float* keys, const float* values, size_t row) {
    pack_keys(keys, row, length_, size_, keys_);
    pack_values(values, row, length_, size_, values_);
  }

  // scores: rows of S, `stride_of` apart
  void look(const float* queries, int rows, float* scores) {
    quantise(queries, rows, size_, bytes_, scale_, zero_);
    Product p = product(rows, size_, length_, keys_, bytes_, scale_, zero_);
    p.y = scores, p.stride = stride_;
    multiply(p, 0, keys_.n_out / BLOCK);
  }

  void gather(float* scores, int rows, float* y, size_t stride) {
    const size_t width = size_t(values_.width);
    for (int i = 0; i < rows; i++) {
      scale_[i] = 1.0f / weigh(scores + size_t(i) * stride_, length_, values_.width, bytes_ + i * width);
      zero_[i] = 0;
    }
    Product p = product(rows, values_.width, size_, values_, bytes_, scale_, zero_);
    p.bias = values_.mean, p.y = y, p.stride = int(stride);
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

  const int length_, stride_, size_;
  Bytes keys_, values_;
  uint8_t* bytes_;
  float* scale_;
  int32_t* zero_;
};

}  // namespace KERNELS
