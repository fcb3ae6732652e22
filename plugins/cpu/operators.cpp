// The operators of the domain `s2s.cpu`: README.md lists inputs and outputs. Letters as in kernels.h.
#include "operators.h"

#include "head_screen.h"
#include "parts.h"
#include "stored.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <type_traits>
#include <vector>

namespace {

using ort::BOOL, ort::FLOAT, ort::FLOAT16, ort::INT32, ort::INT64, ort::INT8, ort::OPTIONAL, ort::UINT16;

constexpr int MANY_ROWS = 7;         // from so many rows on, parts begin at whole tiles, which have
constexpr int BLOCKS_OF_MANY = 6;    // three blocks then (products.h), or two of AMX (tiled.h)
constexpr int ROWS_TOGETHER = 384;   // of many: what is computed for these stays in the second-level cache, or on pages whose
                                     // addresses the processor remembers. A multiple of what fills tiles
constexpr int ROWS_IN_PARTS = 128;   // least rows of a part where each row is something of its own
constexpr int64_t MANY = 256;        // above this many candidates, sorting all logits is faster than keeping an ordered list
constexpr float LEFT_OUT = INFINITY;  // a normaliser that was not computed

constexpr int64_t MOST = INT32_MAX / 64;  // most outputs, inputs and rows of a product; times a block they fit 32 bits

// Whether all sizes of a tensor are small enough for the kernels' 32-bit counters; true for one that is left out.
bool fit_32(const Tensor& tensor) {
  return tensor && std::all_of(tensor.dims.begin(), tensor.dims.end(), [](int64_t n) { return n >= 0 && n <= INT32_MAX; });
}

// The type that ONNX Runtime gives a stored number.
template <Storage S>
constexpr Slot WEIGHT{S == Storage::fp32 ? FLOAT : IS_INT8<S> ? INT8 : UINT16};

// One of an operator's names, which say how the weight is stored.
template <Storage S>
constexpr const char* name_of(const char* fp32, const char* int8, const char* fp16, const char* bf16) {
  return S == Storage::fp32 ? fp32 : IS_INT8<S> ? int8 : S == Storage::fp16 ? fp16 : bf16;
}

// Whether a packed weight has n_out outputs of n_in inputs; README.md has the layout.
template <Storage S>
bool is_packed(const Tensor& weight, int64_t n_out, int64_t n_in) {
  if (n_out < 1 || n_out > MOST || n_in < 1 || n_in > MOST) return false;
  return IS_INT8<S> ? has(weight, {blocks_of(n_out), (n_in + 3) / 4, BLOCK, 4}) : has(weight, {blocks_of(n_out), n_in, BLOCK});
}

bool is_known(Activation a) { return a >= Activation::none && a <= Activation::quick_gelu; }

// The rows of an int8 product as bytes, until this thread's next call.
void quantise(Call& call, Product& p) {
  if (p.storage != Storage::int8) return;
  const size_t width = size_t(p.n_in + 3) / 4 * 4;
  uint8_t* bytes = scratch<uint8_t, 0>(p.rows * width);
  float* scale = scratch<float, 1>(p.rows);
  int32_t* zero = scratch<int32_t, 2>(p.rows);
  in_parts(call, p.rows, ROWS_IN_PARTS, int64_t(p.rows) * p.n_in, [&](int, int first, int end) {
    kernels().quantise(p.x + size_t(first) * p.n_in, end - first, p.n_in, bytes + first * width, scale + first, zero + first);
  });
  p.bytes = bytes;
  p.row_scale = scale;
  p.row_zero = zero;
}

// Inputs x, weight and, for int8, scale and weight_sum, then bias: the start of every product's inputs. Its rows are yet to
// be quantised.
template <Storage S>
const char* read_product(Call& call, int64_t n_out, Product& p) {
  const Tensor x = call.input(0), weight = call.input(1);
  if (x.dims.empty() || !is_packed<S>(weight, n_out, x.dims.back()) || x.count() / x.dims.back() > MOST) {
    return "s2s.cpu: a packed weight has other sizes than its rows; build the engine again";
  }
  p.n_in = int(x.dims.back());
  p.rows = int(x.count() / p.n_in);
  p.n_out = int(n_out);
  p.x = x.as<float>();
  p.storage = S;
  p.weight = weight.data;
  const int64_t filled = filled_up(n_out, BLOCK);
  if (IS_INT8<S>) {
    const Tensor scale = call.input(2), sums = call.input(3);
    if (!has(scale, {filled}) || !has(sums, {filled})) {
      return "s2s.cpu: scales and sums of a packed weight have other sizes than it; build the engine again";
    }
    p.scale = scale.as<float>();
    p.weight_sum = sums.as<int32_t>();
  }
  const Tensor bias = call.input(IS_INT8<S> ? 4 : 2);
  // The bias of a shortlist is not padded to whole blocks; the caller has to replace it.
  if (!may_have(bias, {filled}) && !may_have(bias, {n_out})) {
    return "s2s.cpu: a bias has another size than its product; build the engine again";
  }
  p.bias = bias.count() == filled ? bias.as<float>() : nullptr;
  return nullptr;
}

template <Storage S>
class Linear {
 public:
  static constexpr const char* NAME = name_of<S>("Linear", "LinearInt8", "LinearFp16", "LinearBf16");
  static constexpr Slot FLOATS{FLOAT}, MAYBE{FLOAT, OPTIONAL};
  static inline const std::vector<Slot> INPUTS =
      IS_INT8<S> ? std::vector<Slot>{FLOATS, WEIGHT<S>, FLOATS, {INT32}, MAYBE, MAYBE, MAYBE, MAYBE}
              : std::vector<Slot>{FLOATS, WEIGHT<S>, MAYBE, MAYBE, MAYBE, MAYBE};
  static inline const std::vector<Slot> OUTPUTS = {MAYBE, MAYBE};

