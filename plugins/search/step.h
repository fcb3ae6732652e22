// What runs a decoder step for the loop: a session of ONNX Runtime (onnxruntime.h), or operators called directly (direct.h).
#pragma once

#include <cstdint>

#include "search.h"

extern "C" {
// A tensor of the caller's, which must outlive what it is given to. Mirrored by runtime/native_graphs/library.py.
typedef struct S2STensor {
  const char* name;
  void* data;
  const int64_t* shape;
  int32_t n_dimensions, type; /* type: ONNXTensorElementDataType */
} S2STensor;
}

namespace s2s {

class Step {
 public:
  virtual ~Step() = default;
  // Runs the step for a query. What it returns is valid until the next.
  virtual Found run(const Query& query) = 0;
};

}  // namespace s2s
