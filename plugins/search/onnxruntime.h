// A decoder step that ONNX Runtime runs, called through its C interface: the part of its function table that a session and
// its bindings need, since its wheels contain no headers. Positions in the table never change (functions are only added at
// its end); plugins/cpu/ort_abi.h has those that operators need.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "../cpu/ort_abi.h"
#include "step.h"

extern "C" {
struct OrtEnv;
struct OrtSession;
struct OrtMemoryInfo;
struct OrtIoBinding;
}

namespace ort_session {

constexpr int DEVICE_ALLOCATOR = 0, DEFAULT_MEMORY = 0;  // OrtAllocatorType, OrtMemType

enum Place : int {
  GET_ERROR_MESSAGE = 2,
  CREATE_ENV = 3,
  CREATE_SESSION_FROM_ARRAY = 8,
  CREATE_SESSION_OPTIONS = 10,
  SET_LOG_SEVERITY = 22,
  SET_INTRA_OP_THREADS = 24,
  SET_INTER_OP_THREADS = 25,
  REGISTER_CUSTOM_OPS_LIBRARY = 29,
  SESSION_INPUT_COUNT = 30,
  SESSION_INPUT_NAME = 36,
  CREATE_TENSOR_WITH_DATA = 49,
  CREATE_CPU_MEMORY_INFO = 69,
  ALLOCATOR_FREE = 76,
  DEFAULT_ALLOCATOR = 78,
  RELEASE_STATUS = 93,
  RELEASE_SESSION = 95,
  RELEASE_VALUE = 96,
  RELEASE_SESSION_OPTIONS = 100,
  ADD_SESSION_CONFIG_ENTRY = 130,
  RUN_WITH_BINDING = 133,
  CREATE_IO_BINDING = 134,
  RELEASE_IO_BINDING = 135,
  BIND_INPUT = 136,
  BIND_OUTPUT = 137,
  ADD_INITIALIZER = 150,
};

inline OrtApi* api = nullptr;  // set by RegisterCustomOps, exports.cpp

template <typename... Arguments>
void release(Place place, Arguments... arguments) {
  reinterpret_cast<void (*)(Arguments...)>(api[place])(arguments...);
}

// Calls a function of the table; throws what ONNX Runtime says went wrong.
template <typename... Arguments>
void call(Place place, Arguments... arguments) {
  OrtStatus* status = reinterpret_cast<OrtStatus* (*)(Arguments...)>(api[place])(arguments...);
  if (status == nullptr) return;
  const std::string message = reinterpret_cast<const char* (*)(OrtStatus*)>(api[GET_ERROR_MESSAGE])(status);
  release(RELEASE_STATUS, status);
  throw std::runtime_error(message);
}

// A tensor in memory that belongs to somebody else.
inline OrtValue* value_of(void* data, int type, const std::vector<int64_t>& shape) {
  static OrtMemoryInfo* memory = [] {
    OrtMemoryInfo* made = nullptr;
    call(CREATE_CPU_MEMORY_INFO, int(DEVICE_ALLOCATOR), int(DEFAULT_MEMORY), &made);
    return made;
  }();
  size_t bytes = type == 1 || type == 6 ? 4 : type == 7 ? 8 : type == 9 || type == 3 ? 1 : 2;  // ONNXTensorElementDataType
  for (int64_t n : shape) bytes *= size_t(n);
  OrtValue* made = nullptr;
  call(CREATE_TENSOR_WITH_DATA, static_cast<const OrtMemoryInfo*>(memory), data, bytes, shape.data(), shape.size(),
       int(type), &made);
  return made;
}

}  // namespace ort_session

