// The kernels of Transformers and recurrent models with packed weights, by name. launches.py has grids and threads.
//
// KERNELS(element, T, W): T is the element of activations, W of weights.
#pragma once

#include <cstring>

#include "../common/launch.h"
#include "blocks.cuh"
#include "encoder_attention.cuh"
#include "head.cuh"
#include "products.cuh"
#include "recurrent.cuh"
#include "windows.cuh"

#define KERNEL(name, threads, Parameters, body) \
  extern "C" __global__ void __launch_bounds__(threads) name(Parameters given) { body(given); }

#define SKINNY(element, T, W, width) /* two blocks a multiprocessor, or ptxas spills for a third */ \
  extern "C" __global__ void __launch_bounds__(kProductWarps * 32, width > 1024 ? 1 : 2)            \
      skinny_product_##element##_norm##width(ProductParameters given) {                             \
    skinny_product<T, W, width>(given);                                                             \
  }
#define HEAD(element, T, W, width)                                                       \
  extern "C" __global__ void __launch_bounds__(kProductWarps * 32, width > 1024 ? 1 : 2) \
      head_candidates_##element##_norm##width(HeadParameters given) {                    \
    head_candidates<T, W, width>(given);                                                 \
  }
#define SELF(element, T, width) \
  KERNEL(self_attention_##element##_w##width, kMaxWarps * 32, SelfAttentionParameters, (self_attention<T, width / 8>))
#define CROSS(element, T, rows, width)                                                             \
  KERNEL(cross_attention_##element##_r##rows##_w##width, kMaxWarps * 32, CrossAttentionParameters, \
         (cross_attention<T, rows, width / 8>))
// As many blocks a multiprocessor as its registers allow, or ptxas spills for one more.
#define ENCODER(element, T, width)                                                  \
  extern "C" __global__ void __launch_bounds__(kEncoderThreads, width > 64 ? 2 : 3) \
      encoder_attention_##element##_w##width(EncoderAttentionParameters given) {    \
    encoder_attention<T, width>(given);                                             \
  }
#define SELF_BLOCK(element, T, W, width) \
  KERNEL(self_block_##element##_w##width, kBlockThreads, SelfBlockParameters, (self_block<T, W, width>))
#define CROSS_BLOCK(element, T, W, rows, width) /* two blocks a multiprocessor, or ptxas spills for a third */ \
  extern "C" __global__ void __launch_bounds__(kBlockThreads, rows == 1 ? 2 : 1)                               \
      cross_block_##element##_r##rows##_w##width(CrossBlockParameters given) {                                 \
    cross_block<T, W, rows, width>(given);                                                                     \
  }
#define CELL(element, T, W, cell, gates, groups)                                       \
  KERNEL(recurrent_cell_##element##_##cell##_g##groups, kCellThreads, CellParameters, \
         (recurrent_cell<T, W, gates, groups>))
