// Graphs whose operators are called directly: for small models, whose step takes less time than ONNX Runtime's own work
// between the nodes, and which need less memory than ONNX Runtime's library.
//
// The operators of plugins/cpu ask for their tensors and attributes through ONNX Runtime's function table. Here they are
// given a table of our own, of the places that they use, so that they run as they are. A graph of these operators and of
// the few others in `plain` is run in its order, on one thread.
#pragma once

#include <dlfcn.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "../cpu/ort_abi.h"
#include "step.h"

extern "C" {
// A node of a graph. Mirrored by runtime/native_graphs/library.py.
typedef struct S2SNode {
  const char* op;         /* "Add", or "s2s.cpu.Linear" */
  const char* inputs;     /* names, each with a line's end; empty: left out */
  const char* outputs;
  const char* attributes; /* lines of name=value, whole numbers in decimal, with commas between them where it has several,
                             others in hexadecimal floating point */
} S2SNode;
}

namespace direct {

using ort::FLOAT, ort::INT64;
constexpr int64_t MOST = int64_t(1) << 40;  // elements of a tensor

inline size_t bytes_of(int type) {
  return type == INT64 ? 8 : type == ort::INT8 || type == ort::BOOL ? 1 : type == ort::UINT16 ? 2 : 4;
}

// Memory from the system. A lot of it comes in large pages where Linux has some, as rows that are computed some columns at a
// time otherwise lie on more pages than the processor remembers the addresses of.
struct Bytes {
  std::unique_ptr<char, void (*)(void*)> all{nullptr, std::free};
  size_t n = 0;

  Bytes() = default;
  explicit Bytes(size_t wanted) : n(wanted) {
    constexpr size_t PAGE = 2 << 20;
    void* found = nullptr;
    if (posix_memalign(&found, wanted < 2 * PAGE ? 64 : PAGE, std::max<size_t>(wanted, 1))) throw std::bad_alloc();
    all.reset(static_cast<char*>(found));
#if defined(MADV_HUGEPAGE)
    if (wanted >= 2 * PAGE) madvise(found, wanted / PAGE * PAGE, MADV_HUGEPAGE);  // a wish: without it the memory is as good
#endif
  }
};

// Memory that a run needs no more, for the values that it computes next: the system clears each page that it gives, which
// took a tenth of an encoder's time.
struct Spare {
  std::vector<Bytes> held;

  // At least so many bytes. Where none of those held has room, they are given back first, so that they are not kept
  // beside what replaces them.
  Bytes take(size_t wanted) {
    auto best = held.end();
    for (auto one = held.begin(); one != held.end(); ++one)
      if (one->n >= wanted && one->n / 2 <= wanted && (best == held.end() || one->n < best->n)) best = one;
    if (best == held.end()) {
      held.clear();
      return Bytes(wanted);
    }
    Bytes found = std::move(*best);
    held.erase(best);
    return found;
  }
};

// Memory that is not copied with what holds it, and not set.
struct Memory {
  Bytes bytes;
  Spare* spare = nullptr;  // where it comes from and goes to

  Memory() = default;
  Memory(const Memory&) {}
  Memory& operator=(const Memory&) = delete;
  // At a multiple of 64 bytes. What was there before is lost where it grows.
  void* room(size_t wanted) {
    if (!bytes.all || bytes.n < wanted) {
      release();
      bytes = spare ? spare->take(wanted) : Bytes(wanted);
    }
    return bytes.all.get();
  }
  void release() {
    if (spare && bytes.all) spare->held.push_back(std::move(bytes));
    bytes = {};
  }
};

struct Value {
  void* data = nullptr;
  std::vector<int64_t> dims;
  int type = FLOAT;
  bool is_bound = false;  // to memory of the caller's
  Memory own;

  int64_t count() const {
    int64_t n = 1;
    for (int64_t size : dims) n *= size;
    return n;
  }
  // Room for these sizes. False where it is bound to memory of another size or type.
  bool resize(const int64_t* sizes, size_t rank, int of_type) {
    const int64_t n_bound = is_bound ? count() : 0;
    int64_t n = 1;
    for (size_t i = 0; i < rank; i++) {
      if (sizes[i] < 0 || sizes[i] > INT32_MAX || (n *= sizes[i]) > MOST) return false;
    }
    dims.assign(sizes, sizes + rank);
    if (is_bound) return count() == n_bound && type == of_type;
    type = of_type;
    data = own.room(size_t(count()) * bytes_of(type));
    return true;
  }
  float* floats() const { return static_cast<float*>(data); }
  int64_t* ints() const { return static_cast<int64_t*>(data); }
  bool* bools() const { return static_cast<bool*>(data); }
};

struct Info {  // OrtKernelInfo
  std::map<std::string, std::string> attributes;

