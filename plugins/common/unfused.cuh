// Arithmetic whose result does not depend on what the compiler contracts.
#pragma once

#include "cuda_or_host.cuh"

// A product that the compiler does not fuse with a following addition (no FMA).
__device__ __forceinline__ float product(float a, float b) {
#ifdef __CUDACC__
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}
