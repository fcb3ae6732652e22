// Asking for weights before they are needed.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels.h"

namespace KERNELS {

// Prefetches the weights of the next BLOCKS blocks while the tiles of the current ones are computed. Each tile prefetches
// an equal share, so that memory is busy all the time; the core then waits less than with hardware prefetching alone.
struct Ahead {
  int place, every;  // the next vector of each block to prefetch; one is prefetched every so many steps of a tile
  int left = 1;      // steps until the next one, where `step` counts them

  Ahead(const Product& p, int row, int tile_rows, int n_steps)
      : place(int(int64_t(row) * n_steps / p.rows)),
        every(p.is_cached ? n_steps : (p.rows + tile_rows - 1) / tile_rows) {}  // once a tile costs nothing

  template <int BLOCKS, typename T>
  void step(const T* w, size_t distance, int width) {
    if (--left == 0) fetch<BLOCKS>(w, distance, width), left = every;
  }

  template <int BLOCKS, typename T>
  void fetch(const T* w, size_t step, int width) {
#pragma GCC unroll 16
    for (int j = 0; j < BLOCKS; j++) __builtin_prefetch(w + (BLOCKS + j) * step + size_t(place) * width, 0, 2);
    place++;
  }
};

}  // namespace KERNELS
