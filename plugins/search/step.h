// What runs a decoder step for the loop: a session of ONNX Runtime (onnxruntime.h), or operators called directly (direct.h).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <vector>

#include "search.h"

extern "C" {
// A tensor of the caller's, which must outlive what it is given to. Mirrored by runtime/native_graphs/library.py.
typedef struct S2STensor {
  const char* name;
  void* data;
  const int64_t* shape;
  int32_t n_dimensions, type; /* type: ONNXTensorElementDataType */
} S2STensor;
}

namespace s2s {

class Step {
 public:
  virtual ~Step() = default;
  // Runs the step for a query. What it returns is valid until the next.
  virtual Found run(const Query& query) = 0;

  // For a step that may leave normalisers out, which costs less where they can be computed for many rows at a time.
  virtual bool can_leave() const { return false; }
  // What the last `run` left out, of all rows.
  virtual Found complete() { throw std::logic_error("this step leaves nothing out"); }
  // Keeps what the normalisers of these rows of the last `run` are computed from.
  virtual void keep(const std::vector<int32_t>&) {}
  // The normalisers of all that was kept, in order, as Search::settle takes them; nothing is kept any more.
  virtual const float* normalizers() { return nullptr; }
};

// A step whose graph gives out some of the tokens only, ids [W], ascending: a shortlist. To the graph a token is its place
// among them; any other has the log-probability minus infinity. As runtime/shortlist/state.py, ShortlistState.
class ListedStep : public Step {
 public:
  // rows: of the batch, R.
  ListedStep(std::unique_ptr<Step> step, const int64_t* ids, int64_t n, int rows)
      : step_(std::move(step)), ids_(ids, ids + n), R(size_t(rows)) {}

  Found run(const Query& query) override {
    inner_.n_candidates = int(std::min<int64_t>(query.n_candidates, int64_t(ids_.size())));
    inner_.n_probes = query.n_probes;
    inner_.probe_ids.resize(query.probe_ids.size());
    for (size_t i = 0; i < query.probe_ids.size(); i++) inner_.probe_ids[i] = std::max<int64_t>(0, place(query.probe_ids[i]));
    Found found = step_->run(inner_);
    const size_t M = size_t(query.n_candidates), some = size_t(found.n_candidates), Q = size_t(found.n_probes);
    candidates_.assign(R * M, 0);
    log_probs_.assign(R * M, -INFINITY);
    probed_.assign(found.probe_log_probs, found.probe_log_probs + R * Q);
    for (size_t r = 0; r < R; r++) {
      for (size_t i = 0; i < some; i++) candidates_[r * M + i] = ids_[size_t(found.candidate_ids[r * some + i])];
      std::copy_n(found.candidate_log_probs + r * some, some, log_probs_.begin() + int64_t(r * M));
      for (size_t q = 0; q < size_t(query.n_probes); q++)
        if (place(query.probe_ids[r * size_t(query.n_probes) + q]) < 0) probed_[r * Q + q] = -INFINITY;
    }
    found.candidate_ids = candidates_.data();
    found.candidate_log_probs = log_probs_.data();
    found.probe_log_probs = probed_.data();
    found.n_candidates = query.n_candidates;
    return found;
  }

 private:
  const std::unique_ptr<Step> step_;
  const std::vector<int64_t> ids_;
  const size_t R;
  Query inner_;
  std::vector<int64_t> candidates_;
  std::vector<float> log_probs_, probed_;

  // Of a token among those listed, or -1.
  int64_t place(int64_t token) const {
    const auto at = std::lower_bound(ids_.begin(), ids_.end(), token);
    return at != ids_.end() && *at == token ? at - ids_.begin() : -1;
  }
};

}  // namespace s2s
