// A decoder step whose operators are called directly: for small models, whose step takes less time than ONNX Runtime's own
// work between the nodes.
//
// The operators of plugins/cpu ask for their tensors and attributes through ONNX Runtime's function table. Here they are
// given a table of our own, of the places that they use, so that they run as they are. A graph of these operators and of
// the few others in `plain` is run in its order, on one thread.
#pragma once

#include <dlfcn.h>
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
// A node of a graph. Mirrored by runtime/native_search/library.py.
typedef struct S2SNode {
  const char* op;         /* "Add", or "s2s.cpu.Linear" */
  const char* inputs;     /* names, each with a line's end; empty: left out */
  const char* outputs;
  const char* attributes; /* lines of name=value, whole numbers in decimal, others in hexadecimal floating point */
} S2SNode;
}

namespace direct {

using ort::FLOAT, ort::INT64;
constexpr int64_t MOST = int64_t(1) << 40;  // elements of a tensor

inline size_t bytes_of(int type) {
  return type == INT64 ? 8 : type == ort::INT8 || type == ort::BOOL ? 1 : type == ort::UINT16 ? 2 : 4;
}

struct Value {
  void* data = nullptr;
  std::vector<int64_t> dims;
  int type = FLOAT;
  bool is_bound = false;     // to memory of the caller's
  std::vector<float> own;    // memory of its own; floats, so that it is aligned for all that is used

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
    const size_t bytes = size_t(count()) * bytes_of(type);
    if (own.size() * sizeof(float) < bytes + 64) own.resize((bytes + 64) / sizeof(float) + 1);
    data = reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(own.data()) + 63) / 64 * 64);
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
inline void negate(const Inputs& in, const Info&, Value& y) {
  need(*in[0], ort::BOOL);
  make(y, in[0]->dims, ort::BOOL);
  for (int64_t i = 0, n = y.count(); i < n; i++) y.bools()[i] = !in[0]->bools()[i];
}
inline void where(const Inputs& in, const Info&, Value& y) {
  need(*in[0], ort::BOOL);
  need(*in[1], INT64);
  need(*in[2], INT64);
  make(y, broadcast(in[0]->dims, broadcast(in[1]->dims, in[2]->dims)), INT64);
  broadcasting<3>(in, y, [&](const auto& from, int64_t to) {
    y.ints()[to] = in[0]->bools()[from[0]] ? in[1]->ints()[from[1]] : in[2]->ints()[from[2]];
  });
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
      {"Squeeze", {1, 2, squeeze}}, {"Expand", {2, 2, expand}},   {"Shape", {1, 1, shape}}};
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
};

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

// A step's nodes and weights. Safe to use from several threads: what changes is in `Run`.
class Graph {
 public:
  Graph(const char* operators, const S2SNode* given, int n_nodes, const S2STensor* weights, int n_weights) {
    for (int i = 0; i < n_weights; i++) {
      Value& value = first[index(weights[i].name)];
      value.data = weights[i].data;
      value.dims.assign(weights[i].shape, weights[i].shape + weights[i].n_dimensions);
      value.type = weights[i].type;
      value.is_bound = true;
    }
    const bool is_cached = bytes_of_weights() <= cache_bytes() / 2;
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
  explicit Run(const Graph& graph) : graph(graph), values(graph.first) {}
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

  void operator()() {
    for (const Node& node : graph.nodes) {
      if (is_first) require(node);
      if (node.callbacks) {
        context.inputs.clear();
        context.outputs.clear();
        for (int i : node.inputs) context.inputs.push_back(i < 0 ? nullptr : &values[i]);
        for (int i : node.outputs) context.outputs.push_back(i < 0 ? nullptr : &values[i]);
        context.output_types = node.output_types.data();
        check(reinterpret_cast<Failure*>(
            node.callbacks->KernelComputeV2(node.kernel, reinterpret_cast<OrtKernelContext*>(&context))));
      } else if (is_first || !node.is_fixed) {
        inputs.clear();
        for (int i : node.inputs) inputs.push_back(&values[i]);
        node.run(inputs, node.info, values[node.outputs[0]]);
      }
    }
    is_first = false;
  }

 private:
  const Graph& graph;
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
    run_.bind("log_normalizer", log_normalizer.data(), ort::FLOAT, {B, K});
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
    run_();
    return Found{ids.data(), log_probs.data(), log_normalizer.data(), probed.data(), M, Q};
  }

 private:
  direct::Run run_;
  const int B, K;
  int64_t n_candidates = -1;
  int n_probes = -1;
  std::vector<int64_t> probe_ids, ids;
  std::vector<float> log_probs, probed, log_normalizer;

  void bind(const S2STensor& t) {
    run_.bind(t.name, t.data, t.type, std::vector<int64_t>(t.shape, t.shape + t.n_dimensions));
  }
};

}  // namespace s2s
