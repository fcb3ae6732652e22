// The rows of which a convolution is a product: each output position's window of the input, one behind the other.
#pragma once

#include "fragments.cuh"
#include "parameters.h"

constexpr int kWindowThreads = 128;

// Grid: (B*S). 128 threads. From: float or T.
template <typename From, typename T>
__device__ __forceinline__ void gather_windows(const WindowParameters& given) {
  await_predecessor();
  const int row = blockIdx.x, source = row / given.positions, first = row % given.positions * given.step - given.padding;
  const From* input = static_cast<const From*>(given.input) + static_cast<int64_t>(source) * given.length * given.channels;
  T* output = static_cast<T*>(given.output) + static_cast<int64_t>(row) * given.inputs;
  for (int i = threadIdx.x; i < given.inputs; i += kWindowThreads) {
    const int p = first + i / given.channels, channel = i % given.channels;
    const bool is_real = i < given.size * given.channels && p >= 0 && p < given.length;
    const int64_t at = given.by_channel ? static_cast<int64_t>(channel) * given.length + p
                                        : static_cast<int64_t>(p) * given.channels + channel;
    output[i] = saturated(is_real ? to_float(input[at]) : 0.f, T{});
  }
}
