// The plugins as a library for TensorRT and TensorRT-RTX: IPluginV3 over the launchers' C interface.
//
// Load it with IPluginRegistry::loadLibrary, trtexec --staticPlugins or BuilderConfig::setPluginsToSerialize. Caches are
// changed in place, so builders must set PreviewFeature::kALIASED_PLUGIN_IO_10_03. Needs headers of 10.3 or later.
#include <NvInfer.h>
#include <NvInferRuntime.h>

#include <memory>
#include <string>

#include "operations.h"

namespace s2s {

using namespace nvinfer1;

constexpr char kNamespace[] = "s2s.plugins";
constexpr char kVersion[] = "1";

ILoggerFinder* logger_finder = nullptr;

// Plugin methods may not throw; they return a status code, and log the reason through this.
void report(const std::string& text) {
  ILogger* logger = logger_finder == nullptr ? nullptr : logger_finder->findLogger();
  if (logger != nullptr) logger->log(ILogger::Severity::kERROR, text.c_str());
}

const char* reason(int status) {
  switch (status) {
    case S2S_BAD_ELEMENT: return "the element type is not fp32, fp16 or bf16";
    case S2S_BAD_HEAD_SIZE: return "the head size is not a multiple of 8 in 8..128";
    case S2S_BAD_BEAMS: return "the number of beams is not in 1..16";
    case S2S_BAD_EXTENT: return "sources, heads or positions are below 1, or above 65535";
    case S2S_BAD_POINTER: return "a tensor is null, not aligned to 16 bytes, or a cache is not updated in place";
    case kBadShape: return "the inputs' shapes disagree";
    default: return "CUDA refused the launch";
  }
}

int element_of(DataType type) {
  switch (type) {
    case DataType::kFLOAT: return S2S_FP32;
    case DataType::kHALF: return S2S_FP16;
    case DataType::kBF16: return S2S_BF16;
    default: return -1;
  }
}

class Plugin : public IPluginV3, public IPluginV3OneCore, public IPluginV3OneBuildV2, public IPluginV3OneRuntime {
 public:
  Plugin(const Operation& operation, float scale) : operation_(operation), scale_(scale) {
    for (const Tensor& tensor : operation_.outputs)
      if (tensor.aliases >= 0)
        metadata_ += std::string(metadata_.empty() ? "" : "; ") + tensor.name + " is " +
                     operation_.inputs[tensor.aliases].name;
    if (metadata_.empty()) metadata_ = "nothing in place";
    field_ = PluginField{"scale", &scale_, PluginFieldType::kFLOAT32, 1};
    fields_.nbFields = 1;
    fields_.fields = &field_;
  }
  Plugin(const Plugin& other) : Plugin(other.operation_, other.scale_) {}

  IPluginCapability* getCapabilityInterface(PluginCapabilityType type) noexcept override {
    switch (type) {
      case PluginCapabilityType::kBUILD: return static_cast<IPluginV3OneBuildV2*>(this);
      case PluginCapabilityType::kRUNTIME: return static_cast<IPluginV3OneRuntime*>(this);
      case PluginCapabilityType::kCORE: return static_cast<IPluginV3OneCore*>(this);
    }
    return nullptr;
  }
  IPluginV3* clone() noexcept override { return new Plugin(*this); }

  AsciiChar const* getPluginName() const noexcept override { return operation_.name; }
  AsciiChar const* getPluginVersion() const noexcept override { return kVersion; }
  AsciiChar const* getPluginNamespace() const noexcept override { return kNamespace; }

  int32_t getNbOutputs() const noexcept override { return static_cast<int32_t>(operation_.outputs.size()); }
  char const* getMetadataString() noexcept override { return metadata_.c_str(); }
  int32_t getAliasedInput(int32_t output) noexcept override { return operation_.outputs[output].aliases; }

  int32_t getOutputDataTypes(DataType* types, int32_t count, const DataType* given, int32_t) const noexcept override {
    for (int32_t i = 0; i < count; ++i) types[i] = given[0];
    return 0;
  }

  int32_t getOutputShapes(DimsExprs const* inputs, int32_t count, DimsExprs const*, int32_t, DimsExprs* outputs,
                          int32_t n_outputs, IExprBuilder&) noexcept override {
    if (count != static_cast<int32_t>(operation_.inputs.size())) {
      report(std::string(operation_.name) + ": the node has another number of inputs than this library; export again");
      return -1;
    }
    const IDimensionExpr* head_size = inputs[0].d[3];
    if (head_size->isConstant() && (head_size->getConstantValue() % 8 != 0 || head_size->getConstantValue() > 128)) {
      report(std::string(operation_.name) + ": " + reason(S2S_BAD_HEAD_SIZE) + "; build without plugins");
      return -1;
    }
    for (int32_t i = 0; i < n_outputs; ++i) outputs[i] = inputs[operation_.outputs[i].aliases < 0 ? 0 : operation_.outputs[i].aliases];
    return 0;
  }

