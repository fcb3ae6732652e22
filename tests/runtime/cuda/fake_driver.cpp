// A stand-in for libcuda with cuda.h's own prototypes: memory is the host's, kernels are the emulation's, what is captured
// is kept and run at launch. Only what the device loop calls.
#include <cuda.h>
#include <dlfcn.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "beam_search/alignment_parameters.h"
#include "beam_search/chain_parameters.h"
#include "beam_search/loop_parameters.h"
#include "transformer/parameters.h"

using Call = std::function<int()>;
struct FakeGraph {
  std::vector<Call> calls;
  FakeGraph* body = nullptr;
  unsigned condition = 0;
};
typedef int (*ByName)(const char*, const void*, const uint32_t*, uint32_t);
static std::map<void*, FakeGraph*> capturing;
static int capability = 99, version = 13000, failure = 0, fail_at = -1;
static FakeGraph* handles[1];

static bool last_was_kernel = false;
static int n_early = 0;

static int queue(void* stream, Call call) {
  last_was_kernel = false;
  auto found = capturing.find(stream);
  if (found != capturing.end()) {
    found->second->calls.push_back(call);
    return 0;
  }
  if (!failure) failure = call();
  return failure;
}
static size_t size_of_transformer(const std::string& name) {
  const auto begins = [&name](const char* with) { return name.rfind(with, 0) == 0; };
  if (begins("head_candidates")) return sizeof(HeadParameters);
  if (begins("self_block")) return sizeof(SelfBlockParameters);
  if (begins("cross_block")) return sizeof(CrossBlockParameters);
  if (begins("self_attention")) return sizeof(SelfAttentionParameters);
  if (begins("cross_attention") || begins("merge_cross")) return sizeof(CrossAttentionParameters);
  if (begins("windows") || begins("input_windows")) return sizeof(WindowParameters);
  if (begins("encoder_attention")) return sizeof(EncoderAttentionParameters);
  if (begins("norm_rows")) return sizeof(NormParameters);
  if (begins("embed_rows")) return sizeof(EmbedParameters);
  if (begins("recurrent_cell")) return sizeof(CellParameters);
  if (begins("begin_step")) return sizeof(BeginParameters);
  if (begins("pick_states")) return sizeof(PickParameters);
  if (begins("source_scores")) return sizeof(ScoreParameters);
  if (begins("source_context")) return sizeof(ContextParameters);
  return begins("skinny_product") || begins("tiled_product") || begins("finish_rows") ? sizeof(ProductParameters) : 0;
}
static size_t size_of(const std::string& name) {
  if (name.find("top") != std::string::npos && name.find("stop") == std::string::npos) return sizeof(LogSoftmaxTopParameters);
  if (name.find("attention") != std::string::npos) return sizeof(AlignmentParameters);
  if (name.rfind("row_statistics", 0) == 0 || name.rfind("write_scores", 0) == 0) return sizeof(NormalizeParameters);
  if (name.find("filter") != std::string::npos) return sizeof(ChainParameters);
  const std::map<std::string, size_t> sizes = {
      {"beam_update_step", sizeof(BeamUpdateParameters)}, {"beam_stop_step", sizeof(BeamStopParameters)},
      {"apply_decoding_rules", sizeof(ChainParameters)},  {"draw_row_tokens", sizeof(DrawParameters)},
      {"find_row_maxima", sizeof(DrawParameters)},        {"draw_beam_tokens", sizeof(DrawParameters)},
      {"slice_maxima", sizeof(ChainParameters)},          {"slice_weights", sizeof(ChainParameters)},
      {"renormalize_slices", sizeof(ChainParameters)},    {"finish_beam_step", sizeof(BeamStepParameters)},
      {"finish_row_step", sizeof(RowStepParameters)}};
  auto found = sizes.find(name);
  return found == sizes.end() ? 0 : found->second;  // 0: the table lacks it, and it can't be launched
}
struct FakeKernel {
  ByName launch;
  std::string name;
  size_t argument_bytes;
};