  int64_t whole(const char* name, int64_t otherwise) const {
    const auto found = attributes.find(name);
    return found == attributes.end() ? otherwise : std::strtoll(found->second.c_str(), nullptr, 10);
  }
  // Whole numbers with commas between them.
  std::vector<int64_t> list(const char* name) const {
    std::vector<int64_t> all;
    const auto found = attributes.find(name);
    if (found == attributes.end()) return all;
    for (const char* at = found->second.c_str(); *at;) {
      char* end = nullptr;
      all.push_back(std::strtoll(at, &end, 10));
      if (end == at) return {};
      at = *end ? end + 1 : end;
    }
    return all;
  }
};
struct Context {  // OrtKernelContext
  std::vector<Value*> inputs, outputs;
  const int* output_types;
};
struct Failure {  // OrtStatus
  std::string message;
};

inline Failure* failure(const char* message) { return new Failure{message}; }

// The function table that operators see.
struct Table {
  void* places[ort::PARALLEL_FOR + 1] = {};
  template <typename Function>
  void set(int place, Function* function) {
    places[place] = reinterpret_cast<void*>(function);
  }
  Table();
};

inline Table::Table() {
  set(ort::CREATE_STATUS, +[](int, const char* message) { return failure(message); });
  set(ort::GET_TENSOR_MUTABLE_DATA, +[](Value* value, void** data) -> Failure* { return *data = value->data, nullptr; });
  set(ort::GET_DIMENSIONS_COUNT, +[](const Value* value, size_t* rank) -> Failure* { return *rank = value->dims.size(), nullptr; });
  set(ort::GET_DIMENSIONS, +[](const Value* value, int64_t* dims, size_t rank) -> Failure* {
    std::copy_n(value->dims.begin(), std::min(rank, value->dims.size()), dims);
    return nullptr;
  });
  set(ort::GET_TENSOR_TYPE_AND_SHAPE, +[](const Value* value, Value** info) -> Failure* { return *info = const_cast<Value*>(value), nullptr; });
  set(ort::ATTRIBUTE_FLOAT, +[](const Info* info, const char* name, float* value) -> Failure* {
    const auto found = info->attributes.find(name);
    if (found == info->attributes.end()) return failure("no such attribute");
    *value = std::strtof(found->second.c_str(), nullptr);
    return nullptr;
  });
  set(ort::ATTRIBUTE_INT64, +[](const Info* info, const char* name, int64_t* value) -> Failure* {
    const auto found = info->attributes.find(name);
    if (found == info->attributes.end()) return failure("no such attribute");
    *value = std::strtoll(found->second.c_str(), nullptr, 10);
    return nullptr;
  });
  set(ort::INPUT_COUNT, +[](const Context* context, size_t* n) -> Failure* { return *n = context->inputs.size(), nullptr; });
  set(ort::OUTPUT_COUNT, +[](const Context* context, size_t* n) -> Failure* { return *n = context->outputs.size(), nullptr; });
  set(ort::INPUT, +[](const Context* context, size_t i, const Value** value) -> Failure* {
    *value = i < context->inputs.size() ? context->inputs[i] : nullptr;
    return nullptr;
  });
  set(ort::OUTPUT, +[](Context* context, size_t i, const int64_t* dims, size_t rank, Value** value) -> Failure* {
    *value = i < context->outputs.size() ? context->outputs[i] : nullptr;
    try {
      const bool fits = !*value || (*value)->resize(dims, rank, context->output_types[i]);
      return fits ? nullptr : failure("an output has another size than the memory for it");
    } catch (const std::exception&) {
      return failure("Failed to allocate memory");
    }
  });
  set(ort::RELEASE_STATUS, +[](Failure* status) { delete status; });
  set(ort::RELEASE_TENSOR_TYPE_AND_SHAPE, +[](Value*) {});
  set(ort::PARALLEL_FOR, +[](const Context*, void (*body)(void*, size_t), size_t n, size_t, void* given) -> Failure* {
    for (size_t i = 0; i < n; i++) body(given, i);
    return nullptr;
  });
}

// The operators of ONNX itself that steps have between ours. Values are float32, int64 or bool.
namespace plain {

using Dims = std::vector<int64_t>;
using Inputs = std::vector<const Value*>;

inline void fit(bool is_so, const char* otherwise) {
  if (!is_so) throw std::runtime_error(otherwise);
}
inline void make(Value& y, const Dims& dims, int type) {
  fit(y.resize(dims.data(), dims.size(), type), "a tensor is bound to memory of another size");
}
inline void need(const Value& value, int type) { fit(value.type == type, "a tensor has another type"); }

// The sizes of numpy's broadcasting.
inline Dims broadcast(const Dims& a, const Dims& b) {
  const size_t rank = std::max(a.size(), b.size());
  Dims dims(rank);
  for (size_t i = 0; i < rank; i++) {
    const int64_t in_a = i + a.size() < rank ? 1 : a[i + a.size() - rank];
    const int64_t in_b = i + b.size() < rank ? 1 : b[i + b.size() - rank];
    fit(in_a == in_b || in_a == 1 || in_b == 1, "sizes of two tensors do not fit");
    dims[i] = in_a == 1 ? in_b : in_a;
  }
  return dims;
}

// By how much to go on in a tensor for each of the sizes that it is broadcast to.
inline Dims steps(const Dims& own, const Dims& dims) {
  Dims found(dims.size(), 0);
  int64_t step = 1;
  for (size_t i = own.size(); i-- > 0;) {
    if (own[i] != 1) found[i + dims.size() - own.size()] = step;
    step *= own[i];
  }
  return found;
}

// Calls each(from, to) for each element of y, which some tensors are broadcast to: its place in each of them and in y.
template <size_t N, typename Each>
void broadcasting(const Inputs& in, Value& y, Each each) {
  const Dims& dims = y.dims;
  std::array<Dims, N> by;
  for (size_t i = 0; i < N; i++) by[i] = steps(in[i]->dims, dims);
  Dims at(dims.size(), 0);
  const size_t rank = dims.size();
  const int64_t inner = rank ? dims[rank - 1] : 1, n = y.count();
  for (int64_t done = 0; done < n; done += inner) {
    std::array<int64_t, N> from{};
    for (size_t i = 0; i < N; i++)
      for (size_t d = 0; d + 1 < rank; d++) from[i] += at[d] * by[i][d];
    for (int64_t k = 0; k < inner; k++) {
      each(from, done + k);
      for (size_t i = 0; rank && i < N; i++) from[i] += by[i][rank - 1];
    }
    for (size_t d = rank; d-- > 1;) {
      if (++at[d - 1] < dims[d - 1]) break;
      at[d - 1] = 0;
    }
  }
}

// y[i] = f(a[i], b[i]), broadcast.
template <typename T, typename Result, typename F>
void elementwise(const Inputs& in, Value& y, int type, F f) {
  need(*in[1], in[0]->type);
  make(y, broadcast(in[0]->dims, in[1]->dims), type);
  const T *a = static_cast<T*>(in[0]->data), *b = static_cast<T*>(in[1]->data);
  Result* z = static_cast<Result*>(y.data);
  if (y.dims == in[0]->dims && (y.dims == in[1]->dims || in[1]->count() == 1)) {  // rows with rows, or with a number
    const int64_t step = in[1]->count() != 1;
    for (int64_t i = 0, n = y.count(); i < n; i++) z[i] = f(a[i], b[i * step]);
    return;
  }
  broadcasting<2>(in, y, [&](const auto& from, int64_t to) { z[to] = f(a[from[0]], b[from[1]]); });
}

template <typename F>
void arithmetic(const Inputs& in, Value& y, F f) {
  if (in[0]->type == INT64) return elementwise<int64_t, int64_t>(in, y, INT64, f);
  need(*in[0], FLOAT);
  elementwise<float, float>(in, y, FLOAT, f);
}
inline void add(const Inputs& in, const Info&, Value& y) {
  arithmetic(in, y, [](auto a, auto b) { return a + b; });
}
inline void subtract(const Inputs& in, const Info&, Value& y) {
  arithmetic(in, y, [](auto a, auto b) { return a - b; });
}
inline void multiply(const Inputs& in, const Info&, Value& y) {
  arithmetic(in, y, [](auto a, auto b) { return a * b; });
}

// What follows, up to `range`, computes positions: whole numbers.
template <typename Result, typename F>
void of_whole(const Inputs& in, Value& y, int type, F f) {
  need(*in[0], INT64);
  elementwise<int64_t, Result>(in, y, type, f);
}
inline void larger(const Inputs& in, const Info&, Value& y) {
  of_whole<int64_t>(in, y, INT64, [](int64_t a, int64_t b) { return std::max(a, b); });
}
inline void smaller(const Inputs& in, const Info&, Value& y) {
  of_whole<int64_t>(in, y, INT64, [](int64_t a, int64_t b) { return std::min(a, b); });
}
inline void equal(const Inputs& in, const Info&, Value& y) {
  of_whole<bool>(in, y, ort::BOOL, [](int64_t a, int64_t b) { return a == b; });
}
inline void less(const Inputs& in, const Info&, Value& y) {
  of_whole<bool>(in, y, ort::BOOL, [](int64_t a, int64_t b) { return a < b; });
}
inline void greater(const Inputs& in, const Info&, Value& y) {
  of_whole<bool>(in, y, ort::BOOL, [](int64_t a, int64_t b) { return a > b; });
}
inline void either(const Inputs& in, const Info&, Value& y) {
  need(*in[0], ort::BOOL);
  elementwise<bool, bool>(in, y, ort::BOOL, [](bool a, bool b) { return a || b; });
}
inline void negate(const Inputs& in, const Info&, Value& y) {
  need(*in[0], ort::BOOL);
  make(y, in[0]->dims, ort::BOOL);
  for (int64_t i = 0, n = y.count(); i < n; i++) y.bools()[i] = !in[0]->bools()[i];
}
template <typename T>
void choose(const Inputs& in, Value& y) {
  const T *a = static_cast<T*>(in[1]->data), *b = static_cast<T*>(in[2]->data);
  T* to = static_cast<T*>(y.data);
  broadcasting<3>(in, y, [&](const auto& from, int64_t i) { to[i] = in[0]->bools()[from[0]] ? a[from[1]] : b[from[2]]; });
}
inline void where(const Inputs& in, const Info&, Value& y) {
  need(*in[0], ort::BOOL);
  need(*in[2], in[1]->type);
  make(y, broadcast(in[0]->dims, broadcast(in[1]->dims, in[2]->dims)), in[1]->type);
  if (y.type == INT64) return choose<int64_t>(in, y);
  need(y, FLOAT);
  choose<float>(in, y);
}
// Of whole numbers and truth values.
inline void cast(const Inputs& in, const Info& info, Value& y) {
  const Value& x = *in[0];
  fit(x.type == INT64 || x.type == ort::BOOL, "what is cast has another type");
  make(y, x.dims, int(info.whole("to", 0)));
  for (int64_t i = 0, n = y.count(); i < n; i++) {
    const int64_t value = x.type == INT64 ? x.ints()[i] : x.bools()[i];
    if (y.type == INT64) y.ints()[i] = value;
    else if (y.type == ort::BOOL) y.bools()[i] = value != 0;
    else if (y.type == FLOAT) y.floats()[i] = float(value);
    else fit(false, "a cast gives another type");
  }
}
inline void range(const Inputs& in, const Info&, Value& y) {
  for (const Value* value : in) need(*value, INT64), fit(value->count() == 1, "a range is not told by three numbers");
  const int64_t first = *in[0]->ints(), end = *in[1]->ints(), step = *in[2]->ints();
  fit(step != 0 && std::abs(first) < MOST && std::abs(end) < MOST, "a range has no end");
  const int64_t n = std::max<int64_t>(0, (end - first + step - (step > 0 ? 1 : -1)) / step);
  make(y, {n}, INT64);
  for (int64_t i = 0; i < n; i++) y.ints()[i] = first + i * step;
}

// The same memory with other sizes: nothing is ever written over an input.
inline void view(const Value& x, const Dims& dims, Value& y) {
  fit(!y.is_bound, "a tensor of other sizes is bound to other memory");
  y.data = x.data;
  y.dims = dims;
  y.type = x.type;
  fit(y.count() == x.count(), "sizes do not fit their tensor");
}

inline void reshape(const Inputs& in, const Info&, Value& y) {
  const Value &x = *in[0], &shape = *in[1];
  need(shape, INT64);
  Dims dims(shape.ints(), shape.ints() + shape.count());
  int64_t known = 1, open = -1;
  for (size_t i = 0; i < dims.size(); i++) {
    if (dims[i] == 0 && i < x.dims.size()) dims[i] = x.dims[i];
    if (dims[i] == -1) open = int64_t(i);
    else known *= dims[i];
  }
  if (open >= 0 && known) dims[open] = x.count() / known;
  view(x, dims, y);
}

// Which of `rank` axes are named by a tensor.
inline std::vector<bool> axes_of(const Value& axes, int64_t rank) {
  need(axes, INT64);
  std::vector<bool> found(rank, false);
  for (int64_t i = 0; i < axes.count(); i++) {
    const int64_t axis = axes.ints()[i] < 0 ? axes.ints()[i] + rank : axes.ints()[i];
    fit(axis >= 0 && axis < rank && !found[axis], "an axis is out of range");
    found[axis] = true;
  }
  return found;
}

inline void unsqueeze(const Inputs& in, const Info&, Value& y) {
  const int64_t rank = int64_t(in[0]->dims.size()) + in[1]->count();
  const std::vector<bool> is_new = axes_of(*in[1], rank);
  Dims dims;
  for (int64_t i = 0, from = 0; i < rank; i++) dims.push_back(is_new[i] ? 1 : in[0]->dims[from++]);
  view(*in[0], dims, y);
}

inline void squeeze(const Inputs& in, const Info&, Value& y) {
  const Dims& own = in[0]->dims;
  const std::vector<bool> is_named = in.size() > 1 ? axes_of(*in[1], int64_t(own.size())) : std::vector<bool>();
  Dims dims;
  for (size_t i = 0; i < own.size(); i++)
    if (in.size() > 1 ? !is_named[i] : own[i] != 1) dims.push_back(own[i]);
  view(*in[0], dims, y);
}

inline void expand(const Inputs& in, const Info&, Value& y) {
  const Value &x = *in[0], &shape = *in[1];
  need(x, INT64);
  need(shape, INT64);
  make(y, broadcast(x.dims, Dims(shape.ints(), shape.ints() + shape.count())), INT64);
  broadcasting<1>(in, y, [&](const auto& from, int64_t to) { y.ints()[to] = x.ints()[from[0]]; });
}

inline void gather(const Inputs& in, const Info& info, Value& y) {
  const Value &x = *in[0], &indices = *in[1];
  need(indices, INT64);
  fit(x.type == FLOAT || x.type == INT64, "rows have another type");
  const int64_t rank = int64_t(x.dims.size()), given = info.whole("axis", 0), axis = given < 0 ? given + rank : given;
  fit(axis >= 0 && axis < rank, "rows of an axis that there is not");
  Dims dims(x.dims.begin(), x.dims.begin() + axis);
  dims.insert(dims.end(), indices.dims.begin(), indices.dims.end());
  dims.insert(dims.end(), x.dims.begin() + axis + 1, x.dims.end());
  make(y, dims, x.type);
  size_t n_outer = 1, width = bytes_of(x.type);
  for (int64_t i = 0; i < rank; i++) (i < axis ? n_outer : width) *= i == axis ? 1 : size_t(x.dims[i]);
  const int64_t n = indices.count(), n_rows = x.dims[axis];
  char* to = static_cast<char*>(y.data);
  for (size_t outer = 0; outer < n_outer; outer++) {
    const char* from = static_cast<char*>(x.data) + outer * size_t(n_rows) * width;
    for (int64_t i = 0; i < n; i++, to += width) {
      const int64_t row = indices.ints()[i] < 0 ? indices.ints()[i] + n_rows : indices.ints()[i];
      fit(row >= 0 && row < n_rows, "an index is out of range");
      std::memcpy(to, from + size_t(row) * width, width);
    }
  }
}

// A tensor as [outer, n, inner] around one of its axes.
struct Around {
  size_t axis, outer = 1, inner = 1;
  Around(const Dims& dims, int64_t given) {
    const int64_t rank = int64_t(dims.size());
    fit(given >= -rank && given < rank, "there is no such axis");
    axis = size_t(given < 0 ? given + rank : given);
    for (size_t i = 0; i < dims.size(); i++)
      if (i != axis) (i < axis ? outer : inner) *= size_t(dims[i]);
  }
};

inline void concat(const Inputs& in, const Info& info, Value& y) {
  const Value& first = *in[0];
  fit(first.type == FLOAT || first.type == INT64, "what is put together has another type");
  const Around around(first.dims, info.whole("axis", 0));
  Dims dims = first.dims;
  for (size_t i = 1; i < in.size(); i++) {
    need(*in[i], first.type);
    Dims others = in[i]->dims;
    fit(others.size() == dims.size(), "sizes of two tensors do not fit");
    dims[around.axis] += others[around.axis];
    others[around.axis] = dims[around.axis];
    fit(others == dims, "sizes of two tensors do not fit");
  }
  make(y, dims, first.type);
  char* to = static_cast<char*>(y.data);
  for (size_t outer = 0; outer < around.outer; outer++)
    for (const Value* x : in) {
      const size_t bytes = size_t(x->dims[around.axis]) * around.inner * bytes_of(x->type);
      if (bytes) std::memcpy(to, static_cast<char*>(x->data) + outer * bytes, bytes);
      to += bytes;
    }
}

// One of the `parts` that a tensor is cut into: runtime/native_graphs/direct.py makes a node of each.
inline void split(const Inputs& in, const Info& info, Value& y) {
  const Value& x = *in[0];
  fit(x.type == FLOAT || x.type == INT64, "what is cut has another type");
  const Around around(x.dims, info.whole("axis", 0));
  const int64_t n = x.dims[around.axis], parts = info.whole("parts", 0), part = info.whole("part", 0);
  fit(parts > 0 && part >= 0 && part < parts, "a tensor is cut into no parts");
  int64_t first = 0, size = (n + parts - 1) / parts;
  if (in.size() > 1) {
    need(*in[1], INT64);
    fit(in[1]->count() == parts, "a tensor is cut into other parts than are named");
    for (int64_t i = 0; i < part; i++) first += in[1]->ints()[i];
    size = in[1]->ints()[part];
  } else {
    first = part * size;
    size = std::min(size, n - first);
  }
  fit(first >= 0 && size >= 0 && first <= n && size <= n - first, "a part lies outside of its tensor");
  Dims dims = x.dims;
  dims[around.axis] = size;
  make(y, dims, x.type);
  const size_t each = around.inner * bytes_of(x.type), bytes = size_t(size) * each;
  for (size_t outer = 0; bytes && outer < around.outer; outer++)
    std::memcpy(static_cast<char*>(y.data) + outer * bytes, static_cast<char*>(x.data) + (outer * size_t(n) + size_t(first)) * each, bytes);
}

inline void transpose(const Inputs& in, const Info& info, Value& y) {
  const Value& x = *in[0];
  need(x, FLOAT);
  const std::vector<int64_t> order = info.list("perm");
  const size_t rank = x.dims.size();
  fit(order.size() == rank, "axes are no order of a tensor's");
  std::vector<bool> is_used(rank, false);
  Dims dims, by, own(rank, 1);
  for (size_t i = rank; i-- > 1;) own[i - 1] = own[i] * x.dims[i];
  for (int64_t axis : order) {
    fit(axis >= 0 && size_t(axis) < rank && !is_used[size_t(axis)], "axes are no order of a tensor's");
    is_used[size_t(axis)] = true;
    dims.push_back(x.dims[size_t(axis)]);
    by.push_back(own[size_t(axis)]);
  }
  make(y, dims, FLOAT);
  if (!rank || !y.count()) return;
  const int64_t inner = dims[rank - 1], step = by[rank - 1];
  Dims at(rank, 0);
  float* to = y.floats();
  for (int64_t done = 0, n = y.count(); done < n; done += inner, to += inner) {
    const float* from = x.floats();
    for (size_t i = 0; i + 1 < rank; i++) from += at[i] * by[i];
    if (step == 1) std::memcpy(to, from, size_t(inner) * sizeof(float));
    else for (int64_t i = 0; i < inner; i++) to[i] = from[i * step];
    for (size_t i = rank - 1; i-- > 0;) {
      if (++at[i] < dims[i]) break;
      at[i] = 0;
    }
  }
}

inline void cumulative_sum(const Inputs& in, const Info&, Value& y) {
  const Value &x = *in[0], &axis = *in[1];
  need(x, INT64);
  need(axis, INT64);
  fit(axis.count() == 1, "sums are along one axis");
  const Around around(x.dims, *axis.ints());
  make(y, x.dims, INT64);
  const size_t n = size_t(x.dims[around.axis]);
  for (size_t outer = 0; outer < around.outer; outer++)
    for (size_t i = 0; i < around.inner; i++) {
      uint64_t sum = 0;
      for (size_t k = 0; k < n; k++) {
        const size_t at = (outer * n + k) * around.inner + i;
        sum += uint64_t(x.ints()[at]);
        y.ints()[at] = int64_t(sum);
      }
    }
}

inline void shape(const Inputs& in, const Info& info, Value& y) {
  const Dims& dims = in[0]->dims;
  const int64_t rank = int64_t(dims.size());
  auto limit = [&](const char* name, int64_t otherwise) {
    const int64_t at = info.whole(name, otherwise);
    return std::clamp<int64_t>(at < 0 ? at + rank : at, 0, rank);
  };
  const int64_t first = limit("start", 0), n = std::max<int64_t>(0, limit("end", rank) - first);
  make(y, {n}, INT64);
  std::copy_n(dims.begin() + first, n, y.ints());
}

struct Operator {
  size_t least, most;  // inputs
  void (*run)(const Inputs&, const Info&, Value&);
};
inline const std::map<std::string, Operator>& all() {
  static const std::map<std::string, Operator> found = {
      {"Add", {2, 2, add}},         {"Sub", {2, 2, subtract}},    {"Mul", {2, 2, multiply}},
      {"Max", {2, 2, larger}},      {"Min", {2, 2, smaller}},     {"Equal", {2, 2, equal}},
      {"Not", {1, 1, negate}},      {"Where", {3, 3, where}},     {"Range", {3, 3, range}},
      {"Reshape", {2, 2, reshape}}, {"Gather", {2, 2, gather}},   {"Unsqueeze", {2, 2, unsqueeze}},
      {"Squeeze", {1, 2, squeeze}}, {"Expand", {2, 2, expand}},   {"Shape", {1, 1, shape}},
      {"Cast", {1, 1, cast}},       {"Concat", {1, 64, concat}},  {"Split", {1, 2, split}},
      {"Less", {2, 2, less}},       {"Greater", {2, 2, greater}}, {"Or", {2, 2, either}},
      {"Transpose", {1, 1, transpose}}, {"CumSum", {2, 2, cumulative_sum}}};
  return found;
}

}  // namespace plain

struct Node {
  std::string op;
  std::vector<int> inputs, outputs;  // among the graph's values; -1: left out
  std::vector<int> input_types, output_types;
  std::vector<bool> is_required;
  Info info;
  const OrtCustomOp* callbacks = nullptr;
  void* kernel = nullptr;
  void (*run)(const plain::Inputs&, const Info&, Value&) = nullptr;  // of a plain operator
  bool is_fixed = false;  // its output is the same until something is bound anew
  std::vector<int> last_of;  // values whose memory nothing after this node reads
};

constexpr const char* LEAVES = "leaves_normalizer";  // an input of a Head that is called directly

// Whether a node is an output projection that may leave normalisers out: of floats, all whose tokens are known.
inline bool is_screened_head(const Node& node) {
  return (node.op == "s2s.cpu.Head" || node.op == "s2s.cpu.HeadFp16" || node.op == "s2s.cpu.HeadBf16") &&
         node.info.whole("n_out", 0) > 0;
}

inline std::vector<std::string> lines(const char* text) {
  std::vector<std::string> found;
  for (const char* end; (end = std::strchr(text, '\n')); text = end + 1) found.emplace_back(text, end);
  return found;
}

inline void check(Failure* status) {
  if (!status) return;
  const std::string message = status->message;
  delete status;
  throw std::runtime_error(message);
}

// A graph's nodes and weights. Safe to use from several threads: what changes is in `Run`.
class Graph {
 public:
  // kept: names of the values that are read after a run, each with a line's end, of a graph that is run once for a batch;
  // the memory of others is given back as soon as no node needs it. Empty for a step, which finds its memory again.
  Graph(const char* operators, const S2SNode* given, int n_nodes, const S2STensor* weights, int n_weights, const char* kept) {
    for (int i = 0; i < n_weights; i++) {
      Value& value = first[index(weights[i].name)];
      value.data = weights[i].data;
      value.dims.assign(weights[i].shape, weights[i].shape + weights[i].n_dimensions);
      value.type = weights[i].type;
      value.is_bound = true;
    }
    const bool is_cached = bytes_of_weights() <= std::min(cache_bytes() / 2, MOST_CACHED);
    void* library = dlopen(operators, RTLD_NOW | RTLD_LOCAL);
    if (!library) throw std::runtime_error(dlerror());
    auto listed = reinterpret_cast<const OrtCustomOp* const* (*)(size_t*)>(dlsym(library, "s2s_operators"));
    if (!listed) throw std::runtime_error("the operators can't be called directly");
    size_t n = 0;
    const OrtCustomOp* const* all = listed(&n);
    std::set<int> is_made, is_fixed;  // values
    for (int i = 0; i < n_nodes; i++) {
      Node node;
      node.op = given[i].op;
      for (const std::string& name : lines(given[i].inputs)) node.inputs.push_back(name.empty() ? -1 : index(name));
      for (const std::string& name : lines(given[i].outputs)) node.outputs.push_back(name.empty() ? -1 : index(name));
      for (const std::string& line : lines(given[i].attributes)) {
        const size_t at = line.find('=');
        node.info.attributes[line.substr(0, at)] = line.substr(at + 1);
      }
      if (node.op.rfind("s2s.cpu.", 0) == 0) {
        node.info.attributes["is_cached"] = is_cached ? "1" : "0";
        for (size_t j = 0; j < n; j++)
          if (node.op == std::string("s2s.cpu.") + all[j]->GetName(all[j])) node.callbacks = all[j];
        if (!node.callbacks) throw std::runtime_error("there is no operator " + node.op);
        const size_t n_inputs = node.callbacks->GetInputTypeCount(node.callbacks);
        for (size_t j = 0; j < n_inputs; j++) {
          node.input_types.push_back(node.callbacks->GetInputType(node.callbacks, j));
          node.is_required.push_back(node.callbacks->GetInputCharacteristic(node.callbacks, j) == ort::REQUIRED);
        }
        if (node.inputs.size() > n_inputs) throw std::runtime_error(node.op + " has too many inputs");
        node.inputs.resize(n_inputs, -1);
        if (is_screened_head(node)) node.inputs.back() = index(LEAVES);
        for (size_t j = 0; j < node.callbacks->GetOutputTypeCount(node.callbacks); j++)
          node.output_types.push_back(node.callbacks->GetOutputType(node.callbacks, j));
        if (node.outputs.size() > node.output_types.size()) throw std::runtime_error(node.op + " has too many outputs");
        node.outputs.resize(node.output_types.size(), -1);
        check(reinterpret_cast<Failure*>(node.callbacks->CreateKernelV2(
            node.callbacks, table().places, reinterpret_cast<const OrtKernelInfo*>(&node.info), &node.kernel)));
      } else {
        const auto known = plain::all().find(node.op);
        if (known == plain::all().end() || node.inputs.size() < known->second.least ||
            node.inputs.size() > known->second.most || node.outputs.size() != 1 || node.outputs[0] < 0 ||
            std::count(node.inputs.begin(), node.inputs.end(), -1)) {
          throw std::runtime_error("there is no " + node.op + " with these inputs");
        }
        node.run = known->second.run;
        // Sizes of what is bound, and what is made of them and of weights.
        node.is_fixed = std::all_of(node.inputs.begin(), node.inputs.end(), [&](int j) {
          return is_fixed.count(j) || first[j].is_bound || (node.op == "Shape" && !is_made.count(j));
        });
        if (node.is_fixed) is_fixed.insert(node.outputs[0]);
      }
      is_made.insert(node.outputs.begin(), node.outputs.end());
      nodes.push_back(std::move(node));
    }
    if (*kept) find_last_uses(lines(kept));
  }
  ~Graph() {
    for (Node& node : nodes)
      if (node.kernel) node.callbacks->KernelDestroy(node.kernel);
  }
  Graph(const Graph&) = delete;

