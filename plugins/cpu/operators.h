// Makes a custom operator of ONNX Runtime from a class, and gives it the tensors of a call.
//
// A class has NAME, INPUTS and OUTPUTS (lists of Slot), a constructor that reads attributes, and `run(Call&)`, which
// returns why it can't run, or null.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <iterator>
#include <vector>

#include "kernels.h"
#include "ort_abi.h"

struct Slot {
  int type;
  int characteristic = ort::REQUIRED;
};

// Sizes of a tensor, kept without memory of their own: a step of a small model asks for hundreds.
class Dims {
 public:
  static constexpr size_t MOST = 8;  // of a tensor that an operator is given; it may add one

  Dims() = default;
  Dims(std::initializer_list<int64_t> sizes) {
    for (int64_t size : sizes) push_back(size);
  }
  size_t size() const { return n_; }
  bool empty() const { return !n_; }
  int64_t* begin() { return sizes_; }
  const int64_t* begin() const { return sizes_; }
  const int64_t* end() const { return sizes_ + n_; }
  int64_t& operator[](size_t i) { return sizes_[i]; }
  int64_t operator[](size_t i) const { return sizes_[i]; }
  int64_t& back() { return sizes_[n_ - 1]; }
  int64_t back() const { return sizes_[n_ - 1]; }
  void push_back(int64_t size) { sizes_[n_++] = size; }
  void resize(size_t n) { n_ = n; }
  bool operator==(const Dims& other) const { return std::equal(begin(), end(), other.begin(), other.end()); }
  bool operator!=(const Dims& other) const { return !(*this == other); }

 private:
  int64_t sizes_[MOST + 1];
  size_t n_ = 0;
};

struct Tensor {
  void* data = nullptr;
  Dims dims;

  explicit operator bool() const { return data != nullptr; }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data);
  }
  int64_t count(size_t first = 0, size_t end = SIZE_MAX) const {
    int64_t n = 1;
    for (size_t i = first; i < dims.size() && i < end; i++) n *= dims[i];
    return n;
  }
};

// Whether a tensor has exactly these sizes. Operators check this before they read anything, as a graph may come from
// anywhere. Each size fits 32 bits, in which the kernels count; products of sizes are computed in 64 bits.
inline bool has(const Tensor& tensor, std::initializer_list<int64_t> dims) {
  return tensor && std::equal(tensor.dims.begin(), tensor.dims.end(), dims.begin(), dims.end()) &&
         std::all_of(dims.begin(), dims.end(), [](int64_t size) { return size >= 0 && size <= INT32_MAX; });
}
// The same for an optional tensor, which may be left out.
inline bool may_have(const Tensor& tensor, std::initializer_list<int64_t> dims) { return !tensor || has(tensor, dims); }

class Attributes {
 public:
  Attributes(OrtApi* api, const OrtKernelInfo* info) : api_(api), info_(info) {}

  int64_t whole(const char* name, int64_t otherwise) const {
    int64_t value = 0;
    return read(ort::ATTRIBUTE_INT64, name, &value) ? value : otherwise;
  }
  float real(const char* name, float otherwise) const {
    float value = 0;
    return read(ort::ATTRIBUTE_FLOAT, name, &value) ? value : otherwise;
  }

 private:
  template <typename T>
  bool read(ort::Place place, const char* name, T* value) const {
    OrtStatus* status = ort::call<OrtStatus*>(api_, place, info_, name, value);
    if (status) ort::call<void>(api_, ort::RELEASE_STATUS, status);
    return !status;
  }

  OrtApi* api_;
  const OrtKernelInfo* info_;
};

class Call {
 public:
  Call(OrtApi* api, OrtKernelContext* context) : api_(api), context_(context) {}

  Tensor input(size_t index) {
    size_t n = 0;
    check(ort::call<OrtStatus*>(api_, ort::INPUT_COUNT, context_, &n));
    const OrtValue* value = nullptr;
    if (index < n) check(ort::call<OrtStatus*>(api_, ort::INPUT, context_, index, &value));
    return value ? tensor(const_cast<OrtValue*>(value)) : Tensor{};
  }

  Tensor output(size_t index, const Dims& dims) {
    OrtValue* value = nullptr;
    const int64_t* sizes = dims.begin();
    check(ort::call<OrtStatus*>(api_, ort::OUTPUT, context_, index, sizes, dims.size(), &value));
    Tensor found;
    if (value) {
      check(ort::call<OrtStatus*>(api_, ort::GET_TENSOR_MUTABLE_DATA, value, &found.data));
      found.dims = dims;
    }
    return found;
  }

