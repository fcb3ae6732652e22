// The nodes that the library brings: their tensors, which outputs alias which inputs, and the launcher of each.
//
// The same facts as in each folder's operation.py, for deployments without Python.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "../../beam_self_attention/parameters.h"
#include "../../cross_attention/parameters.h"

extern "C" {
int s2s_beam_self_attention(int element, const BeamSelfAttentionParameters* given, void* stream);
int s2s_cross_attention(int element, const CrossAttentionParameters* given, void* stream);
}

namespace s2s {

using Shape = std::vector<int64_t>;

struct Tensor {
  const char* name;
  bool is_int64 = false;
  int aliases = -1;  // index of the input whose memory this output shares
};

struct Call {
  int element;  // S2S_FP32, S2S_FP16 or S2S_BF16
  std::vector<Shape> shapes;  // of the inputs
  const void* const* inputs;
  void* const* outputs;
  float scale;
  void* stream;
};

struct Operation {
  const char* name;
  std::vector<Tensor> inputs, outputs;
  int (*launch)(const Call& call);  // a status of launch.h
};

constexpr int kBadShape = -6;

inline int32_t narrow(int64_t size) { return static_cast<int32_t>(size); }

// query, key, value, key_cache, value_cache, mask (not read), ancestors, position[, bias]
inline int launch_self(const Call& call) {
  const Shape &query = call.shapes[0], &cache = call.shapes[3], &ancestors = call.shapes[6];
  const bool agree = call.shapes[1] == query && call.shapes[2] == query && call.shapes[4] == cache &&
                     cache == Shape{query[0], query[1], ancestors[2] * query[2], query[3]} &&
                     ancestors[0] == query[0] && ancestors[1] == query[2];
  if (!agree) return kBadShape;
  BeamSelfAttentionParameters given{};
  given.query = call.inputs[0];
  given.key = call.inputs[1];
  given.value = call.inputs[2];
  given.key_cache = call.outputs[1];
  given.value_cache = call.outputs[2];
  if (given.key_cache != call.inputs[3] || given.value_cache != call.inputs[4]) return S2S_BAD_POINTER;
  given.ancestors = static_cast<const int64_t*>(call.inputs[6]);
  given.position = static_cast<const int64_t*>(call.inputs[7]);
  given.bias = call.shapes.size() > 8 ? call.inputs[8] : nullptr;
  if (given.bias != nullptr && call.shapes[8] != Shape{1, query[1], 1, ancestors[2]}) return kBadShape;
  given.output = call.outputs[0];
  given.sources = narrow(query[0]);
  given.heads = narrow(query[1]);
  given.beams = narrow(query[2]);
  given.head_size = narrow(query[3]);
  given.capacity = narrow(ancestors[2]);
  given.scale = call.scale;
  return s2s_beam_self_attention(call.element, &given, call.stream);
}

// query, key, value, mask[, bias]
inline int launch_cross(const Call& call) {
  const Shape &query = call.shapes[0], &key = call.shapes[1];
  const bool agree = key == Shape{query[0], query[1], key[2], query[3]} && call.shapes[2] == key &&
                     call.shapes[3] == Shape{query[0], 1, 1, key[2]};
  if (!agree) return kBadShape;
  CrossAttentionParameters given{};
  given.query = call.inputs[0];
  given.key = call.inputs[1];
  given.value = call.inputs[2];
  given.mask = call.inputs[3];
  given.bias = call.shapes.size() > 4 ? call.inputs[4] : nullptr;
  if (given.bias != nullptr && call.shapes[4] != Shape{1, query[1], 1, key[2]}) return kBadShape;
  given.output = call.outputs[0];
  given.sources = narrow(query[0]);
  given.heads = narrow(query[1]);
  given.beams = narrow(query[2]);
  given.head_size = narrow(query[3]);
  given.length = narrow(key[2]);
  given.scale = call.scale;
  return s2s_cross_attention(call.element, &given, call.stream);
}

inline const std::vector<Operation>& operations() {
  static const std::vector<Tensor> self_inputs = {{"query"},       {"key"},  {"value"},           {"key_cache"},
                                                  {"value_cache"}, {"mask"}, {"ancestors", true}, {"position", true}};
  static const std::vector<Tensor> self_outputs = {
      {"output"}, {"key_cache_out", false, 3}, {"value_cache_out", false, 4}};
  static const std::vector<Tensor> cross_inputs = {{"query"}, {"key"}, {"value"}, {"mask"}};
  static const auto with_bias = [](std::vector<Tensor> tensors) {
    tensors.push_back({"bias"});
    return tensors;
  };
  static const std::vector<Operation> all = {
      {"BeamSelfAttention", self_inputs, self_outputs, launch_self},
      {"BeamSelfAttentionBias", with_bias(self_inputs), self_outputs, launch_self},
      {"CrossAttention", cross_inputs, {{"output"}}, launch_cross},
      {"CrossAttentionBias", with_bias(cross_inputs), {{"output"}}, launch_cross},
  };
  return all;
}

}  // namespace s2s