  explicit Linear(const Attributes& given)
      : n_out_(given.whole("n_out", 0)),
        activation_(Activation(given.whole("activation", 0))),
        epsilon_(given.real("epsilon", 0)),
        gives_sum_(given.whole("gives_sum", 1)),
        is_cached_(given.whole("is_cached", 0) != 0) {}

  const char* run(Call& call) const {
    Product p{};
    if (const char* why = read_product<S>(call, n_out_, p)) return why;
    const size_t next = IS_INT8<S> ? 5 : 3;
    const Tensor bias = call.input(next - 1);
    const Tensor residual = call.input(next), norm = call.input(next + 1), norm_bias = call.input(next + 2);
    if ((bias && !p.bias) || (residual && residual.count() != int64_t(p.rows) * p.n_out) || !may_have(norm, {n_out_}) ||
        !may_have(norm_bias, {n_out_}) || !is_known(activation_)) {
      return "s2s.cpu: a bias, a residual or a norm has another size than its product; build the engine again";
    }
    p.activation = activation_;
    p.is_cached = is_cached_;
    p.residual = residual.as<float>();
    Dims shape = call.input(0).dims;
    shape.back() = n_out_;
    const Tensor sum = gives_sum_ ? call.output(0, shape) : Tensor{};
    const Tensor normed = norm ? call.output(1, shape) : Tensor{};
    p.y = sum ? sum.as<float>() : normed.as<float>();
    p.stride = p.n_out;
    if (!p.rows) return nullptr;  // an expert to which no token goes
    if (!p.y) return "s2s.cpu: Linear has no output";
    const int together = IS_INT8<S> ? ROWS_TOGETHER : p.rows;
    for (int first = 0, next; first < p.rows; first = next) {
      next = std::min(p.rows, first + together);
      Product rows = rows_of(p, first, next);
      quantise(call, rows);
      const auto multiply = [&](int, int block, int end) { kernels().multiply(rows, block, end); };
      in_parts(call, blocks_of(n_out_), GRAIN, int64_t(rows.rows) * p.n_in * p.n_out, multiply,
               rows.rows < MANY_ROWS ? 1 : BLOCKS_OF_MANY);
      if (norm) {
        const Norm n{rows.rows, int(n_out_), norm.as<float>(), norm_bias.as<float>(), epsilon_};
        float* to = normed.as<float>() + size_t(first) * p.n_out;
        in_parts(call, rows.rows, ROWS_IN_PARTS, int64_t(rows.rows) * p.n_out, [&](int, int row, int end) {
          kernels().normalise(n, rows.y, to, row, end);
        });
      }
    }
    return nullptr;
  }

 private:
  static Product rows_of(const Product& p, int first, int end) {
    Product rows = p;
    rows.rows = end - first;
    rows.x += size_t(first) * p.n_in;
    rows.y += size_t(first) * p.stride;
    if (p.residual) rows.residual += size_t(first) * p.n_out;
    return rows;
  }

  int64_t n_out_;
  Activation activation_;
  float epsilon_;
  int64_t gives_sum_;
  bool is_cached_;
};

// LayerNormalization, or RMSNormalization without a bias, over the last axis of what is no product's sum.
class NormOperator {
 public:
  static constexpr const char* NAME = "Norm";
  static inline const std::vector<Slot> INPUTS = {{FLOAT}, {FLOAT}, {FLOAT, OPTIONAL}};
  static inline const std::vector<Slot> OUTPUTS = {{FLOAT}};

  explicit NormOperator(const Attributes& given) : epsilon_(given.real("epsilon", 0)) {}

  const char* run(Call& call) const {
    const Tensor x = call.input(0), weight = call.input(1), bias = call.input(2);
    const int64_t width = x.dims.empty() ? 0 : x.dims.back();
    if (width < 1 || width > MOST || !has(weight, {width}) || !may_have(bias, {width}) || x.count() / width > MOST) {
      return "s2s.cpu: a norm has another size than its rows; build the engine again";
    }
    const Norm n{int(x.count() / width), int(width), weight.as<float>(), bias.as<float>(), epsilon_};
    float* y = call.output(0, x.dims).as<float>();
    if (call.failure() || !n.rows) return nullptr;
    if (!y) return "s2s.cpu: Norm has no output";
    in_parts(call, n.rows, 1, x.count() * 4,
             [&](int, int first, int end) { kernels().normalise(n, x.as<float>(), y, first, end); });
    return nullptr;
  }

