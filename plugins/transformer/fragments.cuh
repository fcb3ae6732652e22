// Matrix products of a warp: 16 outputs times 8 rows over 16 inputs, which tensor cores compute with mma.m16n8k16.
//
// The weight is the first operand (16 outputs by 16 inputs), the rows of activations are the second (16 inputs by 8 rows).
// Lane 4*g + t holds of the weight the inputs 2t, 2t+1 of outputs g and g+8, and the inputs 2t+8, 2t+9 of both: 16 bytes,
// in which order weights are stored. Of the rows it holds inputs 2t, 2t+1 (first) and 2t+8, 2t+9 (second) of row g; of the
// result, outputs g and g+8 of the rows 2t and 2t+1: (g, 2t), (g, 2t+1), (g+8, 2t), (g+8, 2t+1).
#pragma once

#include "../common/elements.cuh"

constexpr unsigned kWholeWarp = 0xffffffffu;
constexpr int kTile = 16;  // outputs and inputs of a fragment
constexpr int kRows = 8;   // rows of activations that meet it

template <typename T>
__device__ __forceinline__ float low_of(uint32_t pair) {
  return to_float(reinterpret_cast<const T*>(&pair)[0]);
}
template <typename T>
__device__ __forceinline__ float high_of(uint32_t pair) {
  return to_float(reinterpret_cast<const T*>(&pair)[1]);
}

__device__ __forceinline__ __half saturated(float value, __half) {
  return __float2half_rn(value > 65504.f ? 65504.f : value < -65504.f ? -65504.f : value);  // NaN stays
}
__device__ __forceinline__ __nv_bfloat16 saturated(float value, __nv_bfloat16) { return __float2bfloat16_rn(value); }

// Two values side by side; fp16 keeps its largest number in place of infinity.
template <typename T>
__device__ __forceinline__ uint32_t paired(float low, float high) {
  uint32_t pair;
  reinterpret_cast<T*>(&pair)[0] = saturated(low, T{});
  reinterpret_cast<T*>(&pair)[1] = saturated(high, T{});
  return pair;
}

// The definition: every lane asks the others for what it needs. For element types that an architecture has no mma for; not
// inlined, as no kernel that needs it is fast and all would take long to compile.
#ifdef __CUDACC__
#define S2S_CALLED __noinline__
#else
#define S2S_CALLED inline
#endif
template <typename T>
__device__ S2S_CALLED void multiply_by_shuffles(float (&sum)[4], uint4 weight, uint32_t first, uint32_t second) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const uint32_t rows = half ? second : first;
#pragma unroll
    for (int from = 0; from < 4; ++from) {
      const uint32_t upper = __shfl_sync(kWholeWarp, half ? weight.z : weight.x, 4 * g + from);
      const uint32_t lower = __shfl_sync(kWholeWarp, half ? weight.w : weight.y, 4 * g + from);
      const uint32_t even = __shfl_sync(kWholeWarp, rows, 4 * (2 * t) + from);
      const uint32_t odd = __shfl_sync(kWholeWarp, rows, 4 * (2 * t + 1) + from);
      sum[0] += low_of<T>(upper) * low_of<T>(even) + high_of<T>(upper) * high_of<T>(even);
      sum[1] += low_of<T>(upper) * low_of<T>(odd) + high_of<T>(upper) * high_of<T>(odd);
      sum[2] += low_of<T>(lower) * low_of<T>(even) + high_of<T>(lower) * high_of<T>(even);
      sum[3] += low_of<T>(lower) * low_of<T>(odd) + high_of<T>(lower) * high_of<T>(odd);
    }
  }
}

// sum += weight * rows. All lanes of the warp must call it.
#ifdef __CUDACC__
template <typename T>
__device__ __forceinline__ void multiply(float (&sum)[4], uint4 weight, uint32_t first, uint32_t second);

#define S2S_SUMS "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
template <>
__device__ __forceinline__ void multiply<__half>(float (&sum)[4], uint4 weight, uint32_t first, uint32_t second) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : S2S_SUMS
      : "r"(weight.x), "r"(weight.y), "r"(weight.z), "r"(weight.w), "r"(first), "r"(second));
#else  // Turing: eight inputs at a time
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
               : S2S_SUMS
               : "r"(weight.x), "r"(weight.y), "r"(first));
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
               : S2S_SUMS
               : "r"(weight.z), "r"(weight.w), "r"(second));
#endif
}

