// A bundle's engine for a CPU: its graphs as sessions of ONNX Runtime, and the batches that are decoded with them.
#pragma once

#include <dlfcn.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>
#include <memory>
#include <mutex>
#include <sstream>

#include "../search/loop.h"
#include "../search/onnxruntime.h"
#include "options.h"
#include "text.h"

#ifndef S2S_OPERATORS
#error "S2S_OPERATORS: the hashes of the operators whose engines run, see operators_hash.sh"
#endif

namespace s2s_library {

constexpr int64_t MOST_ELEMENTS = int64_t(1) << 34;  // of a tensor: what is more is no plausible engine

// Loads ONNX Runtime once a process.
inline void load_onnxruntime(const char* path) {
  static std::mutex loading;
  const std::lock_guard<std::mutex> lock(loading);
  if (ort_session::api) return;
  void* handle = nullptr;
  std::string why;
  for (const char* name : {path ? path : "libonnxruntime.so.1", path ? path : "libonnxruntime.so"}) {
    if ((handle = dlopen(name, RTLD_NOW | RTLD_LOCAL))) break;
    why = dlerror();
  }
  if (!handle) throw std::runtime_error("ONNX Runtime can't be loaded (" + why + "); give the path of libonnxruntime.so");
  using GetBase = const OrtApiBase* (*)();
  const auto base = reinterpret_cast<GetBase>(dlsym(handle, "OrtGetApiBase"));
  OrtApi* api = base ? base()->GetApi(ort::VERSION) : nullptr;
  if (!api) throw std::runtime_error("the library given as ONNX Runtime has no interface of version " +
                                     std::to_string(ort::VERSION) + "; give libonnxruntime.so of 1.24 or newer");
  ort_session::api = api;
}

inline std::string contents(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream all;
  if (!file || !(all << file.rdbuf())) throw std::runtime_error(path + " can't be read; copy the whole bundle");
  return all.str();
}

inline Json json_of(const std::string& path) {
  try {
    Json found = JsonReader::read(contents(path));
    if (found.kind != Json::OBJECT) throw std::runtime_error("no object");
    return found;
  } catch (const std::runtime_error& error) {
    throw std::runtime_error(path + ": " + error.what() + "; export or build the bundle again");
  }
}

// A message of another library's, which may have several lines, as part of one of ours.
inline std::string one_line(std::string text) {
  std::replace(text.begin(), text.end(), '\n', ' ');
  return text.substr(0, 1000);
}

// A part of a JSON file that has to be there. name: with dots between the levels.
inline const Json& part(const Json& all, const std::string& name, Json::Kind kind, const std::string& file) {
  const Json* at = &all;
  std::istringstream names(name);
  for (std::string one; at && std::getline(names, one, '.');) at = at->find(one);
  if (!at || at->kind != kind)
    throw std::runtime_error(file + " lacks '" + name + "' or has it in another form; export or build the bundle again");
  return *at;
}

struct Type {
  int type, bytes;  // ONNXTensorElementDataType
};
inline Type type_of(const std::string& name) {
  static const std::map<std::string, Type> types = {{"float32", {1, 4}}, {"int8", {3, 1}}, {"int32", {6, 4}},
                                                    {"int64", {7, 8}},   {"bool", {9, 1}}};
  const auto at = types.find(name);
  if (at == types.end()) throw std::runtime_error("the engine has a tensor of type '" + name + "', which this library does not know; build for cpu-fp32 or cpu-int8");
  return at->second;
}

// An input or output of a graph, as engine.json has it.
struct Entry {
  std::string name;
  Type type;
  std::vector<std::string> shape;  // numbers or letters
};

// Memory of a tensor, filled with zeros; pages that nobody writes take no memory.
struct Tensor {
  std::string name;
  Type type;
  std::vector<int64_t> shape;
  std::shared_ptr<void> data;

