// The kernels of cross-attention by name, and the launcher that picks one.
#include "../common/instances.cuh"
#include "kernel.cuh"

#define KERNEL(element, Type, width, rows)                                               \
  extern "C" __global__ void __launch_bounds__(kMaxThreads)                              \
      cross_attention_##element##_w##width##_r##rows(CrossAttentionParameters given) {   \
    cross_attention<Type, rows, width * sizeof(Type) / 16>(given);                       \
  }
#define WIDTHS(element, Type, rows) \
  KERNEL(element, Type, 32, rows) KERNEL(element, Type, 64, rows) KERNEL(element, Type, 128, rows)
#define KERNELS(element, Type) \
  WIDTHS(element, Type, 1) WIDTHS(element, Type, 2) WIDTHS(element, Type, 4) WIDTHS(element, Type, 8)
KERNELS(fp32, float)
KERNELS(fp16, __half)
KERNELS(bf16, __nv_bfloat16)

#define ENTRY(element, width, rows) \
  {"cross_attention_" #element "_w" #width "_r" #rows, cross_attention_##element##_w##width##_r##rows}
#define ROW_ENTRIES(element, width) {ENTRY(element, width, 1), ENTRY(element, width, 2), ENTRY(element, width, 4), ENTRY(element, width, 8)}
#define ENTRIES(element) {ROW_ENTRIES(element, 32), ROW_ENTRIES(element, 64), ROW_ENTRIES(element, 128)}
static const Instance<CrossAttentionParameters> kInstances[3][3][4] = {ENTRIES(fp32), ENTRIES(fp16), ENTRIES(bf16)};

// Query rows that one block takes: the least power of two that holds all beams, at most 8.
static int row_index(int beams) { return beams <= 1 ? 0 : beams <= 2 ? 1 : beams <= 4 ? 2 : 3; }

// Fills `launch` with the kernel, grid and block for these sizes, without looking at the pointers. Returns a status.
S2S_EXPORT int s2s_cross_attention_plan(int element, const CrossAttentionParameters* given, S2SLaunch* launch) {
  const int status = check_extents(element, given->sources, given->heads, given->beams, given->head_size, given->length);
  if (status != S2S_OK) return status;
  const int rows = 1 << row_index(given->beams);
  const dim3 grid((given->beams + rows - 1) / rows, given->heads, given->sources);
  describe(launch, kInstances[element][width_index(given->head_size)][row_index(given->beams)].name, grid,
           block_threads(given->length));
  return S2S_OK;
}

// Queues one step on `stream`. Returns a status.
S2S_EXPORT int s2s_cross_attention(int element, const CrossAttentionParameters* given, void* stream) {
  S2SLaunch plan;
  const int status = s2s_cross_attention_plan(element, given, &plan);
  if (status != S2S_OK) return status;
  if (!aligned(given->query) || !aligned(given->key) || !aligned(given->value) || !aligned(given->output) || !given->mask)
    return S2S_BAD_POINTER;
  return launch(kInstances[element][width_index(given->head_size)][row_index(given->beams)].kernel,
                dim3(plan.grid[0], plan.grid[1], plan.grid[2]), dim3(plan.threads), stream, *given);
}

HOST_LAUNCH_BY_NAME(cross_attention, CrossAttentionParameters, kInstances)
