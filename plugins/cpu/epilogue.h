// What becomes of a product's sums: zero points, scales, bias, activation and residual.
#pragma once

#include "kernels.h"
#include "vectors.h"

namespace KERNELS {

inline Floats activate(Floats x, Activation activation) {
  switch (activation) {
    case Activation::relu: return larger(Floats{}, x);
    case Activation::silu: return x * sigmoid(x);
    case Activation::quick_gelu: return x * sigmoid(1.702f * x);
    case Activation::gelu: return 0.5f * x * (1.0f + error_function(x * 0.70710678118654752f));
    case Activation::gelu_tanh:
      return 0.5f * x * (1.0f + hyperbolic_tangent(0.7978845608028654f * (x + 0.044715f * x * x * x)));
    case Activation::none: break;
  }
  return x;
}

// A row's sums of products of bytes for LANES outputs, scaled. offset: what was taken from the row's bytes.
__attribute__((always_inline)) inline Floats scaled(const Product& p, int row, Ints sums, Floats scale, Wrapping weight_sum,
                                                    int offset = 0) {
  // Fits, where the weights are those that the sums are of; others give other numbers, and nothing else.
  const Ints exact = Ints(Wrapping(sums) - uint32_t(p.row_zero[row] - offset) * weight_sum);
  return to_floats(exact) * (scale * p.row_scale[row]);
}

// Writes a row's outputs [output, output + LANES), of which there are n.
__attribute__((always_inline)) inline void put(const Product& p, int row, int output, int n, Floats sums, Floats bias,
                                               Activation activation) {
  const Floats values = activate(sums + bias, activation);
  float* y = p.y + size_t(row) * p.stride + (output - p.first_block * BLOCK);
  const float* residual = p.residual ? p.residual + size_t(row) * p.n_out + output : nullptr;
  if (n >= LANES) {
    store(y, residual ? values + load(residual) : values);
  } else {
    for (int lane = 0; lane < n; lane++) y[lane] = values[lane] + (residual ? residual[lane] : 0.0f);
  }
}

}  // namespace KERNELS