  Tensor(const Entry& entry, const std::map<std::string, int64_t>& letters) : name(entry.name), type(entry.type) {
    int64_t n = 1;
    for (const std::string& size : entry.shape) {
      const auto at = letters.find(size);
      const bool is_number = !size.empty() && size.size() < 10 && size.find_first_not_of("0123456789") == std::string::npos;
      if (at == letters.end() && !is_number)
        throw std::runtime_error("the engine's tensor '" + name + "' has the size '" + size + "', which this library does not know");
      shape.push_back(at == letters.end() ? std::stoll(size) : at->second);
      if (shape.back() && n > MOST_ELEMENTS / shape.back())
        throw std::runtime_error("the tensor '" + name + "' would be too large; decode fewer sources at a time");
      n *= shape.back();
    }
    data = std::shared_ptr<void>(calloc(size_t(std::max<int64_t>(n, 1)), size_t(type.bytes)), free);
    if (!data) throw std::runtime_error("there is not enough memory for this batch; decode fewer sources at a time");
  }
  S2STensor view() const { return {name.c_str(), data.get(), shape.data(), int32_t(shape.size()), type.type}; }
  int64_t* ints() const { return static_cast<int64_t*>(data.get()); }
  int64_t n() const {
    int64_t all = 1;
    for (int64_t size : shape) all *= size;
    return all;
  }
};

struct Graph {
  std::vector<Entry> inputs, outputs;
  double max_rows = INFINITY;
  std::unique_ptr<s2s::Session> session;
};

struct Output {
  std::vector<int64_t> ids;
  double score = 0;
  std::string text = "";
  bool has_text = false;
};

class Model {
 public:
  Model(const std::string& bundle, const std::string& target, const char* onnxruntime, int threads) {
    if (target.empty() || target.find('/') != std::string::npos || target[0] == '.')
      throw std::runtime_error("the target is '" + target + "'; expected a name such as cpu-int8");
    folder = bundle + "/engines/" + target + "/";
    const std::string manifest_file = bundle + "/manifest.json", engine_file = folder + "engine.json";
    const Json manifest = json_of(manifest_file), engine = json_of(engine_file);
    if (part(manifest, "source.kind", Json::STRING, manifest_file).text != "token_ids" ||
        part(manifest, "decoder", Json::STRING, manifest_file).text != "attention")
      throw std::runtime_error(bundle + " does not read token ids with an attention decoder, which is all that this library decodes");
    vocabulary = size_in(manifest, "sizes.vocabulary_size", manifest_file);
    source_vocabulary = vocabulary;
    const Json& sizes = part(manifest, "sizes", Json::OBJECT, manifest_file);
    if (sizes.find("source_vocabulary_size"))
      source_vocabulary = size_in(manifest, "sizes.source_vocabulary_size", manifest_file);
    limit = limit_in(manifest, "max_target_length", manifest_file);
    source_limit = limit_in(manifest, "max_source_length", manifest_file);
    const Json* fill = part(manifest, "source", Json::OBJECT, manifest_file).find("pad_token_id");
    padding = fill && fill->is_integer() && fill->number >= 0 && fill->number < source_vocabulary ? int64_t(fill->number) : 0;
    defaults = part(manifest, "generation", Json::OBJECT, manifest_file);
    if (const Json* entry = manifest.find("tokenizer")) tokenizer = *entry;
    text_folder = bundle + "/tokenizer/";
    if (part(engine, "flavour", Json::STRING, engine_file).text != "cpu" || !engine.find("operators") ||
        engine.find("operators")->kind != Json::OBJECT)
      throw std::runtime_error(folder + " has no operators of s2s for a CPU; run: s2s build BUNDLE --target cpu-fp32");
    const std::string sources = part(engine, "operators.sources", Json::STRING, engine_file).text;
    if (sources.size() != 20 || std::string(S2S_OPERATORS ",").find(sources + ",") == std::string::npos)
      throw std::runtime_error(folder + " was built for other operators than this library has; build the engine and the library of one version of s2s-export");
    load_onnxruntime(onnxruntime);
    open_graphs(engine, engine_file, bundle, threads);
  }
  ~Model() {
    graphs.clear();
    if (mapped) munmap(mapped, mapped_bytes);
  }
  Model(const Model&) = delete;

