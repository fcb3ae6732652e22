// The kernels of beam search by name, and their launchers.
#include "../common/instances.cuh"
#include "loop_kernels.cuh"
#include "top.cuh"
#include "update.cuh"

#define TOP_KERNEL(element, Type)                                                        \
  extern "C" __global__ void __launch_bounds__(kListWarps * 32)                          \
      top_of_slices_##element(LogSoftmaxTopParameters given) { top_of_slices<Type>(given); }
TOP_KERNEL(fp32, float)
TOP_KERNEL(fp16, __half)
TOP_KERNEL(bf16, __nv_bfloat16)
extern "C" __global__ void __launch_bounds__(32) merge_top_lists(LogSoftmaxTopParameters given) { merge_lists(given, blockIdx.x); }
extern "C" __global__ void __launch_bounds__(kUpdateThreads) beam_update_step(BeamUpdateParameters given) {
  beam_update(given);
}
extern "C" __global__ void __launch_bounds__(32) beam_stop_step(BeamStopParameters given) { beam_stop(given); }

// The number of lists for a row of V logits, which is the middle extent of the scratch arrays.
S2S_EXPORT int s2s_log_softmax_top_lists(int vocabulary) {
  return max(1, min((vocabulary + 511) / 512, kMostLists));
}

// Queues both stages on `stream`. Returns a status.
S2S_EXPORT int s2s_log_softmax_top(int element, const LogSoftmaxTopParameters* given, void* stream) {
  if (element < S2S_FP32 || element > S2S_BF16) return S2S_BAD_ELEMENT;
  if (given->rows < 1 || given->rows > 65535 || given->vocabulary < 1) return S2S_BAD_EXTENT;
  if (given->lists != s2s_log_softmax_top_lists(given->vocabulary)) return S2S_BAD_EXTENT;
  if (given->candidates < 1 || given->candidates > given->vocabulary) return S2S_BAD_CANDIDATES;
  void (*const kernels[])(LogSoftmaxTopParameters) = {top_of_slices_fp32, top_of_slices_fp16, top_of_slices_bf16};
  const dim3 grid((given->lists + kListWarps - 1) / kListWarps, given->rows);
  const int status = launch(kernels[element], grid, dim3(kListWarps * 32), stream, *given);
  return status != S2S_OK ? status : launch(merge_top_lists, dim3(given->rows), dim3(32), stream, *given);
}

// Queues the update of all sources on `stream`. Returns a status.
S2S_EXPORT int s2s_beam_update(const BeamUpdateParameters* given, void* stream) {
  if (given->beams < 1 || given->beams > kUpdateBeams) return S2S_BAD_BEAMS;
  if (given->sources < 1 || given->limit < 1 || given->prompt < 1 || given->capacity < 1) return S2S_BAD_EXTENT;
  const int n_chosen = (given->n_end > 1 ? 1 + given->n_end : 2) * given->beams;
  const int n_offers = given->beams * given->candidates;
  if (given->n_end < 0 || n_chosen > kMostChosen || n_offers > kMostOffers || n_offers < n_chosen)
    return S2S_BAD_CANDIDATES;
  return launch(beam_update_step, dim3(given->sources), dim3(kUpdateThreads), stream, *given);
}

// Queues the end of a step on `stream`: the stop flag, and the next position. Returns a status.
S2S_EXPORT int s2s_beam_stop(const BeamStopParameters* given, void* stream) {
  if (given->beams < 1 || given->sources < 1) return S2S_BAD_EXTENT;
  return launch(beam_stop_step, dim3(1), dim3(32), stream, *given);
}

// The host build finds kernels by name, as a driver finds them in a binary.
#ifndef __CUDACC__
static const Instance<LogSoftmaxTopParameters> kTopInstances[] = {{"top_of_slices_fp32", top_of_slices_fp32},
                                                                  {"top_of_slices_fp16", top_of_slices_fp16},
                                                                  {"top_of_slices_bf16", top_of_slices_bf16},
                                                                  {"merge_top_lists", merge_top_lists}};
static const Instance<BeamUpdateParameters> kUpdateInstances[] = {{"beam_update_step", beam_update_step}};
static const Instance<BeamStopParameters> kStopInstances[] = {{"beam_stop_step", beam_stop_step}};

S2S_EXPORT int s2s_beam_search_by_name(const char* name, const void* given, const uint32_t* grid, uint32_t threads) {
  int status = launch_by_name<LogSoftmaxTopParameters>(kTopInstances, name, given, grid, threads);
  if (status == kNoKernel) status = launch_by_name<BeamUpdateParameters>(kUpdateInstances, name, given, grid, threads);
  if (status == kNoKernel) status = launch_by_name<BeamStopParameters>(kStopInstances, name, given, grid, threads);
  return status == kNoKernel ? loop_kernel_by_name(name, given, grid, threads) : status;
}
#endif