  int index(const std::string& name) {
    const auto [found, is_new] = names.emplace(name, int(first.size()));
    if (is_new) first.emplace_back();
    return found->second;
  }
  int find(const char* name) const {
    const auto found = names.find(name);
    return found == names.end() ? -1 : found->second;
  }

  std::vector<Node> nodes;
  std::vector<Value> first;  // weights, and empty places for what is computed

 private:
  std::map<std::string, int> names;

  void find_last_uses(const std::vector<std::string>& kept) {
    std::vector<int> owner(first.size());  // whose memory a value is
    for (size_t i = 0; i < owner.size(); i++) owner[i] = int(i);
    std::map<int, Node*> last;
    for (Node& node : nodes) {
      if (node.op == "Reshape" || node.op == "Unsqueeze" || node.op == "Squeeze")
        owner[size_t(node.outputs[0])] = owner[size_t(node.inputs[0])];
      for (const auto* of_node : {&node.inputs, &node.outputs})
        for (int i : *of_node)
          if (i >= 0) last[owner[size_t(i)]] = &node;
    }
    for (const std::string& name : kept)
      if (const int i = find(name.c_str()); i >= 0) last.erase(owner[size_t(i)]);
    for (const auto& [value, node] : last) node->last_of.push_back(value);
  }

  // A larger cache is shared by all cores of a server, and slower than asking ahead: Xeon with 480 MiB, 207 MB of weights.
  static constexpr size_t MOST_CACHED = size_t(64) << 20;

