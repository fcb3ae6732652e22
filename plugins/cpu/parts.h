// What operators share: the kernels of this machine, memory of a thread, and the parts that a product is computed in.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "operators.h"
#include "sets.h"

constexpr int64_t SMALL = 1 << 16;  // multiplications up to which a second thread does not pay
constexpr int TASKS = 16;           // parts of a product: more than threads, so that all threads finish at about the same time
constexpr int GRAIN = 8;            // least number of blocks of a part: fewer do not fill a tile

inline const Kernels& kernels() { return *chosen().kernels; }

// Memory of this thread that only grows, and that later calls reuse.
template <typename T, int WHICH>
T* scratch(size_t n) {
  thread_local std::vector<T> memory;
  if (memory.size() < n) memory.resize(n);
  return memory.data();
}

inline int blocks_of(int64_t n_out) { return int((n_out + BLOCK - 1) / BLOCK); }
inline int64_t filled_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// Splits [0, n_units) into nearly even parts of about `grain` at least, and calls body(part, first, end) for each. They
// begin at multiples of `multiple`.
template <typename Part>
void in_parts(Call& call, int n_units, int grain, int64_t work, const Part& body, int multiple = 1) {
  const int n = work < SMALL ? 1 : std::clamp(n_units / grain, 1, TASKS);
  const auto first = [&](size_t i) {
    return i == size_t(n) ? n_units : int(n_units * i / n + multiple / 2) / multiple * multiple;
  };
  call.in_parallel(size_t(n), [&](size_t i) { body(int(i), first(i), first(i + 1)); });
}