#define RECURRENT(element, T, W)                                                        \
  CELL(element, T, W, lstm, 4, 1) CELL(element, T, W, lstm, 4, 4)                       \
  CELL(element, T, W, gru, 3, 1) CELL(element, T, W, gru, 3, 4)                         \
  KERNEL(begin_step_##element, kBeginThreads, BeginParameters, (begin_step<T, W>))      \
  KERNEL(pick_states_##element, kPickThreads, PickParameters, pick_states<T>)           \
  KERNEL(source_scores_##element, kScoreThreads, ScoreParameters, source_scores<T>)     \
  KERNEL(source_context_##element, kContextThreads, ContextParameters, source_context<T>)
#define OF_WIDTH(element, T, W, width)                                                                        \
  SELF(element, T, width) CROSS(element, T, 1, width) CROSS(element, T, 4, width) CROSS(element, T, 8, width) \
  SELF_BLOCK(element, T, W, width) CROSS_BLOCK(element, T, W, 1, width) CROSS_BLOCK(element, T, W, 4, width)  \
  CROSS_BLOCK(element, T, W, 8, width) ENCODER(element, T, width)
#define KERNELS(element, T, W)                                                                        \
  KERNEL(skinny_product_##element, kProductWarps * 32, ProductParameters, (skinny_product<T, W, 0>))  \
  SKINNY(element, T, W, 512) SKINNY(element, T, W, 1024) SKINNY(element, T, W, 2048)                  \
  HEAD(element, T, W, 0) HEAD(element, T, W, 512) HEAD(element, T, W, 1024) HEAD(element, T, W, 2048) \
  KERNEL(tiled_product_##element, kTiledThreads, ProductParameters, (tiled_product<T, W>))            \
  KERNEL(finish_rows_##element, kFinishThreads, ProductParameters, finish_rows<T>)                    \
  KERNEL(norm_rows_##element, kNormThreads, NormParameters, norm_rows<T>)                             \
  KERNEL(embed_rows_##element, kEmbedThreads, EmbedParameters, (embed_rows<T, W>))                    \
  KERNEL(input_windows_##element, kWindowThreads, WindowParameters, (gather_windows<float, T>))       \
  KERNEL(merge_cross_##element, kMergeThreads, CrossAttentionParameters, merge_cross<T>)              \
  KERNEL(cross_weights_##element, kWeightThreads, CrossWeightsParameters, cross_weights<T>)           \
  KERNEL(windows_##element, kWindowThreads, WindowParameters, (gather_windows<T, T>))                 \
  OF_WIDTH(element, T, W, 32) OF_WIDTH(element, T, W, 64) OF_WIDTH(element, T, W, 128)                \
  RECURRENT(element, T, W)
#ifndef __CUDACC__
// The host build finds a kernel by its name, as a driver does in a loaded binary.
constexpr int kNoSuchKernel = -101;
template <auto kernel, class Parameters>
int run_kernel(const void* given, dim3 grid, dim3 block) {
  return launch(kernel, grid, block, nullptr, *static_cast<const Parameters*>(given));
}
struct NamedKernel {
  const char* name;
  int (*run)(const void*, dim3, dim3);
};
#define NAMED(kernel, Parameters) {#kernel, run_kernel<kernel, Parameters>},
#define NAMED_OF_WIDTH(element, width)                                     \
  NAMED(self_attention_##element##_w##width, SelfAttentionParameters)      \
  NAMED(cross_attention_##element##_r1_w##width, CrossAttentionParameters) \
  NAMED(cross_attention_##element##_r4_w##width, CrossAttentionParameters) \
  NAMED(cross_attention_##element##_r8_w##width, CrossAttentionParameters) \
  NAMED(self_block_##element##_w##width, SelfBlockParameters)              \
  NAMED(cross_block_##element##_r1_w##width, CrossBlockParameters)         \
  NAMED(cross_block_##element##_r4_w##width, CrossBlockParameters)         \
  NAMED(cross_block_##element##_r8_w##width, CrossBlockParameters)         \
  NAMED(encoder_attention_##element##_w##width, EncoderAttentionParameters)
#define NAMED_ALL(element)                                      \
  NAMED(skinny_product_##element, ProductParameters)            \
  NAMED(skinny_product_##element##_norm512, ProductParameters)  \
  NAMED(skinny_product_##element##_norm1024, ProductParameters) \
  NAMED(skinny_product_##element##_norm2048, ProductParameters) \
  NAMED(head_candidates_##element##_norm0, HeadParameters)      \
  NAMED(head_candidates_##element##_norm512, HeadParameters)    \
  NAMED(head_candidates_##element##_norm1024, HeadParameters)   \
  NAMED(head_candidates_##element##_norm2048, HeadParameters)   \
  NAMED(tiled_product_##element, ProductParameters)             \
  NAMED(finish_rows_##element, ProductParameters)               \
  NAMED(norm_rows_##element, NormParameters)                    \
  NAMED(embed_rows_##element, EmbedParameters)                  \
  NAMED(input_windows_##element, WindowParameters)              \
  NAMED(merge_cross_##element, CrossAttentionParameters)        \
  NAMED(cross_weights_##element, CrossWeightsParameters)        \
  NAMED(windows_##element, WindowParameters)                    \
  NAMED(recurrent_cell_##element##_lstm_g1, CellParameters)     \
  NAMED(recurrent_cell_##element##_lstm_g4, CellParameters)     \
  NAMED(recurrent_cell_##element##_gru_g1, CellParameters)      \
  NAMED(recurrent_cell_##element##_gru_g4, CellParameters)      \
  NAMED(begin_step_##element, BeginParameters)                  \
  NAMED(pick_states_##element, PickParameters)                  \
  NAMED(source_scores_##element, ScoreParameters)               \
  NAMED(source_context_##element, ContextParameters)            \
  NAMED_OF_WIDTH(element, 32) NAMED_OF_WIDTH(element, 64) NAMED_OF_WIDTH(element, 128)

inline int run_named(const NamedKernel* first, size_t n, const char* name, const void* given, const uint32_t* grid,
                     uint32_t threads) {
  for (size_t i = 0; i < n; ++i)
    if (std::strcmp(first[i].name, name) == 0)
      return first[i].run(given, dim3(grid[0], grid[1], grid[2]), dim3(threads));
  return kNoSuchKernel;
}
#endif