  size_t bytes_of_weights() const {
    size_t n = 0;
    for (const Value& value : first)
      if (value.is_bound) n += size_t(value.count()) * bytes_of(value.type);
    return n;
  }
  // Of the last level; 0 where the system does not say.
  static size_t cache_bytes() {
#if defined(_SC_LEVEL3_CACHE_SIZE)
    return size_t(std::max(0l, sysconf(_SC_LEVEL3_CACHE_SIZE)));
#else
    return 0;
#endif
  }
  static const Table& table() {
    static const Table made;
    return made;
  }
};

// The values of one batch.
class Run {
 public:
  explicit Run(const Graph& graph) : graph(graph), values(graph.first) {
    for (Value& value : values) value.own.spare = &spare;
  }
  Run(const Run&) = delete;

  // False where the graph has no such value.
  bool bind(const char* name, void* data, int type, const std::vector<int64_t>& dims) {
    const int i = graph.find(name);
    if (i < 0) return false;
    values[i].data = data;
    values[i].dims = dims;
    values[i].type = type;
    values[i].is_bound = true;
    is_first = true;
    return true;
  }

  const Value* find_input(const Node& node, size_t i) const { return &values[size_t(node.inputs[i])]; }

  // Null where the graph has no such value.
  const Value* find(const char* name) const {
    const int i = graph.find(name);
    return i < 0 ? nullptr : &values[i];
  }

