// The same with weights of 8 bits: a library of its own, so that others are not larger for it.
#include "../transformer/kernels.cuh"

KERNELS(int8, __half, int8_t)

#ifndef __CUDACC__
static const NamedKernel kKernels[] = {NAMED_ALL(int8)};
S2S_EXPORT int s2s_transformer_int8_by_name(const char* name, const void* given, const uint32_t* grid, uint32_t threads) {
  return run_named(kKernels, sizeof kKernels / sizeof *kKernels, name, given, grid, threads);
}
#endif