namespace s2s {

inline OrtValue* value_of(const S2STensor& t) {
  return ort_session::value_of(t.data, t.type, std::vector<int64_t>(t.shape, t.shape + t.n_dimensions));
}

// A session of a decoder step. Safe to use from several threads.
class Session {
 public:
  Session(const void* model, size_t n_bytes, const char* operators, const char* weights_folder, int n_threads, bool spin,
          const S2STensor* shared, int n_shared) {
    static OrtEnv* env = [] {
      OrtEnv* made = nullptr;
      ort_session::call(ort_session::CREATE_ENV, int(4), "s2s", &made);  // 4: log what ends the process; other errors are returned
      return made;
    }();
    OrtSessionOptions* options = nullptr;
    ort_session::call(ort_session::CREATE_SESSION_OPTIONS, &options);
    try {
      ort_session::call(ort_session::SET_LOG_SEVERITY, options, int(4));
      ort_session::call(ort_session::SET_INTRA_OP_THREADS, options, int(n_threads));
      ort_session::call(ort_session::SET_INTER_OP_THREADS, options, int(1));
      set(options, "session.intra_op.allow_spinning", spin ? "1" : "0");
      set(options, "session.model_external_initializers_file_folder_path", weights_folder);
      void* handle = nullptr;
      if (operators) ort_session::call(ort_session::REGISTER_CUSTOM_OPS_LIBRARY, options, operators, &handle);
      for (int i = 0; i < n_shared; i++) {
        values.push_back(value_of(shared[i]));
        ort_session::call(ort_session::ADD_INITIALIZER, options, shared[i].name, static_cast<const OrtValue*>(values.back()));
      }
      ort_session::call(ort_session::CREATE_SESSION_FROM_ARRAY, static_cast<const OrtEnv*>(env), model, n_bytes,
                static_cast<const OrtSessionOptions*>(options), &session);
    } catch (...) {
      ort_session::release(ort_session::RELEASE_SESSION_OPTIONS, options);
      for (OrtValue* value : values) ort_session::release(ort_session::RELEASE_VALUE, value);
      throw;
    }
    ort_session::release(ort_session::RELEASE_SESSION_OPTIONS, options);
  }
  ~Session() {
    ort_session::release(ort_session::RELEASE_SESSION, session);
    for (OrtValue* value : values) ort_session::release(ort_session::RELEASE_VALUE, value);
  }
  Session(const Session&) = delete;

  // What the graph reads. Whoever binds less than that makes ONNX Runtime hand its nodes nothing.
  std::vector<std::string> inputs() const {
    void* allocator = nullptr;  // ONNX Runtime's own, which is never released
    ort_session::call(ort_session::DEFAULT_ALLOCATOR, &allocator);
    size_t n = 0;
    ort_session::call(ort_session::SESSION_INPUT_COUNT, static_cast<const OrtSession*>(session), &n);
    std::vector<std::string> found;
    for (size_t i = 0; i < n; i++) {
      char* name = nullptr;
      ort_session::call(ort_session::SESSION_INPUT_NAME, static_cast<const OrtSession*>(session), i, allocator, &name);
      found.emplace_back(name);
      ort_session::call(ort_session::ALLOCATOR_FREE, allocator, static_cast<void*>(name));
    }
    return found;
  }

  OrtSession* session = nullptr;

 private:
  std::vector<OrtValue*> values;
  static void set(OrtSessionOptions* options, const char* key, const char* value) {
    ort_session::call(ort_session::ADD_SESSION_CONFIG_ENTRY, options, key, value);
  }
};

// The step of one batch: a session with everything bound, until the batch changes its size or its caches move.
class SessionStep : public Step {
 public:
  // inputs: all but n_candidates and probe_ids. caches: outputs that are written over the inputs of the same memory.
  SessionStep(const Session& session, const S2STensor* inputs, int n_inputs, const S2STensor* caches, int n_caches, int B, int K)
      : session(session), B(B), K(K) {
    for (int i = 0; i < n_inputs; i++) bound.push_back({inputs[i].name, keep(value_of(inputs[i]))});
    for (int i = 0; i < n_caches; i++) written.push_back({caches[i].name, keep(value_of(caches[i]))});
    log_normalizer.resize(size_t(B) * K);
  }
  ~SessionStep() override {
    for (auto& [key, asked] : made) ort_session::release(ort_session::RELEASE_IO_BINDING, asked->binding);
    for (OrtValue* value : values) ort_session::release(ort_session::RELEASE_VALUE, value);
  }
  SessionStep(const SessionStep&) = delete;