  std::vector<std::vector<Output>> generate(const int64_t* ids, const int32_t* lengths, int B, const Json& given) const {
    const Options options(defaults, given, vocabulary, limit);
    if (B < 1 || B > (1 << 16)) throw std::runtime_error("there are " + std::to_string(B) + " sources; expected 1 to 65536");
    const int longest = check(ids, lengths, B);
    std::map<std::string, int64_t> letters = {
        {"B", B}, {"P", B}, {"S", longest}, {"K", options.num_beams}, {"C", options.max_length}};
    std::map<std::string, Tensor> values = sources_of(ids, lengths, B, longest, letters);
    for (const char* name : {"encoder", "cross_kv_init"}) once(graphs.at(name), letters, values);
    const Graph& step_graph = step_for(double(B) * options.num_beams);
    const Graph& described = graphs.at("decoder_step");
    std::vector<S2STensor> inputs, caches;
    for (const Entry& entry : described.inputs) {
      if (entry.name == "n_candidates" || entry.name == "probe_ids") continue;
      auto at = values.find(entry.name);
      if (at == values.end()) at = values.emplace(entry.name, Tensor(entry, letters)).first;
      inputs.push_back(at->second.view());
      const bool is_key = entry.name.rfind("self_key.", 0) == 0;
      if (is_key || entry.name.rfind("self_value.", 0) == 0) {
        const std::string out = (is_key ? "self_key_out" : "self_value_out") + entry.name.substr(entry.name.find('.'));
        const auto found = std::find_if(described.outputs.begin(), described.outputs.end(), [&](const Entry& e) { return e.name == out; });
        if (found == described.outputs.end()) throw std::runtime_error("the decoder step does not give out '" + out + "'; build the engine again");
        caches.push_back(at->second.view());
        caches.back().name = found->name.c_str();
      }
    }
    if (const auto at = values.find("places"); at != values.end())
      for (int64_t i = 0; i < at->second.n(); i++) at->second.ints()[i] = i;
    const Tensor &token = values.at("token"), &position = values.at("position"), &ancestors = values.at("ancestors");
    for (int64_t i = 0; i < ancestors.n(); i++) ancestors.ints()[i] = i / options.max_length % options.num_beams;
    std::vector<int32_t> read;  // of the sources, by rules
    if (options.reads_sources) read = padded(ids, lengths, B, longest);
    const S2SSettings settings = options.settings(B, read);
    s2s::Search search(settings);
    s2s::SessionStep step(*step_graph.session, inputs.data(), int(inputs.size()), caches.data(), int(caches.size()), B, options.num_beams);
    S2SBatch batch{token.ints(), position.ints(), ancestors.ints(), nullptr, int32_t(position.n()), options.max_length,
                   limit ? limit : -1, 0, 0, 0};
    refuse(s2s::run(search, step, batch, INT32_MAX));
    return outputs_of(search, options, B);
  }

  // The tokenizer, which is opened at its first use.
  const Text& text() const {
    std::call_once(text_once, [this] {
      try {
        if (tokenizer.kind != Json::OBJECT) throw std::runtime_error("the bundle has no tokenizer; give token ids");
        opened_text = std::make_unique<Text>(tokenizer, [this](const std::string& name) {
          if (name.empty() || name.find('/') != std::string::npos || name[0] == '.')
            throw std::runtime_error("the tokenizer names a file outside of its folder; export the bundle again");
          return contents(text_folder + name);
        });
      } catch (const std::runtime_error& error) {
        why_no_text = error.what();
      }
    });
    if (!opened_text) throw std::runtime_error(why_no_text);
    return *opened_text;
  }

  std::vector<std::vector<Output>> translate(const char* const* texts, int n_texts, Json given, const std::string& source_lang,
                                             const std::string& target_lang) const {
    const Text& tokens = text();
    std::vector<int64_t> ids;
    std::vector<int32_t> lengths;
    for (int i = 0; i < n_texts; i++) {
      if (!texts[i]) throw std::runtime_error("text " + std::to_string(i) + " is NULL; expected a text");
      try {
        const Ids found = tokens.encode(texts[i], source_lang, target_lang);
        ids.insert(ids.end(), found.begin(), found.end());
        lengths.push_back(int32_t(found.size()));
      } catch (const std::runtime_error& error) {
        throw std::runtime_error("text " + std::to_string(i) + ": " + error.what());
      }
    }
    if (const auto [option, token] = tokens.chosen(target_lang); !option.empty() && !given.find(option)) {
      Json value;
      value.kind = Json::NUMBER;
      value.number = double(token);
      given.object[option] = value;
    }
    std::vector<std::vector<Output>> found = generate(ids.data(), lengths.data(), n_texts, given);
    for (auto& outputs : found)
      for (Output& output : outputs) {
        output.text = tokens.decode(output.ids);
        output.has_text = true;
      }
    return found;
  }

