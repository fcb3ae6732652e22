// A Transformer with weights of fp16 or bf16.
#include "kernels.cuh"

KERNELS(fp16, __half, __half)
KERNELS(bf16, __nv_bfloat16, __nv_bfloat16)

// Sizes of the parameter structures, so that code in another language can check its copies of them.
S2S_EXPORT int s2s_transformer_sizes(int32_t* sizes, int n) {
  const int32_t all[] = {sizeof(ProductParameters),       sizeof(NormParameters),           sizeof(EmbedParameters),
                         sizeof(SelfAttentionParameters), sizeof(CrossAttentionParameters), sizeof(EncoderAttentionParameters),
                         sizeof(SelfBlockParameters),     sizeof(CrossBlockParameters),     sizeof(HeadParameters),
                         sizeof(WindowParameters),        sizeof(CellParameters),           sizeof(BeginParameters),
                         sizeof(PickParameters),          sizeof(ScoreParameters),          sizeof(ContextParameters),
                         sizeof(CrossWeightsParameters)};
  for (int i = 0; i < n && i < static_cast<int>(sizeof all / sizeof *all); ++i) sizes[i] = all[i];
  return sizeof all / sizeof *all;
}

#ifndef __CUDACC__
static const NamedKernel kKernels[] = {NAMED_ALL(fp16) NAMED_ALL(bf16)};
S2S_EXPORT int s2s_transformer_by_name(const char* name, const void* given, const uint32_t* grid, uint32_t threads) {
  return run_named(kKernels, sizeof kKernels / sizeof *kKernels, name, given, grid, threads);
}

// A tile by both definitions of `multiply`, for their test: weight [32] uint4, rows [32] two words, sums [2, 32, 4].
struct MultiplyParameters {
  const uint4* weight;
  const uint32_t* rows;
  float* sums;
};
template <typename T>
void multiply_both(MultiplyParameters given) {
  const int lane = threadIdx.x;
  for (int way = 0; way < 2; ++way) {
    float sum[4] = {0.f, 0.f, 0.f, 0.f};
    if (way == 0) multiply<T>(sum, given.weight[lane], given.rows[2 * lane], given.rows[2 * lane + 1]);
    else multiply_by_shuffles<T>(sum, given.weight[lane], given.rows[2 * lane], given.rows[2 * lane + 1]);
    for (int j = 0; j < 4; ++j) given.sums[(way * 32 + lane) * 4 + j] = sum[j];
  }
}
S2S_EXPORT int s2s_transformer_multiply(int is_bf16, const MultiplyParameters* given) {
  return launch(is_bf16 ? multiply_both<__nv_bfloat16> : multiply_both<__half>, dim3(1), dim3(32), nullptr, *given);
}
#endif
