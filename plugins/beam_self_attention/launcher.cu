// The kernels of beam self-attention by name, and the launcher that picks one.
#include "../common/instances.cuh"
#include "kernel.cuh"

#define KERNEL(element, Type, width)                                                     \
  extern "C" __global__ void __launch_bounds__(kMaxThreads)                              \
      beam_self_attention_##element##_w##width(BeamSelfAttentionParameters given) {      \
    beam_self_attention<Type, width * sizeof(Type) / 16>(given);                         \
  }
#define KERNELS(element, Type) KERNEL(element, Type, 32) KERNEL(element, Type, 64) KERNEL(element, Type, 128)
KERNELS(fp32, float)
KERNELS(fp16, __half)
KERNELS(bf16, __nv_bfloat16)

#define ENTRY(element, width) {"beam_self_attention_" #element "_w" #width, beam_self_attention_##element##_w##width}
#define ENTRIES(element) {ENTRY(element, 32), ENTRY(element, 64), ENTRY(element, 128)}
static const Instance<BeamSelfAttentionParameters> kInstances[3][3] = {ENTRIES(fp32), ENTRIES(fp16), ENTRIES(bf16)};

// Fills `launch` with the kernel, grid and block for these sizes, without looking at the pointers. Returns a status.
S2S_EXPORT int s2s_beam_self_attention_plan(int element, const BeamSelfAttentionParameters* given, S2SLaunch* launch) {
  const int status =
      check_extents(element, given->sources, given->heads, given->beams, given->head_size, given->capacity);
  if (status != S2S_OK) return status;
  const dim3 grid(given->beams, given->heads, given->sources);
  describe(launch, kInstances[element][width_index(given->head_size)].name, grid, block_threads(given->capacity));
  return S2S_OK;
}

// Queues one step on `stream`. The caches are changed in place. Returns a status.
S2S_EXPORT int s2s_beam_self_attention(int element, const BeamSelfAttentionParameters* given, void* stream) {
  S2SLaunch plan;
  const int status = s2s_beam_self_attention_plan(element, given, &plan);
  if (status != S2S_OK) return status;
  if (!aligned(given->query) || !aligned(given->key) || !aligned(given->value) || !aligned(given->key_cache) ||
      !aligned(given->value_cache) || !aligned(given->output) || !given->ancestors || !given->position)
    return S2S_BAD_POINTER;
  return launch(kInstances[element][width_index(given->head_size)].kernel,
                dim3(plan.grid[0], plan.grid[1], plan.grid[2]), dim3(plan.threads), stream, *given);
}

HOST_LAUNCH_BY_NAME(beam_self_attention, BeamSelfAttentionParameters, kInstances)