 private:
  std::string folder, text_folder;
  Json tokenizer;
  mutable std::once_flag text_once;
  mutable std::unique_ptr<Text> opened_text;
  mutable std::string why_no_text;
  int vocabulary, source_vocabulary, limit, source_limit;
  int64_t padding;
  Json defaults;
  std::map<std::string, Graph> graphs;
  void* mapped = nullptr;
  size_t mapped_bytes = 0;

  static int size_in(const Json& all, const std::string& name, const std::string& file) {
    const Json& found = part(all, name, Json::NUMBER, file);
    if (!found.is_integer() || found.number < 3 || found.number > 1e8)
      throw std::runtime_error(file + ": '" + name + "' is no plausible size; export the bundle again");
    return int(found.number);
  }
  static int limit_in(const Json& all, const std::string& name, const std::string& file) {
    const Json* found = part(all, "limits", Json::OBJECT, file).find(name);
    if (!found || found->kind == Json::NONE) return 0;
    return size_in(all, "limits." + name, file);
  }

  void open_graphs(const Json& engine, const std::string& file, const std::string& bundle, int threads) {
    const std::string weights = part(engine, "weights", Json::STRING, file).text == "engine" ? folder : bundle + "/";
    Dl_info self;
    if (!dladdr(reinterpret_cast<const void*>(&load_onnxruntime), &self) || !self.dli_fname)
      throw std::runtime_error("the library can't find its own file; link it as a shared library");
    for (const auto& [name, graph] : part(engine, "graphs", Json::OBJECT, file).object) {
      if (name != "encoder" && name != "cross_kv_init" && name.rfind("decoder_step", 0) != 0) continue;
      Graph made;
      made.inputs = entries(part(graph, "inputs", Json::LIST, file), file);
      made.outputs = entries(part(graph, "outputs", Json::LIST, file), file);
      if (const Json* most = graph.find("max_rows"); most && most->kind == Json::NUMBER) made.max_rows = most->number;
      const std::string where = part(graph, "file", Json::STRING, file).text;
      if (where.empty() || where.find('/') != std::string::npos || where[0] == '.')
        throw std::runtime_error(file + " names a graph outside of its folder; build the engine again");
      const std::string model = contents(folder + where);
      std::vector<std::vector<int64_t>> shapes;
      const std::vector<S2STensor> shared = shared_of(engine, name, weights + "weights.bin", file, shapes);
      try {
        made.session = std::make_unique<s2s::Session>(model.data(), model.size(), self.dli_fname, weights.c_str(), threads,
                                                      false, shared.data(), int(shared.size()));
      } catch (const std::runtime_error& error) {
        throw std::runtime_error("ONNX Runtime can't open " + folder + where + " (" + one_line(error.what()) + "); build the engine again");
      }
      for (const std::string& input : made.session->inputs())
        if (std::none_of(made.inputs.begin(), made.inputs.end(), [&](const Entry& e) { return e.name == input; }))
          throw std::runtime_error(file + " does not name the input '" + one_line(input) + "' of " + where + "; build the engine again");
      graphs.emplace(name, std::move(made));
    }
    require("encoder", {}, file);
    require("cross_kv_init", {}, file);
    require("decoder_step", {"token", "position", "ancestors", "n_candidates", "probe_ids"}, file);
    for (const Entry& entry : graphs.at("decoder_step").inputs)
      if (entry.name.rfind("self_", 0) == 0 && (entry.shape.empty() || entry.shape[0] != "C"))
        throw std::runtime_error(folder + " has caches of another form than this library keeps; run: s2s build BUNDLE --target cpu-fp32");
    const std::map<std::string, std::vector<std::string>> forms = {{"token", {"B", "K"}}, {"ancestors", {"B", "K", "C"}}};
    for (const Entry& entry : graphs.at("decoder_step").inputs) {
      const auto form = forms.find(entry.name);
      std::vector<std::string> shape = entry.shape;
      std::replace(shape.begin(), shape.end(), std::string("P"), std::string("B"));  // as many places as sources here
      const bool is_position = entry.name == "position" || entry.name == "places";
      if ((form != forms.end() && form->second != shape) || (is_position && entry.shape.size() != 1) ||
          ((is_position || form != forms.end()) && entry.type.type != ort::INT64))
        throw std::runtime_error(file + " has '" + entry.name + "' of another shape or type than expected; build the engine again");
    }
  }
  void require(const std::string& name, const std::vector<std::string>& inputs, const std::string& file) const {
    const auto at = graphs.find(name);
    if (at == graphs.end()) throw std::runtime_error(file + " has no graph '" + name + "'; build the engine again");
    for (const std::string& input : inputs)
      if (std::none_of(at->second.inputs.begin(), at->second.inputs.end(), [&](const Entry& e) { return e.name == input; }))
        throw std::runtime_error(file + ": the graph '" + name + "' has no input '" + input + "'; build the engine again");
  }
  static std::vector<Entry> entries(const Json& list, const std::string& file) {
    std::vector<Entry> found;
    for (const Json& one : list.list) {
      Entry entry{part(one, "name", Json::STRING, file).text, type_of(part(one, "dtype", Json::STRING, file).text), {}};
      for (const Json& size : part(one, "shape", Json::LIST, file).list)
        entry.shape.push_back(size.is_integer() && size.number >= 0 ? std::to_string(int64_t(size.number)) : size.text);
      found.push_back(std::move(entry));
    }
    return found;
  }

