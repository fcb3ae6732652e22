// The C interface of the search (search.h) and of the decode loop (loop.h).
//
// Functions that can fail return null or FAILED, and `s2s_search_error` says why, for the calling thread.
#include <algorithm>
#include <cstdlib>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>

#include "direct.h"
#include "loop.h"
#include "onnxruntime.h"
#include "open.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {
thread_local std::string message;
}

EXPORT const char* s2s_search_error() { return message.c_str(); }

// sizeof of what ctypes mirrors: S2SSettings, S2STensor, S2SBatch, S2SNode, S2SOpenBatch, DeviceRule.
EXPORT void s2s_search_sizes(int32_t* sizes) {
  const size_t found[] = {sizeof(S2SSettings), sizeof(S2STensor), sizeof(S2SBatch), sizeof(S2SNode),
                          sizeof(S2SOpenBatch), sizeof(DeviceRule)};
  for (int i = 0; i < 6; i++) sizes[i] = int32_t(found[i]);
}

EXPORT void* s2s_search_new(const S2SSettings* settings) {
  try {
    return new s2s::Search(*settings);
  } catch (const std::exception& error) {
    message = error.what();
    return nullptr;
  }
}

// The share of the batch that has to be settled before LEAVE is returned.
EXPORT void s2s_search_leave_at(void* search, double share) { static_cast<s2s::Search*>(search)->leave_at = share; }

EXPORT void s2s_search_delete(void* search) { delete static_cast<s2s::Search*>(search); }

// What the next step has to find out. Returns Q, or TOO_MANY; n_candidates: M. probe_ids: where the ids [B, K, Q] lie.
EXPORT int32_t s2s_search_ask(void* search, int32_t* n_candidates, const int64_t** probe_ids) {
  auto& found = *static_cast<s2s::Search*>(search);
  if (!found.ask()) return s2s::TOO_MANY;
  *n_candidates = found.query.n_candidates;
  *probe_ids = found.query.probe_ids.data();
  return found.query.n_probes;
}

// One token more. log_probs [B, K, V] of a search that reads the whole distribution, which it changes; tokens, parents [B, K] out: what the next step feeds, of the batch as it was.
EXPORT int32_t s2s_search_advance(void* search, const int64_t* candidate_ids, const float* candidate_log_probs,
                                  const float* log_normalizer, const float* probe_log_probs, float* log_probs,
                                  int32_t n_candidates, int32_t n_probes, int64_t* tokens, int64_t* parents) {
  auto& made = *static_cast<s2s::Search*>(search);
  try {
    const int status = made.advance(
        {candidate_ids, candidate_log_probs, log_normalizer, probe_log_probs, n_candidates, n_probes, log_probs});
    if (status == s2s::IMPRECISE) return status;
    std::copy(made.tokens.begin(), made.tokens.end(), tokens);
    std::copy(made.parents.begin(), made.parents.end(), parents);
    return status;
  } catch (const std::exception& error) {
    message = error.what();
    return s2s::FAILED;
  }
}

// The settled sources of the batch, after LEAVE or ENDED. Returns how many.
EXPORT int32_t s2s_search_settled(void* search, int32_t* out) {
  const auto& settled = static_cast<s2s::Search*>(search)->settled;
  std::copy(settled.begin(), settled.end(), out);
  return int32_t(settled.size());
}

EXPORT void s2s_search_leave(void* search, const int32_t* staying, int32_t n) {
  static_cast<s2s::Search*>(search)->leave(staying, n);
}

EXPORT int32_t s2s_search_output(void* search, int32_t source, int32_t place, int64_t* ids, float* log_probs,
                                 int32_t* rows, float* score) {
  return static_cast<s2s::Search*>(search)->output(source, place, ids, log_probs, rows, score);
}

EXPORT int32_t s2s_search_stable(void* search, int32_t source, int64_t* out) {
  return static_cast<s2s::Search*>(search)->stable(source, out);
}

// ONNX Runtime calls this when the library is registered with a session's options: that is how its interface is found.
EXPORT OrtStatus* RegisterCustomOps(OrtSessionOptions*, const OrtApiBase* base) {
  ort_session::api = base->GetApi(ort::VERSION);
  return nullptr;
}

EXPORT void* s2s_session_new(const void* model, uint64_t n_bytes, const char* operators, const char* weights_folder,
                             int32_t n_threads, int32_t spin, const S2STensor* shared, int32_t n_shared) {
  try {
    return new s2s::Session(model, n_bytes, operators, weights_folder, n_threads, spin != 0, shared, n_shared);
  } catch (const std::exception& error) {
    message = error.what();
    return nullptr;
  }
}

EXPORT void s2s_session_delete(void* session) { delete static_cast<s2s::Session*>(session); }

EXPORT void* s2s_step_new(void* session, const S2STensor* inputs, int32_t n_inputs, const S2STensor* caches,
                          int32_t n_caches, int32_t sources, int32_t rows) {
  try {
    return static_cast<s2s::Step*>(
        new s2s::SessionStep(*static_cast<s2s::Session*>(session), inputs, n_inputs, caches, n_caches, sources, rows));
  } catch (const std::exception& error) {
    message = error.what();
    return nullptr;
  }
}

// The same step over the tokens ids [n] only, ascending. It owns the step that is given, also where null is returned.
EXPORT void* s2s_step_listed(void* step, const int64_t* ids, int64_t n, int32_t rows) {
  std::unique_ptr<s2s::Step> given(static_cast<s2s::Step*>(step));
  try {
    return static_cast<s2s::Step*>(new s2s::ListedStep(std::move(given), ids, n, rows));
  } catch (const std::exception& error) {
    message = error.what();
    return nullptr;
  }
}