  Found run(const Query& query) override {
    Asked& asked = bind(query);
    if (query.n_probes && (query.changed || last != &asked))
      std::copy(query.probe_ids.begin(), query.probe_ids.end(), asked.probe_ids.begin());
    last = &asked;
    ort_session::call(ort_session::RUN_WITH_BINDING, session.session, static_cast<const void*>(nullptr),
              static_cast<const OrtIoBinding*>(asked.binding));
    return Found{asked.ids.data(),   asked.log_probs.data(), log_normalizer.data(),
                 asked.probed.data(), query.n_candidates,     max(1, query.n_probes),
                 query.whole ? asked.whole.data() : nullptr};
  }

 private:
  // What is bound for one kind of query.
  struct Asked {
    OrtIoBinding* binding = nullptr;
    std::vector<int64_t> n_candidates, probe_ids, ids;
    std::vector<float> log_probs, probed, whole;
    bool wants_whole = false;
  };
  static constexpr const char* WANTED = "want_log_probs";
  const Session& session;
  const int B, K;
  std::vector<std::pair<std::string, OrtValue*>> bound, written;
  std::vector<OrtValue*> values;
  std::vector<float> log_normalizer;
  std::map<std::tuple<int, int, bool>, std::unique_ptr<Asked>> made;
  Asked* last = nullptr;

  OrtValue* keep(OrtValue* value) {
    values.push_back(value);
    return value;
  }

  Asked& bind(const Query& query) {
    std::unique_ptr<Asked>& place = made[{query.n_candidates, query.n_probes, query.whole}];
    if (place) return *place;
    const int M = query.n_candidates, Q = max(1, query.n_probes);
    const size_t R = size_t(B) * K;
    auto asked = std::make_unique<Asked>();
    asked->n_candidates = {M};
    asked->probe_ids.assign(R * Q, 0);
    asked->ids.resize(R * M);
    asked->log_probs.resize(R * M);
    asked->probed.resize(R * Q);
    ort_session::call(ort_session::CREATE_IO_BINDING, session.session, &asked->binding);
    asked->wants_whole = query.whole;
    for (auto& [name, value] : bound) {
      const bool is_ours = query.whole && name == WANTED;
      in(*asked, name.c_str(), is_ours ? keep(ort_session::value_of(&asked->wants_whole, ort::BOOL, {})) : value);
    }
    in(*asked, "n_candidates", keep(ort_session::value_of(asked->n_candidates.data(), 7, {1})));
    in(*asked, "probe_ids", keep(ort_session::value_of(asked->probe_ids.data(), 7, {B, K, Q})));
    out(*asked, "candidate_ids", keep(ort_session::value_of(asked->ids.data(), 7, {B, K, M})));
    out(*asked, "candidate_log_probs", keep(ort_session::value_of(asked->log_probs.data(), 1, {B, K, M})));
    out(*asked, "log_normalizer", keep(ort_session::value_of(log_normalizer.data(), 1, {B, K})));
    out(*asked, "probe_log_probs", keep(ort_session::value_of(asked->probed.data(), 1, {B, K, Q})));
    if (query.whole) {
      asked->whole.resize(R * size_t(query.vocabulary));
      out(*asked, "log_probs", keep(ort_session::value_of(asked->whole.data(), ort::FLOAT, {B, K, query.vocabulary})));
    }
    for (auto& [name, value] : written) out(*asked, name.c_str(), value);
    place = std::move(asked);
    return *place;
  }

  static void in(Asked& asked, const char* name, OrtValue* value) {
    ort_session::call(ort_session::BIND_INPUT, asked.binding, name, static_cast<const OrtValue*>(value));
  }
  static void out(Asked& asked, const char* name, OrtValue* value) {
    ort_session::call(ort_session::BIND_OUTPUT, asked.binding, name, static_cast<const OrtValue*>(value));
  }
};

}  // namespace s2s
