// The C interface, s2s.h.
#include "s2s.h"

#include "model.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

struct S2SModel {
  s2s_library::Model model;
};
struct S2SResult {
  std::vector<std::vector<s2s_library::Output>> outputs;
};

namespace {
thread_local std::string message;

// What a function makes, or null and a message.
template <class Make>
auto guarded(Make make) -> decltype(make()) {
  try {
    message.clear();
    return make();
  } catch (const std::bad_alloc&) {
    message = "there is not enough memory; decode fewer sources at a time";
  } catch (const std::exception& error) {
    message = s2s_library::one_line(error.what());
  } catch (...) {
    message = "an operator failed";
  }
  return nullptr;
}
}  // namespace

EXPORT int32_t s2s_version(void) { return S2S_VERSION; }
EXPORT const char* s2s_last_error(void) { return message.c_str(); }

EXPORT S2SModel* s2s_open(const char* bundle, const char* target, const char* onnxruntime, int32_t threads) {
  return guarded([&]() -> S2SModel* {
    if (!bundle || !target) throw std::runtime_error("the bundle or the target is NULL; expected a folder and a name");
    if (threads < 1 || threads > 1024) throw std::runtime_error("threads is " + std::to_string(threads) + "; expected 1 to 1024");
    return new S2SModel{{bundle, target, onnxruntime, threads}};
  });
}
EXPORT void s2s_close(S2SModel* model) { delete model; }

namespace {
using s2s_library::Json;
Json object_of(const char* options) {
  Json given = s2s_library::JsonReader::read(options && *options ? options : "{}");
  if (given.kind != Json::OBJECT) throw std::runtime_error("the options are no JSON object; expected one, such as {\"num_beams\": 4}");
  return given;
}
// An option that is a text, taken out of the others.
std::string taken(Json& options, const char* name) {
  const auto at = options.object.find(name);
  if (at == options.object.end()) return "";
  const Json value = at->second;
  options.object.erase(at);
  if (value.kind != Json::STRING && value.kind != Json::NONE) throw std::runtime_error(std::string("the option ") + name + " is not as expected: a language's code");
  return value.text;
}
}  // namespace

EXPORT S2SResult* s2s_generate(S2SModel* model, const int64_t* ids, const int32_t* lengths, int32_t n_sources,
                               const char* options) {
  return guarded([&]() -> S2SResult* {
    if (!model || !lengths) throw std::runtime_error("the model or lengths is NULL; expected both");
    return new S2SResult{model->model.generate(ids, lengths, n_sources, object_of(options))};
  });
}

EXPORT S2SResult* s2s_translate(S2SModel* model, const char* const* texts, int32_t n_texts, const char* options) {
  return guarded([&]() -> S2SResult* {
    if (!model || !texts) throw std::runtime_error("the model or texts is NULL; expected both");
    Json given = object_of(options);
    const std::string source = taken(given, "source_lang"), target = taken(given, "target_lang");
    return new S2SResult{model->model.translate(texts, n_texts, given, source, target)};
  });
}
EXPORT S2SResult* s2s_encode(S2SModel* model, const char* text, const char* options) {
  return guarded([&]() -> S2SResult* {
    if (!model || !text) throw std::runtime_error("the model or text is NULL; expected both");
    Json given = object_of(options);
    const std::string source = taken(given, "source_lang"), target = taken(given, "target_lang");
    if (!given.object.empty()) throw std::runtime_error("s2s_encode does not have the option '" + given.object.begin()->first + "'; expected source_lang or target_lang");
    return new S2SResult{{{{model->model.text().encode(text, source, target), 0}}}};
  });
}
EXPORT S2SResult* s2s_decode(S2SModel* model, const int64_t* ids, int32_t n_ids) {
  return guarded([&]() -> S2SResult* {
    if (!model || (n_ids > 0 && !ids) || n_ids < 0) throw std::runtime_error("the model or ids is NULL; expected both");
    const std::vector<int64_t> all(ids, ids + n_ids);
    return new S2SResult{{{{all, 0, model->model.text().decode(all), true}}}};
  });
}
EXPORT const char* s2s_text(const S2SResult* result, int32_t source, int32_t output) {
  if (!result || source < 0 || size_t(source) >= result->outputs.size() || output < 0 || output >= s2s_n_outputs(result))
    return nullptr;
  const s2s_library::Output& found = result->outputs[size_t(source)][size_t(output)];
  return found.has_text ? found.text.c_str() : nullptr;
}
EXPORT void s2s_free(S2SResult* result) { delete result; }

EXPORT int32_t s2s_n_outputs(const S2SResult* result) {
  return result && !result->outputs.empty() ? int32_t(result->outputs[0].size()) : 0;
}

EXPORT const int64_t* s2s_output(const S2SResult* result, int32_t source, int32_t output, int32_t* length, double* score) {
  if (!result || source < 0 || size_t(source) >= result->outputs.size() || output < 0 || output >= s2s_n_outputs(result))
    return nullptr;
  const s2s_library::Output& found = result->outputs[size_t(source)][size_t(output)];
  if (length) *length = int32_t(found.ids.size());
  if (score) *score = found.score;
  return found.ids.data();
}
