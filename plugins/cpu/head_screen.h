// An output projection's best tokens by its screen (screen.h), for the operators of it.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "kernels.h"
#include "parts.h"

// The best tokens of an output projection by a copy of it in int8 (screen.h), which is made of the first weight when it is
// first wanted. Safe to use from several threads.
class HeadScreen {
 public:
  static constexpr int64_t MOST_CANDIDATES = 32;
  static constexpr int MOST_ROWS = 8;

  // Of this process: rows that it served, blocks that were kept for them, and rows of which too many blocks were left.
  static inline std::atomic<int64_t> served{0}, kept{0}, unserved{0};

  // Finds the best M of each row's logits [R, M], and those that are probed [R, Q], as the whole product would. Returns false
  // where it can't be done, or would not pay.
  bool run(Call& call, const Product& p, int64_t M, float* best, int64_t* ids, int64_t Q, const int64_t* probe_ids,
           float* probed) const {
    if (p.rows > most_rows(p) || M > MOST_CANDIDATES || M > p.n_out) return false;
    std::call_once(made_, [&] { make(call, p); });
    if (!is_finite_) return false;
    const int R = p.rows, n_blocks = blocks_of(p.n_out);
    Product copy = p;
    float off[2 * MOST_ROWS];  // of a row, by what a weight lost and by its length
    if (!bytes_of(copy, off)) return false;
    float* highest = scratch<float, 9>(size_t(R) * n_blocks);
    RowSummary* least = scratch<RowSummary, 4>(size_t(TASKS) * R);
    float* values = scratch<float, 5>(size_t(TASKS) * R * M);
    int64_t* tokens = scratch<int64_t, 6>(size_t(TASKS) * R * M);
    for (int i = 0; i < TASKS * R; i++) least[i] = {-INFINITY, 0, 0, values + i * M, tokens + i * M};
    const int n_panels = (n_blocks + PANEL - 1) / PANEL;
    in_parts(call, n_panels, 1, int64_t(p.n_in) * p.n_out, [&](int part, int first, int end) {
      const Screened s{int(M), n_blocks, lost_.data(), norm_.data(),    p.bias,
                       off,    off + MOST_ROWS, least + part * R, highest};
      kernels().screen(copy, first * PANEL, std::min(end * PANEL, n_blocks), s);
    });
    if (call.failure()) return false;
    std::vector<int>& blocks = blocks_;
    blocks.clear();
    for (int row = 0; row < R; row++) {
      const float floor = floor_of(least + row, R, int(M));
      for (int b = 0; b < n_blocks; b++) {
        if (!(highest[size_t(row) * n_blocks + b] < floor)) blocks.push_back(b);
      }
      blocks.push_back(-1);
      if (int64_t(blocks.size()) > int64_t(row + 1) * (n_blocks / LEAST_SAVED)) {
        unserved += R;
        return false;
      }
    }
    const int* block = blocks.data();
    served += R;
    kept += int64_t(blocks.size()) - R;
    for (int row = 0; row < R; row++, block++) {
      const Product one = of_row(p, row);
      RowSummary found{-INFINITY, 0, 0, best + row * M, ids + row * M};
      for (; *block >= 0; block++) {
        if (!add(one, *block, int(M), found)) return false;
      }
      for (int64_t q = 0; q < Q; q++) probed[row * Q + q] = logit(one, probe_ids[row * Q + q]);
    }
    return true;
  }

 private:
  static constexpr size_t LARGE = size_t(64) << 20;
  static constexpr int LEAST_SAVED = 8;        // the whole product where more than this part of the blocks is left
  static constexpr float MOST_LENGTH = 1e15f;  // of a row and of a token's weights, so that bounds are finite

  // With more rows, the arithmetic of the sums that are left costs more than reading less saves: measured.
  static int most_rows(const Product& p) {
    const size_t bytes = size_t(p.n_in) * size_t(p.n_out) * (p.storage == Storage::fp32 ? 4 : 2);
    return bytes >= LARGE ? MOST_ROWS : MOST_ROWS / 2;
  }

  mutable std::once_flag made_;
  mutable bool is_finite_ = false;
  mutable std::unique_ptr<char[]> weight_;
  mutable std::vector<float> scale_, lost_, norm_;
  mutable std::vector<int32_t> sum_;
  static inline thread_local std::vector<int> blocks_;  // those that may hold one of a row's best, and -1 after each row's