  void operator()() {
    for (const Node& node : graph.nodes) {
      if (is_first) require(node);
      if (node.callbacks) {
        run(node);
      } else if (is_first || !node.is_fixed) {
        inputs.clear();
        for (int i : node.inputs) inputs.push_back(&values[i]);
        node.run(inputs, node.info, values[node.outputs[0]]);
      }
      for (int i : node.last_of) values[size_t(i)].own.release();
    }
    is_first = false;
    spare.held.clear();
  }

  // Runs one of our operators alone. given, found: in place of its own inputs and outputs, where they are not null.
  void run(const Node& node, const std::vector<Value*>& given = {}, const std::vector<Value*>& found = {}) {
    const auto fill = [this](std::vector<Value*>& to, const std::vector<int>& own, const std::vector<Value*>& others) {
      to.clear();
      for (size_t i = 0; i < own.size(); i++)
        to.push_back(i < others.size() && others[i] ? others[i] : own[i] < 0 ? nullptr : &values[size_t(own[i])]);
    };
    fill(context.inputs, node.inputs, given);
    fill(context.outputs, node.outputs, found);
    context.output_types = node.output_types.data();
    check(reinterpret_cast<Failure*>(
        node.callbacks->KernelComputeV2(node.kernel, reinterpret_cast<OrtKernelContext*>(&context))));
  }