 private:
  float epsilon_;
};

// The first half of each row through an activation, times the second half.
class GateOperator {
 public:
  static constexpr const char* NAME = "Gate";
  static inline const std::vector<Slot> INPUTS = {{FLOAT}};
  static inline const std::vector<Slot> OUTPUTS = {{FLOAT}};

  explicit GateOperator(const Attributes& given) : activation_(Activation(given.whole("activation", 0))) {}

  const char* run(Call& call) const {
    const Tensor x = call.input(0);
    const int64_t whole = x.dims.empty() ? 0 : x.dims.back(), width = whole / 2;
    if (width < 1 || whole % 2 || whole > MOST || x.count() / whole > MOST || !is_known(activation_)) {
      return "s2s.cpu: Gate was given rows that are no two halves; build the engine again";
    }
    Dims shape = x.dims;
    shape.back() = width;
    float* y = call.output(0, shape).as<float>();
    const int rows = int(x.count() / whole);
    if (call.failure() || !rows) return nullptr;
    if (!y) return "s2s.cpu: Gate has no output";
    in_parts(call, rows, 1, x.count() * 8, [&](int, int first, int end) {
      kernels().gate(activation_, int(width), x.as<float>() + first * whole, y + first * width, end - first);
    });
    return nullptr;
  }

 private:
  Activation activation_;
};

// The windows of a convolution along time, each as one row: `width` frames side by side, every `stride` frames, with
// width/2 frames of zeros before the first and behind the last. A product of these rows is the convolution.
class Windows {
 public:
  static constexpr const char* NAME = "Windows";
  static inline const std::vector<Slot> INPUTS = {{FLOAT}};
  static inline const std::vector<Slot> OUTPUTS = {{FLOAT}};

  explicit Windows(const Attributes& given)
      : width_(given.whole("width", 1)), stride_(given.whole("stride", 1)), is_turned_(given.whole("is_turned", 0) != 0) {}

  const char* run(Call& call) const {
    const Tensor x = call.input(0);
    if (x.dims.size() != 3 || !fit_32(x) || width_ < 1 || width_ % 2 == 0 || width_ > MOST || stride_ < 1 || stride_ > MOST) {
      return "s2s.cpu: Windows was given no sound; build the engine again";
    }
    const int64_t n_frames = x.dims[is_turned_ ? 2 : 1], n_channels = x.dims[is_turned_ ? 1 : 2];
    const int64_t n_windows = n_frames ? (n_frames - 1) / stride_ + 1 : 0, row = width_ * n_channels;
    if (row < 1 || row > MOST) return "s2s.cpu: Windows was given too many channels; build the engine again";
    float* y = call.output(0, {x.dims[0], n_windows, row}).as<float>();
    const int64_t n_rows = x.dims[0] * n_windows;
    if (call.failure() || !n_rows) return nullptr;
    if (!y || n_rows > MOST) return "s2s.cpu: Windows has no output";
    in_parts(call, int(n_rows), AT_ONCE, n_rows * row, [&](int, int first, int end) {
      for (int64_t i = first; i < end;) {  // at most AT_ONCE windows of one source
        const int64_t source = i / n_windows, window = i % n_windows;
        const int64_t n = std::min({end - i, n_windows - window, AT_ONCE});
        const float* from = x.as<float>() + source * n_frames * n_channels;
        for (int64_t place = 0; place < width_; place++) {
          const int64_t frame = window * stride_ + place - width_ / 2;
          float* to = y + i * row + place * n_channels;
          (this->*(is_turned_ ? &Windows::turn : &Windows::copy))(from, n_frames, n_channels, frame, n, row, to);
        }
        i += n;
      }
    });
    return nullptr;
  }

 private:
  static constexpr int64_t AT_ONCE = 16;  // windows: a line of the cache of each channel

  // Frames [T,C] from `frame` on, every stride-th, of which those outside are zeros.
  void copy(const float* from, int64_t n_frames, int64_t n_channels, int64_t frame, int64_t n, int64_t row, float* to) const {
    for (; n--; frame += stride_, to += row) {
      if (frame >= 0 && frame < n_frames) {
        std::copy_n(from + frame * n_channels, n_channels, to);
      } else {
        std::fill_n(to, n_channels, 0.0f);
      }
    }
  }

  // The same of [C,T].
  void turn(const float* from, int64_t n_frames, int64_t n_channels, int64_t frame, int64_t n, int64_t row, float* to) const {
    for (int64_t c = 0; c < n_channels; c++, from += n_frames) {
      for (int64_t i = 0; i < n; i++) {
        const int64_t at = frame + i * stride_;
        to[i * row + c] = at >= 0 && at < n_frames ? from[at] : 0.0f;
      }
    }
  }