  bool supportsFormatCombination(int32_t position, DynamicPluginTensorDesc const* tensors, int32_t n_inputs,
                                 int32_t) noexcept override {
    const PluginTensorDesc& given = tensors[position].desc;
    const Tensor& described = position < n_inputs ? operation_.inputs[position] : operation_.outputs[position - n_inputs];
    if (given.format != TensorFormat::kLINEAR) return false;
    if (described.is_int64) return given.type == DataType::kINT64;
    return element_of(given.type) >= 0 && given.type == tensors[0].desc.type;
  }

  int32_t configurePlugin(DynamicPluginTensorDesc const* inputs, int32_t, DynamicPluginTensorDesc const*,
                          int32_t) noexcept override {
    if (inputs[0].max.d[2] <= 16) return 0;
    report(std::string(operation_.name) + ": " + reason(S2S_BAD_BEAMS) + " somewhere in the profile; narrow it");
    return -1;
  }

  int32_t onShapeChange(PluginTensorDesc const*, int32_t, PluginTensorDesc const*, int32_t) noexcept override { return 0; }
  IPluginV3* attachToContext(IPluginResourceContext*) noexcept override { return clone(); }
  PluginFieldCollection const* getFieldsToSerialize() noexcept override { return &fields_; }

  int32_t enqueue(PluginTensorDesc const* given, PluginTensorDesc const*, void const* const* inputs, void* const* outputs,
                  void*, cudaStream_t stream) noexcept override {
    Call call{element_of(given[0].type), {}, inputs, outputs, scale_, stream};
    for (size_t i = 0; i < operation_.inputs.size(); ++i)
      call.shapes.emplace_back(given[i].dims.d, given[i].dims.d + given[i].dims.nbDims);
    const int status = operation_.launch(call);
    if (status != S2S_OK) report(std::string(operation_.name) + " was not launched: " + reason(status));
    return status;
  }

 private:
  const Operation& operation_;
  float scale_;
  std::string metadata_;
  PluginField field_{};
  PluginFieldCollection fields_{};
};

class Creator : public IPluginCreatorV3One {
 public:
  explicit Creator(const Operation& operation) : operation_(operation) {
    field_ = PluginField{"scale", nullptr, PluginFieldType::kFLOAT32, 1};
    fields_.nbFields = 1;
    fields_.fields = &field_;
  }

  IPluginV3* createPlugin(AsciiChar const* name, PluginFieldCollection const* fields, TensorRTPhase) noexcept override {
    for (int32_t i = 0; i < fields->nbFields; ++i)
      if (std::strcmp(fields->fields[i].name, "scale") == 0 && fields->fields[i].data != nullptr)
        return new Plugin(operation_, *static_cast<const float*>(fields->fields[i].data));
    report(std::string("node ") + name + " (" + operation_.name + ") lacks the attribute 'scale'; export again");
    return nullptr;
  }
  PluginFieldCollection const* getFieldNames() noexcept override { return &fields_; }
  AsciiChar const* getPluginName() const noexcept override { return operation_.name; }
  AsciiChar const* getPluginVersion() const noexcept override { return kVersion; }
  AsciiChar const* getPluginNamespace() const noexcept override { return kNamespace; }

 private:
  const Operation& operation_;
  PluginField field_{};
  PluginFieldCollection fields_{};
};

}  // namespace s2s

#define S2S_PLUGIN_API extern "C" __attribute__((visibility("default")))

S2S_PLUGIN_API void setLoggerFinder(nvinfer1::ILoggerFinder* finder) { s2s::logger_finder = finder; }

// What IPluginRegistry::loadLibrary asks for.
S2S_PLUGIN_API nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
  static std::vector<std::unique_ptr<s2s::Creator>> creators;
  static std::vector<nvinfer1::IPluginCreatorInterface*> pointers;
  if (creators.empty()) {
    for (const s2s::Operation& operation : s2s::operations()) {
      creators.push_back(std::make_unique<s2s::Creator>(operation));
      pointers.push_back(creators.back().get());
    }
  }
  count = static_cast<int32_t>(pointers.size());
  return pointers.data();
}
