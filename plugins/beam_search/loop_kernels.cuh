// The loop's kernels by name. Whoever loads the binary launches them; loop_launches.py has grids, threads and parameters.
#pragma once

#include <cstring>

#include "alignment.cuh"
#include "race.cuh"
#include "renormalize.cuh"
#include "rules.cuh"
#include "steps.cuh"

#define NORMALIZE_KERNELS(element, Type)                                                                           \
  extern "C" __global__ void __launch_bounds__(kBlockThreads) row_statistics_##element(NormalizeParameters given) { \
    row_statistics<Type>(given);                                                                                   \
  }                                                                                                                \
  extern "C" __global__ void __launch_bounds__(kBlockThreads) write_scores_##element(NormalizeParameters given) {   \
    write_scores<Type>(given);                                                                                     \
  }
NORMALIZE_KERNELS(fp32, float)
NORMALIZE_KERNELS(fp16, __half)
NORMALIZE_KERNELS(bf16, __nv_bfloat16)
// One block a multiprocessor is enough for it: with more, ptxas spills a register for sm_100.
extern "C" __global__ void __launch_bounds__(kBlockThreads, 1) apply_decoding_rules(ChainParameters given) { apply_rules(given); }
extern "C" __global__ void __launch_bounds__(kBlockThreads) filter_statistics(ChainParameters given) { find_statistics(given); }
extern "C" __global__ void __launch_bounds__(kBlockThreads) filter_entropy(ChainParameters given) { find_entropy(given); }
extern "C" __global__ void __launch_bounds__(kBlockThreads) filter_digit(ChainParameters given) { find_digit(given); }
extern "C" __global__ void __launch_bounds__(kBlockThreads) apply_filter(ChainParameters given) { remove_tokens(given); }
extern "C" __global__ void __launch_bounds__(kBlockThreads) slice_maxima(ChainParameters given) { find_slice_maxima(given); }
extern "C" __global__ void __launch_bounds__(kBlockThreads) slice_weights(ChainParameters given) { find_slice_weights(given); }
extern "C" __global__ void __launch_bounds__(kBlockThreads) renormalize_slices(ChainParameters given) { renormalize(given); }
extern "C" __global__ void __launch_bounds__(kBlockThreads) find_row_maxima(DrawParameters given) { find_maxima(given); }
extern "C" __global__ void __launch_bounds__(kBlockThreads) draw_row_tokens(DrawParameters given) { draw_row(given); }
extern "C" __global__ void __launch_bounds__(kBlockThreads) draw_beam_tokens(DrawParameters given) { race_beams(given); }
extern "C" __global__ void __launch_bounds__(kUpdateThreads) finish_beam_step(BeamStepParameters given) { beam_step(given); }
extern "C" __global__ void __launch_bounds__(kUpdateThreads) finish_row_step(RowStepParameters given) { row_step(given); }

#define ALIGNMENT_KERNEL(element, Type)                                                                                 \
  extern "C" __global__ void __launch_bounds__(kAlignmentThreads) record_attention_##element(AlignmentParameters given) { \
    record_attention<Type>(given);                                                                                      \
  }
ALIGNMENT_KERNEL(fp32, float)
ALIGNMENT_KERNEL(fp16, __half)
ALIGNMENT_KERNEL(bf16, __nv_bfloat16)

#ifndef __CUDACC__
// The host build finds a kernel by its name, as a driver does in a loaded binary.
template <auto kernel, class Parameters>
int run_kernel(const void* given, dim3 grid, dim3 block) {
  return launch(kernel, grid, block, nullptr, *static_cast<const Parameters*>(given));
}
struct NamedKernel {
  const char* name;
  int (*run)(const void*, dim3, dim3);
};
#define NAMED(kernel, Parameters) {#kernel, run_kernel<kernel, Parameters>}
inline const NamedKernel kKernels[] = {
    NAMED(row_statistics_fp32, NormalizeParameters),
    NAMED(row_statistics_fp16, NormalizeParameters),
    NAMED(row_statistics_bf16, NormalizeParameters),
    NAMED(write_scores_fp32, NormalizeParameters),
    NAMED(write_scores_fp16, NormalizeParameters),
    NAMED(write_scores_bf16, NormalizeParameters),
    NAMED(apply_decoding_rules, ChainParameters),
    NAMED(filter_statistics, ChainParameters),
    NAMED(filter_entropy, ChainParameters),
    NAMED(filter_digit, ChainParameters),
    NAMED(apply_filter, ChainParameters),
    NAMED(slice_maxima, ChainParameters),
    NAMED(slice_weights, ChainParameters),
    NAMED(renormalize_slices, ChainParameters),
    NAMED(find_row_maxima, DrawParameters),
    NAMED(draw_row_tokens, DrawParameters),
    NAMED(draw_beam_tokens, DrawParameters),
    NAMED(finish_beam_step, BeamStepParameters),
    NAMED(finish_row_step, RowStepParameters),
    NAMED(record_attention_fp32, AlignmentParameters),
    NAMED(record_attention_fp16, AlignmentParameters),
    NAMED(record_attention_bf16, AlignmentParameters),
};
inline int loop_kernel_by_name(const char* name, const void* given, const uint32_t* grid, uint32_t threads) {
  for (const NamedKernel& entry : kKernels)
    if (std::strcmp(entry.name, name) == 0) return entry.run(given, dim3(grid[0], grid[1], grid[2]), dim3(threads));
  return kNoKernel;
}
#endif

// Sizes of the parameter structures, so that code in another language can check its copies of them.
S2S_EXPORT int s2s_beam_search_sizes(int32_t* sizes, int n) {
  const int32_t all[] = {sizeof(LogSoftmaxTopParameters), sizeof(BeamUpdateParameters), sizeof(BeamStopParameters),
                         sizeof(NormalizeParameters),     sizeof(DeviceRule),           sizeof(RulesParameters),
                         sizeof(DrawParameters),          sizeof(RecordParameters),     sizeof(RowUpdateParameters),
                         sizeof(PublishParameters),       sizeof(BeamStepParameters),   sizeof(RowStepParameters),
                         sizeof(AlignmentParameters),     sizeof(FilterRow),            sizeof(FilterSlice),
                         sizeof(ChainParameters)};
  for (int i = 0; i < n && i < static_cast<int>(sizeof all / sizeof *all); ++i) sizes[i] = all[i];
  return sizeof all / sizeof *all;
}