  bool has_output(size_t index) {
    size_t n = 0;
    check(ort::call<OrtStatus*>(api_, ort::OUTPUT_COUNT, context_, &n));
    return index < n;
  }

  // Calls body(i) for 0 <= i < n on the session's threads.
  template <typename Each>
  void in_parallel(size_t n, const Each& body) {
    if (n == 1) return body(0);
    void (*one)(void*, size_t) = [](void* given, size_t i) { (*static_cast<const Each*>(given))(i); };
    void* given = const_cast<Each*>(&body);
    check(ort::call<OrtStatus*>(api_, ort::PARALLEL_FOR, static_cast<const OrtKernelContext*>(context_), one, n,
                                size_t(0), given));
  }

  OrtStatus* failure() const { return failure_; }

 private:
  Tensor tensor(OrtValue* value) {
    Tensor found;
    OrtTensorTypeAndShapeInfo* info = nullptr;
    size_t rank = 0;
    check(ort::call<OrtStatus*>(api_, ort::GET_TENSOR_MUTABLE_DATA, value, &found.data));
    check(ort::call<OrtStatus*>(api_, ort::GET_TENSOR_TYPE_AND_SHAPE, static_cast<const OrtValue*>(value), &info));
    check(ort::call<OrtStatus*>(api_, ort::GET_DIMENSIONS_COUNT, static_cast<const OrtTensorTypeAndShapeInfo*>(info), &rank));
    if (rank > Dims::MOST) {
      check(ort::refuse(api_, "s2s.cpu: a tensor has more dimensions than an operator knows"));
    } else {
      found.dims.resize(rank);
      int64_t* dims = found.dims.begin();
      check(ort::call<OrtStatus*>(api_, ort::GET_DIMENSIONS, static_cast<const OrtTensorTypeAndShapeInfo*>(info), dims, rank));
    }
    ort::call<void>(api_, ort::RELEASE_TENSOR_TYPE_AND_SHAPE, info);
    return found;
  }

  void check(OrtStatus* status) {
    if (!status) return;
    if (failure_) {
      ort::call<void>(api_, ort::RELEASE_STATUS, status);
    } else {
      failure_ = status;
    }
  }

  OrtApi* api_;
  OrtKernelContext* context_;
  OrtStatus* failure_ = nullptr;
};

// The callbacks through which ONNX Runtime calls the class `Body`.
template <typename Body>
const OrtCustomOp* callbacks() {
  struct Kernel {
    OrtApi* api;
    Body body;
  };
  static OrtCustomOp op = [] {
    OrtCustomOp o{};
    o.version = ort::VERSION;
    o.GetName = [](const OrtCustomOp*) { return Body::NAME; };
    o.GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };
    o.GetInputTypeCount = [](const OrtCustomOp*) { return std::size(Body::INPUTS); };
    o.GetInputType = [](const OrtCustomOp*, size_t i) { return Body::INPUTS[i].type; };
    o.GetInputCharacteristic = [](const OrtCustomOp*, size_t i) { return Body::INPUTS[i].characteristic; };
    o.GetOutputTypeCount = [](const OrtCustomOp*) { return std::size(Body::OUTPUTS); };
    o.GetOutputType = [](const OrtCustomOp*, size_t i) { return Body::OUTPUTS[i].type; };
    o.GetOutputCharacteristic = [](const OrtCustomOp*, size_t i) { return Body::OUTPUTS[i].characteristic; };
    o.GetInputMemoryType = [](const OrtCustomOp*, size_t) { return 0; };
    o.GetVariadicInputMinArity = o.GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 1; };
    o.GetVariadicInputHomogeneity = o.GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 1; };
    o.GetStartVersion = [](const OrtCustomOp*) { return 1; };
    o.GetEndVersion = [](const OrtCustomOp*) { return INT32_MAX; };
    o.CreateKernelV2 = [](const OrtCustomOp*, OrtApi* api, const OrtKernelInfo* info, void** kernel) -> OrtStatus* {
      *kernel = new Kernel{api, Body(Attributes(api, info))};
      return nullptr;
    };
    o.KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
    o.KernelComputeV2 = [](void* kernel, OrtKernelContext* context) -> OrtStatus* {
      auto& mine = *static_cast<Kernel*>(kernel);
      Call call(mine.api, context);
      const char* why = mine.body.run(call);
      if (call.failure()) return call.failure();
      return why ? ort::refuse(mine.api, why) : nullptr;
    };
    return o;
  }();
  return &op;
}