  int64_t width_, stride_;
  bool is_turned_;
};

// Rows of a packed weight, unpacked: [ids..., I].
template <Storage S>
class Embedding {
 public:
  static constexpr const char* NAME = name_of<S>("Embedding", "EmbeddingInt8", "EmbeddingFp16", "EmbeddingBf16");
  static inline const std::vector<Slot> INPUTS = IS_INT8<S> ? std::vector<Slot>{{INT64}, {INT8}, {FLOAT}}
                                                            : std::vector<Slot>{{INT64}, WEIGHT<S>};
  static inline const std::vector<Slot> OUTPUTS = {{FLOAT}};

  explicit Embedding(const Attributes& given) : width_(given.whole("width", 0)), n_rows_(given.whole("n_rows", 0)) {}

  const char* run(Call& call) const {
    const Tensor ids = call.input(0), weight = call.input(1);
    if (!is_packed<S>(weight, n_rows_, width_) || (IS_INT8<S> && !has(call.input(2), {filled_up(n_rows_, BLOCK)}))) {
      return "s2s.cpu: a packed table has other sizes than its rows; build the engine again";
    }
    Dims shape = ids.dims;
    shape.push_back(width_);
    float* out = call.output(0, shape).as<float>();
    if (!out && ids.count()) return "s2s.cpu: Embedding has no output";
    for (int64_t i = 0; i < ids.count(); i++, out += width_) {
      const int64_t id = ids.as<int64_t>()[i];
      if (id < 0 || id >= n_rows_) return "s2s.cpu: a token id is outside the vocabulary";
      if constexpr (IS_INT8<S>) {
        const int64_t stride = (width_ + 3) / 4 * 4;
        const int8_t* from = weight.as<int8_t>() + id / BLOCK * BLOCK * stride + id % BLOCK * 4;
        const float scale = call_scale(call)[id];
        for (int64_t k = 0; k < width_; k++) out[k] = scale * float(from[k / 4 * 4 * BLOCK + k % 4]);
      } else {
        row_as_floats<S>(weight.data, id, width_, out);
      }
    }
    return nullptr;
  }

 private:
  static const float* call_scale(Call& call) { return call.input(2).as<float>(); }

  int64_t width_, n_rows_;
};

// Makes a packed weight of some rows of another, with their scales and sums.
template <Storage S>
class TakeRows {
 public:
  static constexpr const char* NAME = name_of<S>("TakeRows", "TakeRowsInt8", "TakeRowsFp16", "TakeRowsBf16");
  static inline const std::vector<Slot> INPUTS = IS_INT8<S> ? std::vector<Slot>{{INT64}, {INT8}, {FLOAT}, {INT32}}
                                                         : std::vector<Slot>{{INT64}, WEIGHT<S>};
  static inline const std::vector<Slot> OUTPUTS = IS_INT8<S> ? std::vector<Slot>{{INT8}, {FLOAT}, {INT32}}
                                                          : std::vector<Slot>{WEIGHT<S>};

  explicit TakeRows(const Attributes& given) : n_rows_(given.whole("n_rows", 0)) {}

  const char* run(Call& call) const {
    const Tensor ids = call.input(0), weight = call.input(1);
    const int64_t n = ids.count(), depth = weight.dims.size() < 3 ? 0 : weight.dims[1] * (IS_INT8<S> ? 4 : 1);
    bool fits = is_packed<S>(weight, n_rows_, depth) && n <= MOST;
    if (IS_INT8<S>) fits = fits && has(call.input(2), {filled_up(n_rows_, BLOCK)}) && has(call.input(3), {filled_up(n_rows_, BLOCK)});
    if (!fits) return "s2s.cpu: a packed weight has other sizes than its rows; build the engine again";
    for (int64_t i = 0; i < n; i++) {
      if (ids.as<int64_t>()[i] < 0 || ids.as<int64_t>()[i] >= n_rows_) return "s2s.cpu: a row is outside the weight";
    }
    Dims shape = weight.dims;
    shape[0] = blocks_of(n);
    // An output's share of one step over the inputs: four bytes, or one number.
    using Cell = std::conditional_t<IS_INT8<S>, int32_t, Number<S>>;
    Cell* out = call.output(0, shape).template as<Cell>();
    if (call.failure()) return nullptr;
    take(weight.as<Cell>(), out, ids, weight.dims[1]);
    if constexpr (IS_INT8<S>) {
      take(call.input(2).as<float>(), call.output(1, {shape[0] * BLOCK}).template as<float>(), ids, 1);
      take(call.input(3).as<int32_t>(), call.output(2, {shape[0] * BLOCK}).template as<int32_t>(), ids, 1);
    }
    return nullptr;
  }

 private:
  // Copies the rows `ids` to [blocks][depth][16]; the last block is padded with zeros.
  template <typename T>
  static void take(const T* from, T* to, const Tensor& ids, int64_t depth) {
    const int64_t n = ids.count();
    for (int64_t block = 0; block < blocks_of(n); block++, to += depth * BLOCK) {
      const int64_t n_lanes = std::min<int64_t>(BLOCK, n - block * BLOCK);
      const T* rows[BLOCK];
      for (int64_t lane = 0; lane < n_lanes; lane++) {
        const int64_t id = ids.as<int64_t>()[block * BLOCK + lane];
        rows[lane] = from + id / BLOCK * BLOCK * depth + id % BLOCK;
      }
      for (int64_t k = 0; k < depth; k++) {
        for (int64_t lane = 0; lane < BLOCK; lane++) to[k * BLOCK + lane] = lane < n_lanes ? rows[lane][k * BLOCK] : T{};
      }
    }
  }

