// One source, two compilers. Under nvcc this is CUDA; under a plain C++ compiler the same kernels run on the CPU through
// host_cuda.h, which is how their arithmetic is tested where there is no GPU.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

// A block's shared memory. A macro, because the host build hands out memory that it fills with NaN before every block.
#define SHARED_MEMORY(Type, name) __shared__ Type name

// Queues `kernel` and reports what the runtime says about the launch itself: 0, or a cudaError_t.
template <class Parameters>
inline int launch(void (*kernel)(Parameters), dim3 grid, dim3 block, void* stream, const Parameters& parameters) {
  kernel<<<grid, block, 0, static_cast<cudaStream_t>(stream)>>>(parameters);
  return static_cast<int>(cudaGetLastError());
}
#else
#include "host_cuda.h"
#include "host_floats.h"

#define SHARED_MEMORY(Type, name) Type& name = *host_cuda::shared<Type>()

template <class Parameters>
inline int launch(void (*kernel)(Parameters), dim3 grid, dim3 block, void* /*stream*/, const Parameters& parameters) {
  return host_cuda::run([kernel, parameters] { kernel(parameters); }, grid, block);
}
#endif

#define S2S_EXPORT extern "C" __attribute__((visibility("default")))