extern "C" {
// What tests steer it with.
void fake_reset(int driver_version, int fail_at_launch) { version = driver_version, failure = 0, fail_at = fail_at_launch; }
void fake_capability(int number) { capability = number; }
int fake_queue(void* stream, void (*run)(void*), void* data) {  // of fake_cublaslt.cpp
  return queue(stream, [run, data] { run(data); return 0; });
}
int fake_call(void* stream, void (*function)()) { return queue(stream, [function] { function(); return 0; }); }

CUresult cuInit(unsigned) { return CUDA_SUCCESS; }
CUresult cuGetErrorString(CUresult, const char** text) { *text = "the fake's text"; return CUDA_SUCCESS; }
CUresult cuDriverGetVersion(int* out) { *out = version; return CUDA_SUCCESS; }
CUresult cuDeviceGetCount(int* n) { *n = 1; return CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice* device, int) { *device = 0; return CUDA_SUCCESS; }
CUresult cuDeviceGetName(char* name, int n, CUdevice) { strncpy(name, "fake GPU", n); return CUDA_SUCCESS; }
CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute which, CUdevice) {
  *value = which == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR ? capability / 10 : capability % 10;
  return CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice) { *context = (CUcontext)1; return CUDA_SUCCESS; }
CUresult cuCtxSetCurrent(CUcontext) { return CUDA_SUCCESS; }
CUresult cuMemGetInfo(size_t* free, size_t* total) { *free = *total = 1 << 20; return CUDA_SUCCESS; }
CUresult cuMemAlloc(CUdeviceptr* address, size_t n) {
  if (n > (64u << 20)) return CUDA_ERROR_OUT_OF_MEMORY;
  void* pointer = aligned_alloc(256, (n + 255) / 256 * 256);
  memset(pointer, 0xff, n);
  *address = (CUdeviceptr)pointer;
  return CUDA_SUCCESS;
}
CUresult cuMemFree(CUdeviceptr address) { free((void*)address); return CUDA_SUCCESS; }
CUresult cuMemHostAlloc(void** pointer, size_t n, unsigned) { *pointer = calloc(1, n); return CUDA_SUCCESS; }
CUresult cuMemHostGetDevicePointer(CUdeviceptr* address, void* pointer, unsigned) { *address = (CUdeviceptr)pointer; return CUDA_SUCCESS; }
CUresult cuMemFreeHost(void* pointer) { free(pointer); return CUDA_SUCCESS; }
CUresult cuMemcpyHtoDAsync(CUdeviceptr to, const void* from, size_t n, CUstream stream) {
  return (CUresult)queue(stream, [=] { memcpy((void*)to, from, n); return 0; });
}
CUresult cuMemcpyDtoHAsync(void* to, CUdeviceptr from, size_t n, CUstream stream) {
  return (CUresult)queue(stream, [=] { memcpy(to, (void*)from, n); return 0; });
}
CUresult cuMemcpyDtoDAsync(CUdeviceptr to, CUdeviceptr from, size_t n, CUstream stream) {
  return (CUresult)queue(stream, [=] { memcpy((void*)to, (void*)from, n); return 0; });
}
CUresult cuMemcpy2DAsync(const CUDA_MEMCPY2D* given, CUstream stream) {
  const CUDA_MEMCPY2D copy = *given;
  if (copy.dstMemoryType != CU_MEMORYTYPE_DEVICE || copy.WidthInBytes > copy.srcPitch || copy.WidthInBytes > copy.dstPitch)
    return CUDA_ERROR_INVALID_VALUE;
  return (CUresult)queue(stream, [=] {
    const char* from = copy.srcMemoryType == CU_MEMORYTYPE_HOST ? (const char*)copy.srcHost : (const char*)copy.srcDevice;
    for (size_t row = 0; row < copy.Height; ++row)
      memcpy((char*)copy.dstDevice + row * copy.dstPitch, from + row * copy.srcPitch, copy.WidthInBytes);
    return 0;
  });
}
CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t n, CUstream stream) {
  return (CUresult)queue(stream, [=] { memset((void*)to, value, n); return 0; });
}
CUresult cuStreamCreate(CUstream* stream, unsigned) { *stream = (CUstream)7; return CUDA_SUCCESS; }
CUresult cuStreamDestroy(CUstream) { return CUDA_SUCCESS; }
CUresult cuStreamSynchronize(CUstream) { return (CUresult)failure; }
CUresult cuStreamQuery(CUstream) { return (CUresult)failure; }