  int64_t n_rows_;
};

// Whether `places` [B] names places among n_places; one that is left out stands for 0, 1, ...
bool are_places(const Tensor& places, int64_t n_places) {
  return !places || (places.dims.size() == 1 && std::all_of(places.as<int64_t>(), places.as<int64_t>() + places.count(),
                                                             [&](int64_t at) { return at >= 0 && at < n_places; }));
}

class SelfAttentionOperator {
 public:
  static constexpr const char* NAME = "SelfAttention";
  static inline const std::vector<Slot> INPUTS = {{FLOAT}, {FLOAT}, {FLOAT}, {INT64}, {INT64},
                                                  {FLOAT, OPTIONAL}, {INT64, OPTIONAL}};
  static inline const std::vector<Slot> OUTPUTS = {{FLOAT}, {FLOAT}, {FLOAT}};

  explicit SelfAttentionOperator(const Attributes& given)
      : scale_(given.real("scale", 1)), is_relative_(given.whole("relative", 0) != 0) {}

  const char* run(Call& call) const {
    const Tensor qkv = call.input(0), keys = call.input(1), values = call.input(2), ancestors = call.input(3);
    SelfAttention a{};
    const Tensor position = call.input(4), bias = call.input(5), places = call.input(6);
    const char* wrong = "s2s.cpu: SelfAttention was given a cache, a table and rows that do not fit each other";
    if (keys.dims.size() != 5 || !fit_32(keys) || !are_places(places, keys.dims[1])) return wrong;
    a.capacity = int(keys.dims[0]);
    a.n_places = int(keys.dims[1]);
    a.n_sources = places ? int(places.dims[0]) : a.n_places;
    a.heads = int(keys.dims[2]);
    a.beams = int(keys.dims[3]);
    a.size = int(keys.dims[4]);
    a.is_each_source = position.count() != 1;
    a.positions = position.as<int64_t>();
    a.places = places.as<int64_t>();
    a.scale = scale_;
    a.is_relative = is_relative_;
    a.qkv = qkv.as<float>();
    a.ancestors = ancestors.as<int64_t>();
    a.bias = bias.as<float>();
    const int64_t n_rows = int64_t(a.n_sources) * a.beams, width = int64_t(a.heads) * a.size;
    if (n_rows > MOST || width > MOST || !has(ancestors, {a.n_places, a.beams, a.capacity}) || values.dims != keys.dims ||
        !has(qkv, {n_rows, 3 * width}) || (a.is_each_source && !has(position, {a.n_sources})) ||
        (bias && bias.count() != int64_t(a.heads) * a.capacity)) {
      return wrong;
    }
    int64_t n_read = 0;
    for (int source = 0; source < a.n_sources; source++) {
      const int64_t at = a.positions[a.is_each_source ? source : 0];
      if (at < 0 || at >= a.capacity) return wrong;
      a.longest = std::max(a.longest, int(at) + 1);
      n_read += at + 1;
      const int64_t* table = a.ancestors + int64_t(a.place_of(source)) * a.beams * a.capacity;
      for (int beam = 0; beam < a.beams; beam++, table += a.capacity) {
        if (!std::all_of(table, table + at + 1, [&](int64_t k) { return k >= 0 && k < a.beams; })) {
          return "s2s.cpu: the table of ancestors names a beam that there is not";
        }
      }
    }
    a.y = call.output(0, {qkv.dims[0], width}).as<float>();
    a.keys = updated(call, 1, keys);
    a.values = updated(call, 2, values);
    if (call.failure()) return nullptr;
    const int pairs = a.n_sources * a.heads;
    const int64_t work = n_read * a.heads * a.beams * a.size * 2;
    in_parts(call, pairs, 1, work, [&](int, int first, int end) { kernels().attend_self(a, first, end); });
    return nullptr;
  }

 private:
  // Input and output are usually bound to the same memory; if not, the cache is copied.
  static float* updated(Call& call, size_t index, const Tensor& cache) {
    const Tensor out = call.output(index, cache.dims);
    if (out && out.data != cache.data) memcpy(out.data, cache.data, cache.count() * sizeof(float));
    return out.as<float>();
  }

  float scale_;
  bool is_relative_;
};

template <bool IS_FP16>  // the keys and values
class CrossAttentionOperator {
 public:
  static constexpr const char* NAME = IS_FP16 ? "CrossAttentionFp16" : "CrossAttention";
  static constexpr Slot OF_SOURCE{IS_FP16 ? FLOAT16 : FLOAT};
  static inline const std::vector<Slot> INPUTS = {{FLOAT}, OF_SOURCE, OF_SOURCE, {INT64}, {INT64, OPTIONAL}};
  static inline const std::vector<Slot> OUTPUTS = {{FLOAT}};

