// Attention of an encoder in whose model int8 weights are wanted: both products are of bytes.
//
// Queries and keys are quantised for each position, both symmetrically, values for each channel, after the mean over the
// positions was taken from keys and values: softmax does not change when all scores of a query grow alike, and the weights
// of a query add up to 1, so that the values' mean is added to the result as it is. Keys and queries as in SageAttention
// (arXiv:2410.02367).
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

// What numbers up to `most` are divided by to be bytes from -127 to 127; NaN where one is none, which makes NaN of all.
inline float scale_of(float most, float& inverse) {
  const bool is_nothing = most < 1e-30f;  // whose inverse would be no number
  inverse = is_nothing ? 0.0f : 127.0f / most;
  return is_nothing ? 1.0f : most / 127.0f;
}

// A weight of bytes that was made of a source's keys or values. mean [n_in or n_out]: what was taken from its rows.
struct Bytes {
  int n_out, width;
  int8_t* values;
  float* scale;
  int32_t* sum;
  float* inverse;  // of the scales
  float* mean;

  Bytes(int n_out_, int n_in) : n_out(in_blocks(n_out_)), width(in_fours(n_in)) {
    values = new int8_t[size_t(n_out + 3 * BLOCK) * width]();  // three blocks more, which tiles may read
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
  void scale_to(int output, float most) { scale[output] = scale_of(most, inverse[output]); }
  // 0, or NaN where a number of an output is none.
  float nothing() const {
    float found = 0.0f;
    for (int i = 0; i < n_out; i++) found += scale[i] * 0.0f;
    return found;
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

// Makes weights of a query's scores [n], e**(scale * (score - top)), as bytes, the largest of which is 255 or next to it;
// those up to `filled` are 0. What rounding takes from a weight, the next key's gets. Returns the sum of all.
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

inline float weigh(const float* scores, int n, int, float scale, float top, uint8_t* bytes) {
  constexpr int AT_ONCE = SCORES_AT_ONCE;
  constexpr float STEPS = 1.44269504f * 2048;
  const float steps = STEPS * scale;
  const __m512 factor = _mm512_set1_ps(steps), offset = _mm512_set1_ps(2047 - top * steps);
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
  return float(_mm512_reduce_add_epi64(sums));
}
#else
inline float weigh(const float* scores, int n, int filled, float scale, float top, uint8_t* bytes) {
  typedef uint8_t Packed __attribute__((vector_size(LANES)));
  Floats rest = all(0.5f);
  Ints sums{};
  int i = 0;
  for (; i < n; i += LANES) {
    const Floats exact = exponential((load(scores + i) - top) * scale) * 255.0f;
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
  return total;
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

constexpr float LOWEST = -3e38f;  // the score of no key: a number, unlike infinity

#if defined(HAS_TILES)
// Scores of up to ROW_TILES tiles of queries with all keys, p.y [rows, stride], and of each query the largest. p.row_zero
// is 128 for all of them; start [O]: what sums begin at. Sums are made scores while the next ones are computed.
template <int ROW_TILES>
inline void scores_of_tiles(const Product& p, const int32_t* start, float* tops) {
  constexpr int ROWS = ROW_TILES * TILE_ROWS, BLOCKS = 4 / ROW_TILES;
  int rows[ROW_TILES];
  for (int i = 0; i < ROW_TILES; i++) rows[i] = p.rows - i * TILE_ROWS < TILE_ROWS ? p.rows - i * TILE_ROWS : TILE_ROWS;
  const Shaped<ROW_TILES> shaped(rows);
  alignas(64) int32_t sums[2][ROWS][BLOCKS * BLOCK];
  Floats largest[ROWS];
  for (Floats& some : largest) some = all(LOWEST);
  const size_t width = size_t(p.n_in), step = width * BLOCK;
  const int n_blocks = (p.n_out + BLOCK - 1) / BLOCK;
  const auto compute = [&](int block, int32_t (&found)[ROWS][BLOCKS * BLOCK]) {
    each<BLOCKS>([&](auto j) {  // a block behind the last one is computed, from what lies there, and read by nobody
      each<ROW_TILES>([&](auto i) { load_tile<sum_tile<ROW_TILES>(i, j)>(start + (block + j) * BLOCK, 0); });
    });
    const int8_t* w = static_cast<const int8_t*>(p.weight) + size_t(block) * step;
    for (int k = 0; k < p.n_in; k += TILE_BYTES) {
      each<ROW_TILES>([&](auto i) { load_tile<FIRST_X + i>(p.bytes + i * TILE_ROWS * width + k, width); });
      each<BLOCKS>([&](auto j) {
        load_tile<weight_tile<ROW_TILES>(j)>(w + j * step + size_t(k) * BLOCK, TILE_BYTES);
        each<ROW_TILES>([&](auto i) { add_products<sum_tile<ROW_TILES>(i, j), FIRST_X + i, weight_tile<ROW_TILES>(j)>(); });
      });
    }
    each<ROW_TILES>([&](auto i) {
      each<BLOCKS>([&](auto j) { store_tile<sum_tile<ROW_TILES>(i, j)>(&found[i * TILE_ROWS][j * BLOCK], sizeof found[0]); });
    });
  };
  const auto finish = [&](int block, int32_t (&found)[ROWS][BLOCKS * BLOCK]) {
    const int n = p.n_out - block * BLOCK;  // keys
    Floats scale[BLOCKS];
    Ints is_key[BLOCKS];
    for (int j = 0; j < BLOCKS; j++) {
      scale[j] = j * BLOCK < n ? load(p.scale + (block + j) * BLOCK) : Floats{};
      for (int lane = 0; lane < LANES; lane++) is_key[j][lane] = j * BLOCK + lane < n ? -1 : 0;
    }
    float* y = p.y + block * BLOCK;
    const bool is_whole = n >= BLOCKS * BLOCK;
    for (int i = 0; i < p.rows; i++, y += p.stride) {
      Floats top = largest[i];
#pragma GCC unroll 4
      for (int j = 0; j < BLOCKS; j++) {
        Floats score = to_floats(load(&found[i][j * BLOCK])) * scale[j];
        if (!is_whole) score = choose(is_key[j], score, all(LOWEST));
        store(y + j * BLOCK, score);
        top = larger(top, score);
      }
      largest[i] = top;
    }
  };
  int which = 0;
  for (int block = 0; block < n_blocks; block += BLOCKS, which = 1 - which) {
    compute(block, sums[which]);
    if (block) finish(block - BLOCKS, sums[1 - which]);
  }
  finish((n_blocks - 1) / BLOCKS * BLOCKS, sums[1 - which]);
  for (int i = 0; i < p.rows; i++) tops[i] = maximum(largest[i]);
}
#endif

// Queries [rows, D] on all keys and values of one source and head. y: rows `stride` floats apart.
class ByteAttention {
 public:
  static constexpr int MOST_QUERIES = 32;  // together: two tiles

  ByteAttention(int length, int size, int group)
      : length_(length), stride_(stride_of(length)), size_(size), keys_(length, size), values_(size, in_tiles(length)) {
    const int widest = keys_.width > values_.width ? keys_.width : values_.width;
    bytes_ = new uint8_t[size_t(group) * widest + SCORES_AT_ONCE];  // the last row's end may be written over
    scale_ = new float[group];
    ones_ = new float[group];
    tops_ = new float[group];
    together_ = new float[size_t(length) * size];
    zero_ = new int32_t[2 * group];
    start_ = new int32_t[keys_.n_out + 3 * BLOCK];
    for (int i = 0; i < group; i++) ones_[i] = 1.0f, zero_[i] = 128, zero_[group + i] = 0;
    no_zero_ = zero_ + group;
  }
  ~ByteAttention() {
    delete[] bytes_;
    delete[] scale_;
    delete[] ones_;
    delete[] tops_;
    delete[] together_;
    delete[] zero_;
    delete[] start_;
  }
  ByteAttention(const ByteAttention&) = delete;

  // The distance of the scores of two queries: an odd number of lines of the cache, so that the same key's scores of all
  // queries do not contend for a few places in it.
  static int stride_of(int length) { return places_of(length) + BLOCK; }

  void pack(const float* keys, const float* values, size_t row) {
    pack_keys(together(keys, row), size_, length_, size_, keys_);
    pack_values(together(values, row), size_, length_, size_, values_);
    nothing_ = keys_.nothing();
    for (int i = 0; i < keys_.n_out; i++) start_[i] = -128 * keys_.sum[i];
  }

  // queries: rows `row` floats apart, to be multiplied by `scale`. scores: rows of S, `stride_of` apart, which a factor of
  // the query is yet to be multiplied with
  void look(const float* queries, size_t row, int rows, float scale, float* scores) {
    for (int i = 0; i < rows; i++) scale_[i] = scale * bytes_of(queries + i * row, bytes_ + size_t(i) * keys_.width);
    for (int i = rows; i < 2 * rows; i++) ask(queries + i * row);  // the next ones; behind the last ones are keys, or nothing
    Product p = product(rows, keys_.width, length_, keys_, bytes_, ones_, zero_);
    p.y = scores, p.stride = stride_;
    look(p);
    for (int i = 0; i < rows; i++) {
      for (int j = length_; j < places_of(length_); j++) scores[size_t(i) * stride_ + j] = LOWEST;
    }
  }

  void gather(float* scores, int rows, float* y, size_t stride) {
    const size_t width = size_t(values_.width);
    for (int i = 0; i < rows; i++) {
      const float total = weigh(scores + size_t(i) * stride_, length_, values_.width, scale_[i], tops_[i], bytes_ + i * width);
      scale_[i] = 1.0f / (total + nothing_ + (scale_[i] + tops_[i]) * 0.0f);
    }
    Product p = product(rows, values_.width, size_, values_, bytes_, scale_, no_zero_);
    p.bias = values_.mean, p.y = y, p.stride = int(stride);
    multiply_narrow(p);
  }

 private:
  static int places_of(int length) { return (length + SCORES_AT_ONCE - 1) / SCORES_AT_ONCE * SCORES_AT_ONCE; }

  static Product product(int rows, int n_in, int n_out, const Bytes& weight, const uint8_t* bytes, const float* scale,
                         const int32_t* zero) {
    Product p{};
    p.rows = rows, p.n_in = n_in, p.n_out = n_out;
    p.storage = Storage::int8, p.weight = weight.values, p.scale = weight.scale, p.weight_sum = weight.sum;
    p.bytes = bytes, p.row_scale = scale, p.row_zero = zero;
    return p;
  }

  // Rows that lie far from each other, each on a page of its own, are asked for before they are read.
  void ask(const float* row) const {
    for (int d = 0; d < size_; d += BLOCK) __builtin_prefetch(row + d);
  }

  // The rows of keys or values side by side, as they are read several times.
  const float* together(const float* rows, size_t row) {
    for (int s = 0; s < length_; s++) {
      ask(rows + (s + 8) * row);
      memcpy(together_ + size_t(s) * size_, rows + s * row, size_ * sizeof(float));
    }
    return together_;
  }

  // Makes bytes of a query, 128 of 0. Returns their scale, NaN where a number is none.
  float bytes_of(const float* query, uint8_t* bytes) const {
    typedef uint8_t Packed __attribute__((vector_size(LANES)));
    Floats largest{}, nothing{};
    for (int d = 0; d < size_; d += LANES) {
      const Floats value = magnitude(load_some(query + d, size_ - d));
      largest = larger(largest, value);
      nothing += value * 0.0f;
    }
    float inverse;
    const float scale = scale_of(maximum(largest) + sum(nothing), inverse);
    for (int d = 0; d < size_; d += LANES) {
      const Packed packed = __builtin_convertvector(in_bytes(load_some(query + d, size_ - d) * inverse) + 128, Packed);
      memcpy(bytes + d, &packed, keys_.width - d < LANES ? keys_.width - d : LANES);
    }
    return scale;
  }

  void look(const Product& p) {
#if defined(HAS_TILES)
    if (is_tiled(p, keys_.n_out / BLOCK)) {
      return p.rows > TILE_ROWS ? scores_of_tiles<2>(p, start_, tops_) : scores_of_tiles<1>(p, start_, tops_);
    }
#endif
    multiply(p, 0, keys_.n_out / BLOCK);
    for (int i = 0; i < p.rows; i++) {
      const float* scores = p.y + size_t(i) * p.stride;
      Floats largest = all(LOWEST);
      int j = 0;
      for (; j + LANES <= length_; j += LANES) largest = larger(largest, load(scores + j));
      tops_[i] = maximum(largest);
      for (; j < length_; j++) tops_[i] = tops_[i] > scores[j] ? tops_[i] : scores[j];
    }
  }

  const int length_, stride_, size_;
  Bytes keys_, values_;
  uint8_t* bytes_;
  float *scale_, *ones_, *tops_, *together_;
  int32_t *zero_, *no_zero_, *start_;
  float nothing_ = 0.0f;
};

}  // namespace KERNELS