template <>
__device__ __forceinline__ void multiply<__nv_bfloat16>(float (&sum)[4], uint4 weight, uint32_t first, uint32_t second) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : S2S_SUMS
      : "r"(weight.x), "r"(weight.y), "r"(weight.z), "r"(weight.w), "r"(first), "r"(second));
#else  // Turing's tensor cores have no bf16
  multiply_by_shuffles<__nv_bfloat16>(sum, weight, first, second);
#endif
}
#undef S2S_SUMS
#else
// Emulated: every lane shows its operands once, as fp32, and sums up its four results.
template <typename T>
inline void multiply(float (&sum)[4], uint4 weight, uint32_t first, uint32_t second) {
  struct Operands {
    float weight[8], rows[4];
  } mine;
  const uint32_t words[6] = {weight.x, weight.y, weight.z, weight.w, first, second};
  for (int i = 0; i < 4; ++i) {
    mine.weight[2 * i] = low_of<T>(words[i]);
    mine.weight[2 * i + 1] = high_of<T>(words[i]);
  }
  for (int i = 0; i < 2; ++i) {
    mine.rows[2 * i] = low_of<T>(words[4 + i]);
    mine.rows[2 * i + 1] = high_of<T>(words[4 + i]);
  }
  const char* shown = host_cuda::show(mine);
  const auto of = [shown](int lane) { return reinterpret_cast<const Operands*>(shown + lane * host_cuda::kShownBytes); };
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  for (int half = 0; half < 2; ++half) {
    for (int from = 0; from < 4; ++from) {
      const float* outputs = of(4 * g + from)->weight + 4 * half;  // of output g, then of output g + 8
      const float* even = of(8 * t + from)->rows + 2 * half;
      const float* odd = of(8 * t + 4 + from)->rows + 2 * half;
      sum[0] += outputs[0] * even[0] + outputs[1] * even[1];
      sum[1] += outputs[0] * odd[0] + outputs[1] * odd[1];
      sum[2] += outputs[2] * even[0] + outputs[3] * even[1];
      sum[3] += outputs[2] * odd[0] + outputs[3] * odd[1];
    }
  }
}
#endif

// How a fragment lies in memory: a lane's Part, and what tensor cores are given of it. Weights are stored as the elements
// themselves, or as whole numbers of 8 bits with a scale for each output, which the sum is multiplied by at the end.
template <typename T, typename W>
struct Stored {
  using Part = uint4;
  static constexpr bool kScaled = false;
  __device__ __forceinline__ static Part zero() { return uint4{0, 0, 0, 0}; }
  __device__ __forceinline__ static uint4 elements(Part part) { return part; }
};

// Two of four whole numbers, which were raised by 128, as fp16: exact, as 1024 + n is.
template <int FIRST>
__device__ __forceinline__ uint32_t two_of(uint32_t raised) {
#ifdef __CUDACC__
  const uint32_t pair = __byte_perm(raised, 0x64646464u, FIRST == 0 ? 0x4140 : 0x4342);
  const __half2 found = __hsub2(*reinterpret_cast<const __half2*>(&pair), __float2half2_rn(1152.f));
  return *reinterpret_cast<const uint32_t*>(&found);
#else
  return paired<__half>(static_cast<float>(raised >> 8 * FIRST & 255u) - 128.f,
                        static_cast<float>(raised >> 8 * (FIRST + 1) & 255u) - 128.f);
#endif
}

template <>
struct Stored<__half, int8_t> {
  using Part = uint2;
  static constexpr bool kScaled = true;
  __device__ __forceinline__ static Part zero() { return uint2{0, 0}; }
  __device__ __forceinline__ static uint4 elements(Part part) {
    const uint32_t upper = part.x ^ 0x80808080u, lower = part.y ^ 0x80808080u;
    return uint4{two_of<0>(upper), two_of<2>(upper), two_of<0>(lower), two_of<2>(lower)};
  }
};

// A pair of neighbouring elements, from an address that is a multiple of four bytes.
template <typename T>
__device__ __forceinline__ uint32_t pair_at(const T* address) {
  return *reinterpret_cast<const uint32_t*>(address);
}

// Where element (o, i) of a weight with `inputs` inputs lies among its fragments.
__device__ __forceinline__ int64_t place_in_fragments(int64_t o, int i, int inputs) {
  const int64_t fragment = o / kTile * (inputs / kTile) + i / kTile;
  const int lane = static_cast<int>(o % 8) * 4 + i % 8 / 2;
  return (fragment * 32 + lane) * 8 + i % kTile / 8 * 4 + static_cast<int>(o % kTile / 8) * 2 + i % 2;
}