EXPORT void s2s_step_delete(void* step) { delete static_cast<s2s::Step*>(step); }

// A graph whose operators are called directly; direct.h.
EXPORT void* s2s_graph_new(const char* operators, const S2SNode* nodes, int32_t n_nodes, const S2STensor* weights,
                           int32_t n_weights, const char* kept) {
  try {
    return new direct::Graph(operators, nodes, n_nodes, weights, n_weights, kept);
  } catch (const std::exception& error) {
    message = error.what();
    return nullptr;
  }
}

EXPORT void s2s_graph_delete(void* graph) { delete static_cast<direct::Graph*>(graph); }

// Runs a graph once. What it gave is in the result until that is deleted.
EXPORT void* s2s_graph_run(void* graph, const S2STensor* inputs, int32_t n_inputs) {
  try {
    auto made = std::make_unique<direct::Run>(*static_cast<direct::Graph*>(graph));
    for (int32_t i = 0; i < n_inputs; i++)
      made->bind(inputs[i].name, inputs[i].data, inputs[i].type,
                 std::vector<int64_t>(inputs[i].shape, inputs[i].shape + inputs[i].n_dimensions));
    (*made)();
    return made.release();
  } catch (const std::exception& error) {
    message = error.what();
    return nullptr;
  } catch (...) {  // of a library with a C++ library of its own
    message = "an operator failed";
    return nullptr;
  }
}

// A tensor that a run gave: its name is the caller's. Returns false where there is none.
EXPORT int32_t s2s_run_output(void* run, S2STensor* tensor) {
  const direct::Value* found = static_cast<direct::Run*>(run)->value(tensor->name);
  if (!found) return 0;
  tensor->data = found->data;
  tensor->shape = found->dims.data();
  tensor->n_dimensions = int32_t(found->dims.size());
  tensor->type = found->type;
  return 1;
}

EXPORT void s2s_run_delete(void* run) { delete static_cast<direct::Run*>(run); }

// The step of a batch with a graph.
EXPORT void* s2s_direct_new(void* graph, const S2STensor* inputs, int32_t n_inputs, const S2STensor* caches,
                            int32_t n_caches, int32_t sources, int32_t rows) {
  try {
    return static_cast<s2s::Step*>(
        new s2s::DirectStep(*static_cast<direct::Graph*>(graph), inputs, n_inputs, caches, n_caches, sources, rows));
  } catch (const std::exception& error) {
    message = error.what();
    return nullptr;
  }
}

// One step for whoever searches elsewhere. probe_ids [B, K, Q]. Out: ids and log-probabilities [B, K, M], normalisers
// [B, K], log-probabilities of what was probed [B, K, Q]. Returns GOES_ON or FAILED.
EXPORT int32_t s2s_step_run(void* step, int32_t rows, int32_t n_candidates, int32_t n_probes, const int64_t* probe_ids,
                            int64_t* ids, float* log_probs, float* normalizer, float* probed) {
  try {
    const size_t R = size_t(rows), M = size_t(n_candidates), Q = size_t(n_probes);
    s2s::Query query;
    query.n_candidates = n_candidates;
    query.n_probes = n_probes;
    query.probe_ids.assign(probe_ids, probe_ids + R * Q);
    const s2s::Found found = static_cast<s2s::Step*>(step)->run(query);
    if (found.n_candidates != n_candidates) throw std::runtime_error("the step found fewer candidates than were asked for");
    std::copy_n(found.candidate_ids, R * M, ids);
    std::copy_n(found.candidate_log_probs, R * M, log_probs);
    std::copy_n(found.log_normalizer, R, normalizer);
    std::copy_n(found.probe_log_probs, R * Q, probed);
    return s2s::GOES_ON;
  } catch (const std::exception& error) {
    message = error.what();
    return s2s::FAILED;
  } catch (...) {
    message = "an operator failed";
    return s2s::FAILED;
  }
}

// What the next step feeds of a search: tokens, parents [B, K] out.
EXPORT void s2s_search_fed(void* search, int64_t* tokens, int64_t* parents) {
  const auto& made = *static_cast<s2s::Search*>(search);
  std::copy(made.tokens.begin(), made.tokens.end(), tokens);
  std::copy(made.parents.begin(), made.parents.end(), parents);
}

// Steps of an open batch for some searches; see open.h.
EXPORT int32_t s2s_open_run(void* step, S2SOpenBatch* batch, void* const* searches, int32_t n, int32_t most,
                            int32_t* statuses) {
  try {
    std::vector<s2s::Search*> all;
    for (int32_t i = 0; i < n; i++) all.push_back(static_cast<s2s::Search*>(searches[i]));
    return s2s::OpenSteps(*batch, all.data(), n).run(*static_cast<s2s::Step*>(step), most, statuses);
  } catch (const std::exception& error) {
    message = error.what();
    return s2s::FAILED;
  } catch (...) {
    message = "an operator failed";
    return s2s::FAILED;
  }
}

// At most n_steps tokens more: a `Status`.
EXPORT int32_t s2s_search_run(void* search, void* step, S2SBatch* batch, int32_t n_steps) {
  try {
    return s2s::run(*static_cast<s2s::Search*>(search), *static_cast<s2s::Step*>(step), *batch, n_steps);
  } catch (const std::exception& error) {
    message = error.what();
    return s2s::FAILED;
  } catch (...) {  // of a library with a C++ library of its own
    message = "an operator failed";
    return s2s::FAILED;
  }
}
