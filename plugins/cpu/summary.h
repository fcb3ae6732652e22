// The output projection without an array of all logits: they are computed and summarised block by block.
//
// A row keeps its largest logit, the sum of exponentials relative to it (online softmax, arXiv 1805.02867), and its best
// M tokens in order. Logits are compared one by one only where one of a vector's is larger than the M-th best so
// far, of this call or of those before it that had other blocks.
#pragma once

#include "kernels.h"
#include "products.h"

namespace KERNELS {

inline void insert(RowSummary& row, int n_candidates, float value, int64_t id) {
  if (row.n == n_candidates && !(value > row.values[row.n - 1])) return;
  int place = row.n < n_candidates ? row.n++ : row.n - 1;
  for (; place > 0 && value > row.values[place - 1]; place--) {
    row.values[place] = row.values[place - 1];
    row.ids[place] = row.ids[place - 1];
  }
  row.values[place] = value;
  row.ids[place] = id;
}

// Keeps those of n logits that may be among a row's best, whichever call finds the others.
inline void keep_best(RowSummary& row, int n_candidates, float& floor, const float* logits, int n, int64_t first) {
  float limit;
  __atomic_load(&floor, &limit, __ATOMIC_RELAXED);
  if (row.n == n_candidates && row.values[row.n - 1] > limit) limit = row.values[row.n - 1];
  for (int i = 0; i < n; i += LANES) {
    const bool takes_all = row.n < n_candidates && limit == -INFINITY;
    for (uint32_t lanes = takes_all ? ~0u : which_larger(load(logits + i), limit); lanes; lanes &= lanes - 1) {
      const int j = i + __builtin_ctz(lanes);
      if (j >= n || j >= i + LANES) break;
      insert(row, n_candidates, logits[j], first + j);
    }
    if (row.n == n_candidates && row.values[row.n - 1] > limit) limit = row.values[row.n - 1];
  }
  // An equal logit of a lower token may come from another call, so that the floor is below.
  if (row.n == n_candidates && limit == row.values[row.n - 1]) {
    limit = std::nextafter(limit, -INFINITY);
    __atomic_store(&floor, &limit, __ATOMIC_RELAXED);
  }
}

// Adds n logits of a row, from token `first` on. They are padded with minus infinity to whole vectors.
inline void take_logits(RowSummary& row, int n_candidates, float& floor, const float* logits, int n, int64_t first) {
  Floats high = load(logits);
  for (int i = LANES; i < n; i += LANES) high = larger(high, load(logits + i));
  const float top = maximum(high);
  if (row.n < n_candidates || top > row.values[row.n - 1]) keep_best(row, n_candidates, floor, logits, n, first);
  if (top > row.top) {
    row.total *= std::exp(row.top - top);
    row.top = top;
  }
  if (row.top == -INFINITY) return;
  Floats total{};
  for (int i = 0; i < n; i += LANES) total += exponential(load(logits + i) - row.top);
  row.total += sum(total);
}

inline void summarise(const Product& p, int first_block, int end_block, const Summary& s) {
  const int width = PANEL * BLOCK;
  float* panel = new float[size_t(p.rows) * width];
  Product part = p;
  part.y = panel;
  part.stride = width;
  for (int block = first_block; block < end_block; block += PANEL) {
    const int end = block + PANEL < end_block ? block + PANEL : end_block;
    const int64_t first = int64_t(block) * BLOCK;
    const int n = int((end * BLOCK < p.n_out ? end * BLOCK : p.n_out) - first);
    part.first_block = block;
    multiply_head(part, block, end);
    for (int row = 0; row < p.rows; row++) {
      float* logits = panel + size_t(row) * width;
      for (int i = n; i % LANES; i++) logits[i] = -INFINITY;
      take_logits(s.rows[row], s.n_candidates, s.floor[row], logits, n, first);
      for (int i = row * s.n_probes; i < (row + 1) * s.n_probes; i++) {
        const int64_t place = s.probe_ids[i] - first;
        if (place >= 0 && place < n) s.probe_logits[i] = logits[place];
      }
      if (s.logits) memcpy(s.logits + size_t(row) * p.n_out + first, logits, n * sizeof(float));
    }
  }
  delete[] panel;
}

}  // namespace KERNELS