  // Weights that several graphs read, in the mapped file.
  std::vector<S2STensor> shared_of(const Json& engine, const std::string& graph, const std::string& path, const std::string& file,
                                   std::vector<std::vector<int64_t>>& shapes) {
    std::vector<S2STensor> found;
    const Json* all = engine.find("shared");
    const Json* of_graph = all ? all->find(graph) : nullptr;
    if (!of_graph) return found;
    shapes.reserve(of_graph->object.size());
    for (const auto& [name, at] : of_graph->object) {
      if (!mapped) map(path);
      const Type type = type_of(part(at, "dtype", Json::STRING, file).text);
      const Json& offset = part(at, "offset", Json::NUMBER, file);
      double bytes = type.bytes;
      std::vector<int64_t> shape;
      for (const Json& size : part(at, "shape", Json::LIST, file).list) {
        if (!size.is_integer() || size.number < 0) bytes = INFINITY;
        else shape.push_back(int64_t(size.number));
        bytes *= size.number;
      }
      if (!offset.is_integer() || offset.number < 0 || std::fmod(offset.number, type.bytes) != 0 ||
          !(offset.number + bytes <= double(mapped_bytes)))
        throw std::runtime_error(file + ": shared." + graph + "." + name + " is not in weights.bin; build the engine again");
      shapes.push_back(std::move(shape));
      found.push_back({name.c_str(), static_cast<char*>(mapped) + size_t(offset.number), shapes.back().data(),
                       int32_t(shapes.back().size()), type.type});
    }
    return found;
  }
  void map(const std::string& path) {
    const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    struct stat about;
    void* found = MAP_FAILED;
    if (file >= 0 && fstat(file, &about) == 0 && about.st_size > 0)
      found = mmap(nullptr, size_t(about.st_size), PROT_READ, MAP_PRIVATE, file, 0);
    if (file >= 0) close(file);
    if (found == MAP_FAILED) throw std::runtime_error(path + " can't be read; copy the whole bundle");
    mapped = found;
    mapped_bytes = size_t(about.st_size);
  }