  explicit CrossAttentionOperator(const Attributes& given) : scale_(given.real("scale", 1)) {}

  const char* run(Call& call) const {
    const Tensor query = call.input(0), keys = call.input(1), values = call.input(2), mask = call.input(3);
    const Tensor places = call.input(4);
    CrossAttention a{};
    const char* wrong = "s2s.cpu: CrossAttention was given rows, keys and a mask that do not fit each other";
    if (keys.dims.size() != 4 || !fit_32(keys) || query.dims.size() != 2 || !are_places(places, keys.dims[0])) return wrong;
    a.n_sources = int(places ? places.dims[0] : keys.dims[0]);
    a.places = places.as<int64_t>();
    a.heads = int(keys.dims[1]);
    a.length = int(keys.dims[2]);
    a.size = int(keys.dims[3]);
    const int64_t width = int64_t(a.heads) * a.size;
    if (query.dims[0] > MOST || width > MOST) return wrong;
    a.beams = int(query.dims[0] / std::max(a.n_sources, 1));
    a.scale = scale_;
    a.query = query.as<float>();
    a.keys = keys.data;
    a.values = values.data;
    a.is_fp16 = IS_FP16;
    a.mask = mask.as<int64_t>();
    if (!has(query, {int64_t(a.n_sources) * a.beams, width}) || values.dims != keys.dims ||
        mask.count() != keys.dims[0] * a.length) {
      return wrong;
    }
    a.y = call.output(0, query.dims).as<float>();
    if (call.failure()) return nullptr;
    const int pairs = a.n_sources * a.heads;
    const int64_t work = int64_t(pairs) * a.beams * a.length * a.size * 2;
    in_parts(call, pairs, 1, work, [&](int, int first, int end) { kernels().attend_cross(a, first, end); });
    return nullptr;
  }

 private:
  float scale_;
};

class EncoderAttentionOperator {
 public:
  static constexpr const char* NAME = "EncoderAttention";
  static inline const std::vector<Slot> INPUTS = {{FLOAT}, {INT64}, {FLOAT, OPTIONAL}};
  static inline const std::vector<Slot> OUTPUTS = {{FLOAT}};

  explicit EncoderAttentionOperator(const Attributes& given)
      : scale_(given.real("scale", 1)), is_int8_(given.whole("int8", 0) != 0) {}

  const char* run(Call& call) const {
    const Tensor rows = call.input(0), shape = call.input(1), mask = call.input(2);
    const char* wrong = "s2s.cpu: EncoderAttention was given rows, sizes and a mask that do not fit each other";
    if (!has(shape, {4})) return wrong;
    const int64_t* sizes = shape.as<int64_t>();  // B, S, H, D
    for (int i = 0; i < 4; i++) {
      if (sizes[i] < 0 || sizes[i] > MOST) return wrong;
    }
    EncoderAttention a{};
    a.n_sources = int(sizes[0]);
    a.length = int(sizes[1]);
    a.heads = int(sizes[2]);
    a.size = int(sizes[3]);
    const int64_t n_rows = sizes[0] * sizes[1], width = sizes[2] * sizes[3];
    if (n_rows > MOST || width < 1 || width > MOST || !has(rows, {n_rows, 3 * width})) return wrong;
    if (mask) {
      const auto& dims = mask.dims;
      const int64_t whole[] = {sizes[0], sizes[2], sizes[1]};
      if (dims.size() != 4 || dims[3] != sizes[1]) return wrong;
      for (int i = 0; i < 3; i++) {
        if (dims[i] != 1 && dims[i] != whole[i]) return wrong;
      }
      a.mask = mask.as<float>();
      a.mask_query = dims[2] == 1 ? 0 : size_t(dims[3]);
      a.mask_head = dims[1] == 1 ? 0 : size_t(dims[2] * dims[3]);
      a.mask_source = dims[0] == 1 ? 0 : size_t(dims[1] * dims[2] * dims[3]);
    }
    a.scale = scale_;
    a.is_int8 = is_int8_;
    a.rows = rows.as<float>();
    a.y = call.output(0, {n_rows, width}).as<float>();
    if (call.failure() || !n_rows) return nullptr;
    const int64_t work = n_rows * sizes[1] * width * 2;
    const int pairs = a.n_sources * a.heads;
    in_parts(call, pairs, 1, work, [&](int, int first, int end) { kernels().attend_encoder(a, first, end); });
    return nullptr;
  }

 private:
  float scale_;
  bool is_int8_;
};

// The output projection with what a search needs: candidates, probed tokens and the normaliser.
template <Storage S>
class Head {
 public:
  static constexpr const char* NAME = name_of<S>("Head", "HeadInt8", "HeadFp16", "HeadBf16");
  static constexpr Slot FLOATS{FLOAT}, MAYBE{FLOAT, OPTIONAL};
  static inline const std::vector<Slot> INPUTS =
      IS_INT8<S> ? std::vector<Slot>{FLOATS, {INT8}, FLOATS, {INT32}, MAYBE, {INT64}, {INT64}, {BOOL}}
              : std::vector<Slot>{FLOATS, WEIGHT<S>, MAYBE, {INT64}, {INT64}, {BOOL}, {BOOL, OPTIONAL}};
  static inline const std::vector<Slot> OUTPUTS = {FLOATS, {INT64}, FLOATS, FLOATS, FLOATS};