  // Null where the graph has no such value, or has not run.
  const Value* value(const char* name) const {
    const int i = graph.find(name);
    return i < 0 || !values[size_t(i)].data ? nullptr : &values[size_t(i)];
  }

 private:
  const Graph& graph;
  Spare spare;
  std::vector<Value> values;
  Context context;
  plain::Inputs inputs;
  bool is_first = true;  // since something was bound

  // Operators check sizes; ONNX Runtime would have checked types and what is left out. Neither changes between runs.
  void require(const Node& node) const {
    for (size_t i = 0; i < node.inputs.size(); i++) {
      const Value* value = node.inputs[i] < 0 ? nullptr : &values[node.inputs[i]];
      const bool is_there = value && value->data;
      const bool fits = node.callbacks ? is_there ? value->type == node.input_types[i] : !value && !node.is_required[i]
                                       : is_there;
      if (!fits) throw std::runtime_error(node.op + " was given a tensor of another type, or none");
    }
  }
};

}  // namespace direct

namespace s2s {

// The step of one batch, of a graph whose operators are called directly.
class DirectStep : public Step {
 public:
  // As of SessionStep.
  DirectStep(const direct::Graph& graph, const S2STensor* inputs, int n_inputs, const S2STensor* caches, int n_caches, int B,
             int K)
      : run_(graph), B(B), K(K), log_normalizer(size_t(B) * K) {
    for (int i = 0; i < n_inputs; i++) bind(inputs[i]);
    for (int i = 0; i < n_caches; i++) bind(caches[i]);
    run_.bind("n_candidates", &n_candidates, ort::INT64, {1});
    run_.bind("want_log_probs", &wants_whole, ort::BOOL, {});
    run_.bind("log_normalizer", log_normalizer.data(), ort::FLOAT, {B, K});
    run_.bind(direct::LEAVES, &leaves, ort::BOOL, {});
    for (const direct::Node& node : graph.nodes)
      if (direct::is_screened_head(node)) head = &node;
  }

