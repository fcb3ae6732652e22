// The best tokens of an output projection without reading all of it. A copy in int8, a quarter of fp32's bytes, bounds every
// logit; only blocks that may hold one of the best M are multiplied. So their logits are those of the whole product, bit for
// bit. The sum over all tokens is not had this way: whoever can wait for it computes it for many rows at a time.
//
// A row x is c + e, where c is what two rows of bytes hold of it, and a token's weights w are q + d, where q is int8:
//
//     |x.w - c.q| = |x.d + e.q| <= |x| |d| + |e| |q|        (Cauchy-Schwarz)
//
// What the kernels round on the way is less than (I + 16) 2**-22 of |x| (|q| + |d|), and 2**-21 of the logit.
#pragma once

#include "kernels.h"
#include "products.h"
#include "summary.h"

namespace KERNELS {

constexpr float ROUNDED_LOGIT = 0x1p-21f, MORE = 1.001f;  // MORE: than sums of squares lose by rounding

template <Storage S, typename Stored>
inline void copy_block(const Product& p, int block, const ScreenCopy& copy) {
  const Stored* w = static_cast<const Stored*>(p.weight) + size_t(block) * p.n_in * BLOCK;
  int8_t* bytes = copy.weight + size_t(block) * ((p.n_in + 3) / 4 * 4) * BLOCK;
  for (int part = 0; part < PARTS; part++, w += LANES, bytes += LANES * 4) {
    Floats high{}, lost{}, norm{};
    for (int k = 0; k < p.n_in; k++) high = larger(magnitude(load_as_float(w + size_t(k) * BLOCK, S)), high);
    const Floats scale = choose(high > 0.0f, high / 127.0f, all(1.0f)), inverse = 1.0f / scale;
    Wrapping total{};  // of weights that are no numbers it is any
    for (int k = 0; k < p.n_in; k += 4) {  // whose bytes lie side by side for each output
      Wrapping four{};
      for (int i = 0; i < 4 && k + i < p.n_in; i++) {
        const Floats value = load_as_float(w + size_t(k + i) * BLOCK, S);
        const Ints whole = to_nearest(value * inverse);
        const Floats kept = to_floats(whole) * scale;
        total += Wrapping(whole);
        lost += (value - kept) * (value - kept);
        norm += kept * kept;
        four |= (Wrapping(whole) & 255) << (8 * i);
      }
      memcpy(bytes + size_t(k / 4) * BLOCK * 4, &four, sizeof four);
    }
    for (int lane = 0; lane < LANES; lane++) {
      const int output = block * BLOCK + part * LANES + lane;
      copy.scale[output] = scale[lane];
      copy.sum[output] = int32_t(total[lane]);
      copy.lost[output] = std::sqrt(lost[lane]) * MORE;
      copy.norm[output] = std::sqrt(norm[lane]) * MORE;
    }
  }
}

inline void copy_for_screen(const Product& p, int first_block, int end_block, const ScreenCopy& copy) {
  for (int block = first_block; block < end_block; block++) {
    switch (p.storage) {
      case Storage::fp32: copy_block<Storage::fp32, float>(p, block, copy); break;
      case Storage::fp16: copy_block<Storage::fp16, uint16_t>(p, block, copy); break;
      case Storage::bf16: copy_block<Storage::bf16, uint16_t>(p, block, copy); break;
      case Storage::int8: break;
    }
  }
}

// Bounds of all logits of some blocks. p: the product of the copy with 2R rows of bytes, those of c's first and second parts.
inline void screen(const Product& p, int first_block, int end_block, const Screened& s) {
  const int width = PANEL * BLOCK, R = p.rows / 2;
  const std::unique_ptr<float[]> panel(new float[size_t(p.rows) * width]);
  Product part = p;
  part.y = panel.get();
  part.stride = width;
  for (int block = first_block; block < end_block; block += PANEL) {
    const int end = block + PANEL < end_block ? block + PANEL : end_block;
    part.first_block = block;
    multiply_head(part, block, end);
    for (int row = 0; row < R; row++) {
      const float *first = panel.get() + size_t(row) * width, *second = first + size_t(R) * width;
      RowSummary& least = s.least[row];
      float floor = least.n == s.n_candidates ? least.values[least.n - 1] : -INFINITY;
      for (int b = block; b < end; b++) {
        Floats highest = all(-INFINITY);
        for (int i = 0; i < PARTS; i++) {
          const int output = b * BLOCK + i * LANES, at = output - block * BLOCK, n = p.n_out - output;
          Floats logit = load(first + at) + load(second + at);
          if (s.bias) logit += load(s.bias + output);
          const Floats off = load(s.lost + output) * s.by_lost[row] + load(s.norm + output) * s.by_norm[row] +
                             magnitude(logit) * ROUNDED_LOGIT;
          float low[LANES], high[LANES];
          if (n < LANES) {  // the last block is filled up
            store(low, logit - off);
            store(high, logit + off);
            for (int j = n > 0 ? n : 0; j < LANES; j++) low[j] = high[j] = -INFINITY;
          }
          const Floats lowest = n < LANES ? load(low) : logit - off;
          highest = larger(n < LANES ? load(high) : logit + off, highest);
          for (uint32_t lanes = which_larger(lowest, floor); lanes; lanes &= lanes - 1) {
            const int j = __builtin_ctz(lanes);
            insert(least, s.n_candidates, lowest[j], output + j);
            if (least.n == s.n_candidates) floor = least.values[least.n - 1];
          }
        }
        s.highest[size_t(row) * s.n_blocks + b] = maximum(highest);
      }
    }
  }
}

}  // namespace KERNELS