  explicit Head(const Attributes& given)
      : n_out_(given.whole("n_out", 0)), is_cached_(given.whole("is_cached", 0) != 0) {}

  const char* run(Call& call) const {
    Product p{};
    const size_t next = IS_INT8<S> ? 5 : 3;
    // A shortlist's weight is an input of the graph; its number of tokens is the size of the bias.
    const Tensor bias = call.input(next - 1);
    if (!n_out_ && bias.dims.size() != 1) return "s2s.cpu: Head has neither a number of tokens nor a bias that says it";
    const int64_t n_out = n_out_ ? n_out_ : bias.count();
    if (const char* why = read_product<S>(call, n_out, p)) return why;
    p.is_cached = is_cached_;
    if (n_out_ && bias && !p.bias) return "s2s.cpu: a bias has another size than its product; build the engine again";
    if (!n_out_) {
      float* filled = scratch<float, 7>(size_t(blocks_of(n_out)) * BLOCK);
      memcpy(filled, bias.data, n_out * sizeof(float));
      p.bias = filled;
    }
    const Tensor wanted = call.input(next), probes = call.input(next + 1), is_dense = call.input(next + 2);
    const char* wrong = "s2s.cpu: Head was asked for candidates of other rows or tokens";
    if (probes.dims.size() != 3 || !fit_32(probes) || wanted.count() != 1 || is_dense.count() != 1) return wrong;
    const int64_t M = *wanted.as<int64_t>(), Q = probes.dims[2], B = probes.dims[0], K = probes.dims[1];
    const bool dense = *is_dense.as<bool>();
    if (M < 1 || M > n_out || B * K != p.rows) return wrong;
    float* best = call.output(0, {B, K, M}).as<float>();
    int64_t* ids = call.output(1, {B, K, M}).as<int64_t>();
    float* normalizer = call.output(2, {B, K}).as<float>();
    float* probed = call.output(3, {B, K, Q}).as<float>();
    float* log_probs = call.output(4, {dense ? B : 0, dense ? K : 0, n_out}).as<float>();
    if (call.failure()) return nullptr;
    quantise(call, p);
    std::fill_n(probed, p.rows * Q, -INFINITY);  // for probed tokens that no block holds, as they are outside the vocabulary
    const Tensor may_leave = IS_INT8<S> ? Tensor{} : call.input(next + 3);
    const bool leaves = may_leave && *may_leave.as<bool>() && n_out_ && !dense;
    if (leaves && screen_.run(call, p, M, best, ids, Q, probes.as<int64_t>(), probed)) {
      std::fill_n(normalizer, p.rows, LEFT_OUT);
      return nullptr;
    }

    const bool sorts = M > MANY;  // candidates are found by sorting the logits of all tokens
    const int64_t kept = sorts ? 1 : M;
    float* logits = dense ? log_probs : sorts ? scratch<float, 3>(p.rows * n_out) : nullptr;
    RowSummary* rows = scratch<RowSummary, 4>(size_t(TASKS) * p.rows);
    float* values = scratch<float, 5>(size_t(TASKS) * p.rows * kept);
    int64_t* tokens = scratch<int64_t, 6>(size_t(TASKS) * p.rows * kept);
    for (int i = 0; i < TASKS * p.rows; i++) rows[i] = {-INFINITY, 0, 0, values + i * kept, tokens + i * kept};
    float* floor = scratch<float, 8>(p.rows);
    std::fill_n(floor, p.rows, -INFINITY);
    const int n_blocks = blocks_of(n_out), n_panels = (n_blocks + PANEL - 1) / PANEL;
    // Parts do not depend on how many rows there are, nor do sums.
    in_parts(call, n_panels, 1, int64_t(p.n_in) * n_out, [&](int part, int first, int end) {
      const Summary s{int(kept), int(Q), rows + part * p.rows, floor, probes.as<int64_t>(), probed, logits};
      kernels().summarise(p, first * PANEL, std::min(end * PANEL, n_blocks), s);
    });
    for (int row = 0; row < p.rows; row++) {
      const RowSummary found = merged(rows + row, p.rows, int(kept), best + row * M, ids + row * M);
      if (sorts) sort(logits + row * n_out, n_out, M, best + row * M, ids + row * M);
      for (int64_t i = sorts ? M : found.n; i < M; i++) {  // where NaN logits leave too few candidates: valid ids, score -inf
        best[row * M + i] = -INFINITY;
        ids[row * M + i] = i;
      }
      const float rest = std::log(found.total);
      if (leaves) {
        normalizer[row] = rest;
        continue;
      }
      for (int64_t i = 0; i < M; i++) best[row * M + i] = (best[row * M + i] - found.top) - rest;
      for (int i = 0; i < Q; i++) probed[row * Q + i] = (probed[row * Q + i] - found.top) - rest;
      normalizer[row] = found.top + rest;
      if (dense) {
        for (int64_t i = 0; i < n_out; i++) log_probs[row * n_out + i] = (log_probs[row * n_out + i] - found.top) - rest;
      }
    }
    return nullptr;
  }