  Found run(const Query& query) override {
    const int M = query.n_candidates, Q = max(1, query.n_probes);
    const size_t R = size_t(B) * K;
    if (M != n_candidates || Q != n_probes) {
      n_candidates = M;
      n_probes = Q;
      ids.resize(R * M);
      log_probs.resize(R * M);
      probed.resize(R * Q);
      probe_ids.assign(R * Q, 0);
      run_.bind("candidate_ids", ids.data(), ort::INT64, {B, K, M});
      run_.bind("candidate_log_probs", log_probs.data(), ort::FLOAT, {B, K, M});
      run_.bind("probe_log_probs", probed.data(), ort::FLOAT, {B, K, Q});
      run_.bind("probe_ids", probe_ids.data(), ort::INT64, {B, K, Q});
    }
    std::copy(query.probe_ids.begin(), query.probe_ids.end(), probe_ids.begin());
    wants_whole = query.whole;
    leaves = query.may_leave && !query.whole && pause == 0;
    pause -= pause > 0;
    run_();
    if (leaves && std::count(log_normalizer.begin(), log_normalizer.end(), LEFT_OUT) == 0) pause = PAUSE;
    return found(whole(query));
  }

  bool can_leave() const override { return head != nullptr; }
  Found complete() override {
    leaves = false;
    run_.run(*head);
    return found(nullptr);
  }
  void keep(const std::vector<int32_t>& rows) override {
    if (rows.empty()) return;
    const direct::Value& states = *run_.find_input(*head, 0);
    const size_t width = size_t(states.dims.back());
    for (int32_t row : rows) kept.insert(kept.end(), states.floats() + row * width, states.floats() + (row + 1) * width);
    n_kept += rows.size();
  }
  const float* normalizers() override {
    const int64_t n = int64_t(n_kept), width = int64_t(kept.size()) / n;
    std::vector<int64_t> no_probes(n_kept, 0);
    int64_t one = 1;
    bool no = false;
    direct::Value rows, wanted, probes, is_left, best, best_ids, sums, of_probes;
    const auto show = [](direct::Value& value, void* data, int type, const std::vector<int64_t>& dims) {
      value.data = data;
      value.type = type;
      value.dims = dims;
    };
    show(rows, kept.data(), ort::FLOAT, {n, width});
    show(wanted, &one, ort::INT64, {1});
    show(probes, no_probes.data(), ort::INT64, {n, 1, 1});
    show(is_left, &no, ort::BOOL, {});
    run_.run(*head, {&rows, nullptr, nullptr, &wanted, &probes, &is_left, &is_left}, {&best, &best_ids, &sums, &of_probes, &unused});
    settled.resize(n_kept);
    for (size_t i = 0; i < n_kept; i++) settled[i] = -best.floats()[i];  // the best has the logit 0 less the best
    kept.clear();
    n_kept = 0;
    return settled.data();
  }