  // Returns the longest source's length.
  int check(const int64_t* ids, const int32_t* lengths, int B) const {
    int longest = 0;
    for (int b = 0; b < B; b++) {
      const std::string which = "source " + std::to_string(b);
      if (lengths[b] < 1) throw std::runtime_error(which + " has no tokens; expected at least one id");
      if (!ids) throw std::runtime_error("ids is NULL; expected the token ids of all sources");
      if (source_limit && lengths[b] > source_limit)
        throw std::runtime_error(which + " has " + std::to_string(lengths[b]) + " tokens, but the model allows " + std::to_string(source_limit) + "; shorten it");
      for (int i = 0; i < lengths[b]; i++, ids++)
        if (*ids < 0 || *ids >= source_vocabulary)
          throw std::runtime_error(which + " has the id " + std::to_string(*ids) + "; expected ids from 0 to " + std::to_string(source_vocabulary - 1));
      longest = std::max(longest, int(lengths[b]));
    }
    return longest;
  }
  // [B, S], filled up with -1.
  static std::vector<int32_t> padded(const int64_t* ids, const int32_t* lengths, int B, int S) {
    std::vector<int32_t> all(size_t(B) * size_t(S), -1);
    for (int b = 0; b < B; ids += lengths[b++]) std::copy_n(ids, lengths[b], all.begin() + int64_t(b) * S);
    return all;
  }
  std::map<std::string, Tensor> sources_of(const int64_t* ids, const int32_t* lengths, int B, int S, const std::map<std::string, int64_t>& letters) const {
    std::map<std::string, Tensor> values;
    const Type type = type_of("int64");
    const Tensor& padded = values.emplace("input_ids", Tensor({"input_ids", type, {"B", "S"}}, letters)).first->second;
    const Tensor& mask = values.emplace("source_mask", Tensor({"source_mask", type, {"B", "S"}}, letters)).first->second;
    for (int b = 0; b < B; b++)
      for (int s = 0; s < S; s++) {
        padded.ints()[int64_t(b) * S + s] = s < lengths[b] ? *ids++ : padding;
        mask.ints()[int64_t(b) * S + s] = s < lengths[b];
      }
    return values;
  }
  // Runs a graph that runs once for each source; its outputs join `values`.
  static void once(const Graph& graph, const std::map<std::string, int64_t>& letters, std::map<std::string, Tensor>& values) {
    OrtIoBinding* made = nullptr;
    ort_session::call(ort_session::CREATE_IO_BINDING, graph.session->session, &made);
    const std::shared_ptr<OrtIoBinding> binding(made, [](OrtIoBinding* b) { ort_session::release(ort_session::RELEASE_IO_BINDING, b); });
    std::vector<std::shared_ptr<OrtValue>> kept;
    auto bind = [&](ort_session::Place how, const Tensor& tensor) {
      kept.emplace_back(s2s::value_of(tensor.view()), [](OrtValue* v) { ort_session::release(ort_session::RELEASE_VALUE, v); });
      ort_session::call(how, made, tensor.name.c_str(), static_cast<const OrtValue*>(kept.back().get()));
    };
    for (const Entry& entry : graph.inputs) {
      const auto at = values.find(entry.name);
      if (at == values.end()) throw std::runtime_error("the engine reads '" + entry.name + "', which this library does not give");
      bind(ort_session::BIND_INPUT, at->second);
    }
    for (const Entry& entry : graph.outputs) {
      values.erase(entry.name);
      bind(ort_session::BIND_OUTPUT, values.emplace(entry.name, Tensor(entry, letters)).first->second);
    }
    ort_session::call(ort_session::RUN_WITH_BINDING, graph.session->session, static_cast<const void*>(nullptr), static_cast<const OrtIoBinding*>(made));
  }
  const Graph& step_for(double n_rows) const {
    const Graph* found = nullptr;
    for (const auto& [name, graph] : graphs)
      if (name.rfind("decoder_step", 0) == 0 && n_rows <= graph.max_rows && (!found || graph.max_rows < found->max_rows)) found = &graph;
    if (!found) throw std::runtime_error("the engine has no decoder step for so many rows; decode fewer sources at a time");
    return *found;
  }
  static void refuse(s2s::Status status) {
    if (status == s2s::ENDED) return;
    if (status == s2s::NO_POSITION) throw std::runtime_error("the decoder has no position for another token; give a smaller max_length");
    if (status == s2s::IMPRECISE || status == s2s::TOO_MANY)
      throw std::runtime_error("these options take the whole distribution of a step, which this library does not read; leave out renormalize_logits, or use s2s");
    throw std::runtime_error("the search ended early; please report it");
  }
  static std::vector<std::vector<Output>> outputs_of(const s2s::Search& search, const Options& options, int B) {
    const size_t most = size_t(options.max_length) + 1;
    std::vector<int64_t> ids(most);
    std::vector<float> log_probs(most);
    std::vector<int32_t> rows(most);
    std::vector<std::vector<Output>> found{size_t(B)};
    for (int b = 0; b < B; b++)
      for (int k = 0; k < options.num_return_sequences; k++) {
        float score = 0;
        const int n = search.output(b, k, ids.data(), log_probs.data(), rows.data(), &score);
        Output output{options.prompt, score};
        if (n > 0) output.ids.insert(output.ids.end(), ids.begin(), ids.begin() + n);
        if (options.num_beams == 1 && n > 0) {
          output.score = 0;
          for (int t = 0; t < n; t++) output.score += double(log_probs[t]);
          output.score /= std::pow(double(n), options.length_penalty);
        }
        found[size_t(b)].push_back(std::move(output));
      }
    return found;
  }
};

}  // namespace s2s_library
