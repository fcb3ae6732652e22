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

// A launch may begin before the launch that it follows has ended (programmatic dependent launch, from Hopper on): it loads
// weights, waits here, and only then reads what others have written or writes anything itself. All threads of the grid call
// it, so that the end of a launch is the end of all before it. From here on the next launch may begin likewise.
__device__ __forceinline__ void await_predecessor() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Asks for 128 bytes of memory that does not change, before they are needed.
__device__ __forceinline__ void prefetch(const void* address) { asm volatile("prefetch.global.L2 [%0];" ::"l"(address)); }

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

inline void await_predecessor() { host_cuda::await_predecessor(); }
inline void prefetch(const void*) {}

template <class Parameters>
inline int launch(void (*kernel)(Parameters), dim3 grid, dim3 block, void* /*stream*/, const Parameters& parameters) {
  return host_cuda::run([kernel, parameters] { kernel(parameters); }, grid, block);
}
#endif

#define S2S_EXPORT extern "C" __attribute__((visibility("default")))
