// A copy of the part of ONNX Runtime's C interface that custom operators need, since its wheels contain no headers.
//
// The interface is a table of function pointers whose order never changes (functions are only added at its end), and a
// structure of callbacks for each operator. The positions are those in version 17 of the table; an engine
// is tied to the version of ONNX Runtime that it was built and tested with.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {
struct OrtStatus;
struct OrtValue;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtSessionOptions;
struct OrtCustomOpDomain;
struct OrtTensorTypeAndShapeInfo;
using OrtApi = void* const;  // a table of function pointers
struct OrtApiBase {
  OrtApi* (*GetApi)(uint32_t version);
  const char* (*GetVersionString)();
};

// The callbacks of an operator, in the order of the interface's version 17.
struct OrtCustomOp {
  uint32_t version;
  void* (*CreateKernel)(const OrtCustomOp*, OrtApi*, const OrtKernelInfo*);
  const char* (*GetName)(const OrtCustomOp*);
  const char* (*GetExecutionProviderType)(const OrtCustomOp*);
  int (*GetInputType)(const OrtCustomOp*, size_t);
  size_t (*GetInputTypeCount)(const OrtCustomOp*);
  int (*GetOutputType)(const OrtCustomOp*, size_t);
  size_t (*GetOutputTypeCount)(const OrtCustomOp*);
  void (*KernelCompute)(void*, OrtKernelContext*);
  void (*KernelDestroy)(void*);
  int (*GetInputCharacteristic)(const OrtCustomOp*, size_t);
  int (*GetOutputCharacteristic)(const OrtCustomOp*, size_t);
  int (*GetInputMemoryType)(const OrtCustomOp*, size_t);
  int (*GetVariadicInputMinArity)(const OrtCustomOp*);
  int (*GetVariadicInputHomogeneity)(const OrtCustomOp*);
  int (*GetVariadicOutputMinArity)(const OrtCustomOp*);
  int (*GetVariadicOutputHomogeneity)(const OrtCustomOp*);
  OrtStatus* (*CreateKernelV2)(const OrtCustomOp*, OrtApi*, const OrtKernelInfo*, void**);
  OrtStatus* (*KernelComputeV2)(void*, OrtKernelContext*);
  OrtStatus* (*InferOutputShapeFn)(const OrtCustomOp*, void*);
  int (*GetStartVersion)(const OrtCustomOp*);
  int (*GetEndVersion)(const OrtCustomOp*);
  // Room for callbacks of later versions. ONNX Runtime does not use them, because of the version number above.
  void* later[8];
};
}

namespace ort {

constexpr uint32_t VERSION = 17;
constexpr int INVALID_ARGUMENT = 2;              // OrtErrorCode
constexpr int FLOAT = 1, INT8 = 3, UINT16 = 4, INT32 = 6, INT64 = 7, BOOL = 9, FLOAT16 = 10;  // ONNXTensorElementDataType
constexpr int REQUIRED = 0, OPTIONAL = 1;        // OrtCustomOpInputOutputCharacteristic

enum Place : int {
  CREATE_STATUS = 0,
  CREATE_CUSTOM_OP_DOMAIN = 26,
  CUSTOM_OP_DOMAIN_ADD = 27,
  ADD_CUSTOM_OP_DOMAIN = 28,
  GET_TENSOR_MUTABLE_DATA = 51,
  GET_DIMENSIONS_COUNT = 61,
  GET_DIMENSIONS = 62,
  GET_TENSOR_TYPE_AND_SHAPE = 65,
  ATTRIBUTE_FLOAT = 85,
  ATTRIBUTE_INT64 = 86,
  INPUT_COUNT = 88,
  OUTPUT_COUNT = 89,
  INPUT = 90,
  OUTPUT = 91,
  RELEASE_STATUS = 93,
  RELEASE_TENSOR_TYPE_AND_SHAPE = 99,
  PARALLEL_FOR = 274,
};

// Calls the function at a position of the table with these arguments.
template <typename Result, typename... Arguments>
Result call(OrtApi* api, Place place, Arguments... arguments) {
  return reinterpret_cast<Result (*)(Arguments...)>(api[place])(arguments...);
}

inline OrtStatus* refuse(OrtApi* api, const char* why) {
  return call<OrtStatus*>(api, CREATE_STATUS, INVALID_ARGUMENT, why);
}

}  // namespace ort