CUresult cuLibraryLoadData(CUlibrary* library, const void* code, CUjit_option*, void**, unsigned, CUlibraryOption*, void**, unsigned) {
  if (version < 13000) return CUDA_ERROR_UNSUPPORTED_PTX_VERSION;
  *library = (CUlibrary)dlopen(static_cast<const char*>(code), RTLD_NOW);
  return *library ? CUDA_SUCCESS : CUDA_ERROR_INVALID_IMAGE;
}
CUresult cuLibraryGetKernel(CUkernel* kernel, CUlibrary library, const char* name) {
  void* transformer = dlsym(library, "s2s_transformer_by_name");
  void* by_name = transformer ? transformer : dlsym(library, "s2s_beam_search_by_name");
  *kernel = (CUkernel) new FakeKernel{(ByName)by_name, name, transformer ? size_of_transformer(name) : size_of(name)};
  return CUDA_SUCCESS;
}
CUresult cuKernelGetFunction(CUfunction* function, CUkernel kernel) { *function = (CUfunction)kernel; return CUDA_SUCCESS; }
static int launch_kernel(FakeKernel* kernel, const uint32_t (&grid)[3], unsigned threads, void* stream, void** arguments) {
  if (!kernel->argument_bytes) return CUDA_ERROR_INVALID_VALUE;
  const char* first = static_cast<const char*>(arguments[0]);
  std::vector<char> copied(first, first + kernel->argument_bytes);
  const uint32_t x = grid[0], y = grid[1], z = grid[2];
  const int status = queue(stream, [=] {
    if (fail_at >= 0 && fail_at-- == 0) return (int)CUDA_ERROR_ILLEGAL_ADDRESS;
    const uint32_t grid[3] = {x, y, z};
    return kernel->launch(kernel->name.c_str(), copied.data(), grid, threads);
  });
  last_was_kernel = true;
  return status;
}
// A launch that may begin early: after another kernel, with the one attribute that says so.
CUresult cuLaunchKernelEx(const CUlaunchConfig* given, CUfunction function, void** arguments, void** extra) {
  const CUlaunchAttribute* attribute = given->attrs;
  const bool is_right = given->numAttrs == 1 && attribute->id == CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION &&
                        attribute->value.programmaticStreamSerializationAllowed == 1 && !extra && !given->sharedMemBytes &&
                        given->blockDimY == 1 && given->blockDimZ == 1 && last_was_kernel;
  if (!is_right) return CUDA_ERROR_INVALID_VALUE;
  ++n_early;
  const uint32_t grid[3] = {given->gridDimX, given->gridDimY, given->gridDimZ};
  return (CUresult)launch_kernel((FakeKernel*)function, grid, given->blockDimX, given->hStream, arguments);
}
CUresult cuFuncGetAttribute(int* value, CUfunction_attribute which, CUfunction) {
  *value = capability;
  return which == CU_FUNC_ATTRIBUTE_PTX_VERSION ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
int fake_early_launches() { return n_early; }
CUresult cuLaunchKernel(CUfunction function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned, unsigned,
                        unsigned, CUstream stream, void** arguments, void**) {
  const uint32_t grid[3] = {x, y, z};
  return (CUresult)launch_kernel((FakeKernel*)function, grid, threads, stream, arguments);
}

CUresult cuStreamBeginCapture(CUstream stream, CUstreamCaptureMode mode) {
  if (mode != CU_STREAM_CAPTURE_MODE_RELAXED) return CUDA_ERROR_INVALID_VALUE;
  capturing[stream] = new FakeGraph;
  return CUDA_SUCCESS;
}
CUresult cuStreamEndCapture(CUstream stream, CUgraph* graph) {
  *graph = (CUgraph)capturing[stream];
  capturing.erase(stream);
  return CUDA_SUCCESS;
}
CUresult cuGraphCreate(CUgraph* graph, unsigned) { *graph = (CUgraph) new FakeGraph; return CUDA_SUCCESS; }
CUresult cuGraphConditionalHandleCreate(CUgraphConditionalHandle* handle, CUgraph graph, CUcontext context, unsigned value, unsigned flags) {
  if (context != (CUcontext)1 || value != 1 || flags != CU_GRAPH_COND_ASSIGN_DEFAULT) return CUDA_ERROR_INVALID_VALUE;
  *handle = (CUgraphConditionalHandle)&((FakeGraph*)graph)->condition;
  return CUDA_SUCCESS;
}
CUresult cuGraphAddNode(CUgraphNode* node, CUgraph graph, const CUgraphNode* before, const CUgraphEdgeData* edges, size_t n, CUgraphNodeParams* given) {
  FakeGraph* outer = (FakeGraph*)graph;
  const bool is_right = given->type == CU_GRAPH_NODE_TYPE_CONDITIONAL && given->conditional.type == CU_GRAPH_COND_TYPE_WHILE &&
                        given->conditional.size == 1 && given->conditional.ctx == (CUcontext)1 && !before && !edges && !n &&
                        given->conditional.handle == (CUgraphConditionalHandle)&outer->condition;
  if (!is_right) return CUDA_ERROR_INVALID_VALUE;
  outer->body = new FakeGraph;
  static CUgraph bodies[1];
  bodies[0] = (CUgraph)outer->body;
  given->conditional.phGraph_out = bodies;
  *node = (CUgraphNode)outer->body;
  return CUDA_SUCCESS;
}
CUresult cuStreamBeginCaptureToGraph(CUstream stream, CUgraph graph, const CUgraphNode*, const CUgraphEdgeData*, size_t, CUstreamCaptureMode mode) {
  if (mode != CU_STREAM_CAPTURE_MODE_RELAXED) return CUDA_ERROR_INVALID_VALUE;
  capturing[stream] = (FakeGraph*)graph;
  return CUDA_SUCCESS;
}
CUresult cuGraphInstantiate(CUgraphExec* executable, CUgraph graph, unsigned long long flags) {
  *executable = (CUgraphExec)graph;
  return flags ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}
CUresult cuGraphLaunch(CUgraphExec executable, CUstream stream) {
  FakeGraph* graph = (FakeGraph*)executable;
  for (const Call& call : graph->calls) queue(stream, call);
  if (graph->body) {
    graph->condition = 1;
    while (graph->condition && !failure)
      for (const Call& call : graph->body->calls) queue(stream, call);
  }
  return CUDA_SUCCESS;  // a failure shows when the stream is asked
}
CUresult cuGraphExecDestroy(CUgraphExec) { return CUDA_SUCCESS; }
CUresult cuGraphDestroy(CUgraph) { return CUDA_SUCCESS; }
CUresult cuEventCreate(CUevent* event, unsigned) { *event = (CUevent)1; return CUDA_SUCCESS; }
CUresult cuEventRecord(CUevent, CUstream) { return CUDA_SUCCESS; }
CUresult cuEventElapsedTime(float* ms, CUevent, CUevent) { *ms = 2.5f; return CUDA_SUCCESS; }
CUresult cuEventDestroy(CUevent) { return CUDA_SUCCESS; }
}