 private:
  static constexpr int PAUSE = 16;  // steps for which nothing is left out after one that could not
  bool leaves = false;
  int pause = 0;
  const direct::Node* head = nullptr;
  std::vector<float> kept, settled;  // kept: rows of states
  size_t n_kept = 0;
  direct::Value unused;

  direct::Run run_;
  const int B, K;
  int64_t n_candidates = -1;
  int n_probes = -1;
  bool wants_whole = false;
  std::vector<int64_t> probe_ids, ids;
  std::vector<float> log_probs, probed, log_normalizer;

  Found found(float* all) {
    Found made{ids.data(), log_probs.data(), log_normalizer.data(), probed.data(), int(n_candidates), n_probes, all};
    made.is_left = leaves;
    return made;
  }

  float* whole(const Query& query) const {
    if (!query.whole) return nullptr;
    const direct::Value* found = run_.find("log_probs");
    const bool is_there = found && found->data && found->type == ort::FLOAT && found->count() == int64_t(B) * K * query.vocabulary;
    if (!is_there) throw std::runtime_error("the decoder step does not tell the whole distribution");
    return found->floats();
  }

  void bind(const S2STensor& t) {
    run_.bind(t.name, t.data, t.type, std::vector<int64_t>(t.shape, t.shape + t.n_dimensions));
  }
};

}  // namespace s2s
