// Element types and their 16-byte vectors. Storage is fp32, fp16 or bf16; arithmetic is always fp32.
#pragma once

#include "cuda_or_host.cuh"

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(int8_t value) { return static_cast<float>(value); }
__device__ __forceinline__ float to_float(__half value) { return __half2float(value); }
__device__ __forceinline__ float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }

__device__ __forceinline__ void store(float* target, float value) { *target = value; }
__device__ __forceinline__ void store(__half* target, float value) { *target = __float2half_rn(value); }
__device__ __forceinline__ void store(__nv_bfloat16* target, float value) { *target = __float2bfloat16_rn(value); }

// What one 16-byte load brings: four fp32, or eight fp16 or bf16. `address` must be 16-byte aligned, which head sizes
// that are multiples of 8 guarantee for every slot of a cache.
template <typename T>
struct Vector {
  static constexpr int kElements = 16 / sizeof(T);
  uint4 bits;

  __device__ __forceinline__ static Vector load(const T* address) { return {*reinterpret_cast<const uint4*>(address)}; }
  __device__ __forceinline__ static Vector zero() { return {uint4{0, 0, 0, 0}}; }
  __device__ __forceinline__ void store_to(T* address) const { *reinterpret_cast<uint4*>(address) = bits; }
  __device__ __forceinline__ float operator[](int i) const { return to_float(reinterpret_cast<const T*>(&bits)[i]); }
};
