// Makes a plugin of the C++ library by name, clones it as TensorRT does, and calls its enqueue on host memory.
#include <NvInferRuntime.h>

#include <cstring>

extern "C" nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count);

extern "C" __attribute__((visibility("default"))) int run_node(const char* name, int element, float scale, int n_inputs,
                                                               const int64_t* dims, const int32_t* ranks,
                                                               const void* const* inputs, void* const* outputs) {
  using namespace nvinfer1;
  const DataType types[] = {DataType::kFLOAT, DataType::kHALF, DataType::kBF16};
  PluginTensorDesc described[16] = {};
  for (int i = 0; i < n_inputs; ++i) {
    described[i].type = types[element];
    described[i].dims.nbDims = ranks[i];
    for (int j = 0; j < ranks[i]; ++j) described[i].dims.d[j] = *dims++;
  }
  int32_t count = 0;
  auto* const* creators = getCreators(count);
  for (int32_t i = 0; i < count; ++i) {
    auto* creator = static_cast<IPluginCreatorV3One*>(creators[i]);
    if (std::strcmp(creator->getPluginName(), name) != 0) continue;
    PluginField field{"scale", &scale, PluginFieldType::kFLOAT32, 1};
    PluginFieldCollection fields{1, &field};
    IPluginV3* first = creator->createPlugin(name, &fields, TensorRTPhase::kRUNTIME);
    if (first == nullptr) return -1000;
    auto* runtime = static_cast<IPluginV3OneRuntime*>(first->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
    IPluginV3* attached = runtime->attachToContext(nullptr);
    delete first;
    runtime = static_cast<IPluginV3OneRuntime*>(attached->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
    const int status = runtime->enqueue(described, nullptr, inputs, outputs, nullptr, nullptr);
    delete attached;
    return status;
  }
  return -1001;
}