 private:
  // Merges the tasks' summaries of a row; the best tokens go to `values` and `ids`. Tasks are in the order of tokens.
  static RowSummary merged(const RowSummary* first, int step, int n, float* values, int64_t* ids) {
    RowSummary all{-INFINITY, 0, 0, values, ids};
    for (int task = 0; task < TASKS; task++) all.top = std::max(all.top, first[task * step].top);
    int next[TASKS] = {};
    for (int task = 0; task < TASKS; task++) {
      const RowSummary& part = first[task * step];
      if (part.n || part.top > -INFINITY) all.total += part.total * std::exp(part.top - all.top);
    }
    for (; all.n < n; all.n++) {
      int from = -1;
      for (int task = 0; task < TASKS; task++) {
        const RowSummary& part = first[task * step];
        if (next[task] < part.n && (from < 0 || part.values[next[task]] > first[from * step].values[next[from]])) from = task;
      }
      if (from < 0) break;
      values[all.n] = first[from * step].values[next[from]];
      ids[all.n] = first[from * step].ids[next[from]++];
    }
    return all;
  }

  static void sort(const float* logits, int64_t n, int64_t wanted, float* values, int64_t* ids) {
    std::vector<int64_t> order(n);
    for (int64_t i = 0; i < n; i++) order[i] = i;
    // NaN sorts last: comparing with NaN itself would give no valid order.
    const auto value = [&](int64_t i) { return logits[i] == logits[i] ? logits[i] : -INFINITY; };
    std::partial_sort(order.begin(), order.begin() + wanted, order.end(), [&](int64_t a, int64_t b) {
      return value(a) > value(b) || (value(a) == value(b) && a < b);
    });
    for (int64_t i = 0; i < wanted; i++) {
      ids[i] = order[i];
      values[i] = logits[order[i]];
    }
  }

  int64_t n_out_;
  bool is_cached_;
  HeadScreen screen_;
};

template <Storage S>
void add_with_weights(std::vector<const OrtCustomOp*>& all) {
  all.insert(all.end(), {callbacks<Linear<S>>(), callbacks<Embedding<S>>(), callbacks<Head<S>>(), callbacks<TakeRows<S>>()});
}

}  // namespace

// All operators, for whoever calls them without ONNX Runtime (plugins/search/direct.h).
extern "C" __attribute__((visibility("default"))) const OrtCustomOp* const* s2s_operators(size_t* n) {
  static const std::vector<const OrtCustomOp*> operators = [] {
    std::vector<const OrtCustomOp*> all = {callbacks<SelfAttentionOperator>(), callbacks<CrossAttentionOperator<false>>(),
                                           callbacks<CrossAttentionOperator<true>>(), callbacks<EncoderAttentionOperator>(),
                                           callbacks<NormOperator>(), callbacks<GateOperator>(),
                                           callbacks<Windows>()};
    add_with_weights<Storage::fp32>(all);
    add_with_weights<Storage::fp16>(all);
    add_with_weights<Storage::bf16>(all);
    add_with_weights<Storage::int8>(all);
    return all;
  }();
  *n = operators.size();
  return operators.data();
}

extern "C" __attribute__((visibility("default"))) OrtStatus* RegisterCustomOps(
    OrtSessionOptions* options, const OrtApiBase* base) {
  OrtApi* api = base->GetApi(ort::VERSION);
  static OrtCustomOpDomain* domain = nullptr;  // never freed: sessions refer to it as long as the process lives
  if (!domain) {
    if (OrtStatus* status = ort::call<OrtStatus*>(api, ort::CREATE_CUSTOM_OP_DOMAIN, "s2s.cpu", &domain)) return status;
    size_t n = 0;
    const OrtCustomOp* const* operators = s2s_operators(&n);
    for (size_t i = 0; i < n; i++) {
      if (OrtStatus* status = ort::call<OrtStatus*>(api, ort::CUSTOM_OP_DOMAIN_ADD, domain, operators[i])) return status;
    }
  }
  return ort::call<OrtStatus*>(api, ort::ADD_CUSTOM_OP_DOMAIN, options, domain);
}

extern "C" __attribute__((visibility("default"))) const char* s2s_instruction_set() { return kernels().name; }

// Why the set of AMX was not taken; null where it was, and on other processors than x86's.
extern "C" __attribute__((visibility("default"))) const char* s2s_why_not_amx() { return chosen().why_not_amx; }

// What screening did in this process: rows, blocks of the output projection kept for them, rows that it was no use for.
extern "C" __attribute__((visibility("default"))) void s2s_screened(int64_t* out) {
  out[0] = HeadScreen::served;
  out[1] = HeadScreen::kept;
  out[2] = HeadScreen::unserved;
}