  void make(Call& call, const Product& p) const {
    const size_t n_blocks = size_t(blocks_of(p.n_out)), size = n_blocks * BLOCK * ((size_t(p.n_in) + 3) / 4 * 4);
    weight_.reset(new char[size + 64]);
    for (auto* values : {&scale_, &lost_, &norm_}) values->resize(n_blocks * BLOCK);
    sum_.resize(n_blocks * BLOCK);
    const ScreenCopy copy{weight(), scale_.data(), sum_.data(), lost_.data(), norm_.data()};
    in_parts(call, int(n_blocks), GRAIN, int64_t(size), [&](int, int first, int end) {
      kernels().copy_for_screen(p, first, end, copy);
    });
    is_finite_ = true;
    for (float norm : norm_) is_finite_ &= norm < MOST_LENGTH;
  }
  int8_t* weight() const {  // at a line of the cache
    return reinterpret_cast<int8_t*>((reinterpret_cast<uintptr_t>(weight_.get()) + 63) / 64 * 64);
  }

  // The rows as bytes, each as two rows of them: the second has what the first lost. off: by what a logit is off at most.
  bool bytes_of(Product& p, float* off) const {
    const size_t I = size_t(p.n_in), R = size_t(p.rows), width = (I + 3) / 4 * 4;
    float* rows = scratch<float, 10>(2 * R * I);
    uint8_t* bytes = scratch<uint8_t, 0>(2 * R * width);
    float* scale = scratch<float, 1>(2 * R);
    int32_t* zero = scratch<int32_t, 2>(2 * R);
    memcpy(rows, p.x, R * I * sizeof(float));
    double length[MOST_ROWS], lost[MOST_ROWS];
    for (int half = 0; half < 2; half++) {
      const size_t first = half * R;
      kernels().quantise(rows + first * I, int(R), p.n_in, bytes + first * width, scale + first, zero + first);
      for (size_t row = first; row < first + R; row++) {
        double of_row = 0, of_rest = 0;
        float* rest = half ? rows + row * I : rows + (row + R) * I;
        for (size_t i = 0; i < I; i++) {
          const float value = rows[row * I + i];
          rest[i] = value - scale[row] * float(bytes[row * width + i] - zero[row]);
          of_row += double(value) * value;
          of_rest += double(rest[i]) * rest[i];
        }
        (half ? lost : length)[row - first] = std::sqrt(half ? of_rest : of_row);
      }
    }
    const double rounded = (double(I) + 16) * 0x1p-22;
    for (size_t row = 0; row < R; row++) {
      if (!(length[row] < MOST_LENGTH)) return false;
      off[row] = float(length[row] * (1 + 2 * rounded));
      off[MOST_ROWS + row] = float(lost[row] * 1.001 + length[row] * rounded);
    }
    p.rows *= 2;
    p.storage = Storage::int8;
    p.weight = weight();
    p.scale = scale_.data();
    p.weight_sum = sum_.data();
    p.bias = nullptr;
    p.x = rows;
    p.bytes = bytes;
    p.row_scale = scale;
    p.row_zero = zero;
    return true;
  }

  // The M-th best of the tasks' lower bounds of a row.
  static float floor_of(const RowSummary* first, int step, int M) {
    float all[TASKS * MOST_CANDIDATES];
    int n = 0;
    for (int task = 0; task < TASKS; task++) {
      for (int i = 0; i < first[task * step].n; i++) all[n++] = first[task * step].values[i];
    }
    if (n < M) return -INFINITY;
    std::nth_element(all, all + M - 1, all + n, std::greater<float>());
    return all[M - 1];
  }

  static Product of_row(const Product& p, int row) {
    Product one = p;
    one.rows = 1;
    one.x = p.x + size_t(row) * p.n_in;
    one.stride = BLOCK;
    return one;
  }
  // The logits of a block as the whole product has them, into `out` [16]. Returns how many there are.
  static int multiply(Product& one, int block, float* out) {
    one.y = out;
    one.first_block = block;
    kernels().multiply(one, block, block + 1);
    return int(std::min<int64_t>(BLOCK, one.n_out - int64_t(block) * BLOCK));
  }
  // False where a logit is NaN.
  static bool add(Product one, int block, int M, RowSummary& found) {
    float logits[BLOCK];
    const int n = multiply(one, block, logits);
    for (int i = 0; i < n; i++) {
      if (logits[i] != logits[i]) return false;
      if (found.n == M && !(logits[i] > found.values[M - 1])) continue;
      int place = found.n < M ? found.n++ : M - 1;
      for (; place > 0 && logits[i] > found.values[place - 1]; place--) {
        found.values[place] = found.values[place - 1];
        found.ids[place] = found.ids[place - 1];
      }
      found.values[place] = logits[i];
      found.ids[place] = int64_t(block) * BLOCK + i;
    }
    return true;
  }
  static float logit(Product one, int64_t id) {
    if (id < 0 || id >= one.n_out) return -INFINITY;
    float logits[BLOCK];
    multiply(one, int(id / BLOCK), logits);
    return logits[id % BLOCK];
  }
};
