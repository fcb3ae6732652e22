// What both attention launchers need to choose a kernel: the widths that head sizes are rounded up to, and checks.
#pragma once

#include <cstdio>

#include "cuda_or_host.cuh"
#include "launch.h"

constexpr int kWidths[] = {32, 64, 128};  // a kernel of width w takes every head size up to w
constexpr int kMaxBeams = 16;
constexpr int kMaxThreads = 256;

inline int width_index(int head_size) { return head_size <= 32 ? 0 : head_size <= 64 ? 1 : 2; }

// Four warps cover a short history in one or two rounds; more warps help only with a long one.
inline unsigned block_threads(int positions) { return positions <= 128 ? 128 : 256; }

inline bool aligned(const void* pointer) { return pointer != nullptr && reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

// Checks what both kernels need: element type, head size, beams, extents. S2S_OK if a kernel serves these sizes.
inline int check_extents(int element, int sources, int heads, int beams, int head_size, int positions) {
  if (element < S2S_FP32 || element > S2S_BF16) return S2S_BAD_ELEMENT;
  if (head_size < 8 || head_size > 128 || head_size % 8 != 0) return S2S_BAD_HEAD_SIZE;
  if (beams < 1 || beams > kMaxBeams) return S2S_BAD_BEAMS;
  if (sources < 1 || sources > 65535 || heads < 1 || heads > 65535 || positions < 1) return S2S_BAD_EXTENT;
  return S2S_OK;
}

template <class Parameters>
struct Instance {
  const char* name;
  void (*kernel)(Parameters);
};

inline void describe(S2SLaunch* launch, const char* kernel, dim3 grid, unsigned threads) {
  std::snprintf(launch->kernel, sizeof launch->kernel, "%s", kernel);
  launch->grid[0] = grid.x;
  launch->grid[1] = grid.y;
  launch->grid[2] = grid.z;
  launch->threads = threads;
}

// The host build also runs a kernel by its name, as a driver does after loading a binary. Returns kNoKernel if there is
// none of that name.
#ifdef __CUDACC__
#define HOST_LAUNCH_BY_NAME(folder, Parameters, instances)
#else
constexpr int kNoKernel = -101;
template <class Parameters, class Table>
int launch_by_name(const Table& instances, const char* name, const void* given, const uint32_t* grid, uint32_t threads) {
  const auto* first = reinterpret_cast<const Instance<Parameters>*>(&instances);
  for (size_t i = 0; i < sizeof instances / sizeof *first; ++i)
    if (std::strcmp(first[i].name, name) == 0)
      return launch(first[i].kernel, dim3(grid[0], grid[1], grid[2]), dim3(threads), nullptr,
                    *static_cast<const Parameters*>(given));
  return kNoKernel;
}
#define HOST_LAUNCH_BY_NAME(folder, Parameters, instances)                                                          \
  S2S_EXPORT int s2s_##folder##_by_name(const char* name, const void* given, const uint32_t* grid, uint32_t n) {     \
    return launch_by_name<Parameters>(instances, name, given, grid, n);                                             \
  }
#endif
