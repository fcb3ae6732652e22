"""One batch of a recurrent decoder on ONNX Runtime: states [B,K,U] that follow their beams.

A step gathers its states by `parents`; they are small, so each step makes new ones and needs no binding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ...bundle import output_of
from ...errors import BackendError
from ..decoding.state import Ints, StepQuery, StepResult


class RecurrentState:
    """See `decoding.state.DecodeState`.

    step_for: the session for so many rows. values: what the encoder and cross-KV-init graphs gave, by name.
    """

    def __init__(
        self,
        step_for: Callable[[int], Any],
        graph: Any,
        values: dict[str, Any],
        n_beams: int,
        vocabulary: int,
        limit: int | None,
    ) -> None:
        self.vocabulary_size = vocabulary
        self.n_beams = n_beams
        self.n_sources = int(values["source_mask"].shape[0])
        self._step_for = step_for
        self._outputs = [entry["name"] for entry in graph["outputs"]]
        self._states = [e["name"] for e in graph["inputs"] if output_of(e["name"]) in self._outputs]
        names = [entry["name"] for entry in graph["inputs"]]
        self._wants = [name for name in names if name.startswith("want_")]
        self._fixed = {name: values[name] for name in names if name in values and name not in self._states}
        # The first states are one a source; every beam starts from them.
        self._current = {name: np.repeat(values[name][:, None], n_beams, axis=1) for name in self._states}
        self._step = 0
        self._limit = limit

    def step(self, tokens: Ints, parents: Ints, query: StepQuery) -> StepResult:
        if self._limit is not None and self._step >= self._limit:
            raise BackendError(f"the decoder has no position {self._step}: the model's limit is {self._limit} tokens")
        probes = query.probe_ids
        has_probes = probes is not None and probes.shape[2] > 0
        wanted = ["candidate_ids", "candidate_log_probs", "log_normalizer"]
        wanted += ["probe_log_probs"] if has_probes else []
        wanted += ["log_probs"] if query.dense else []
        wanted += ["attention"] if query.attention and "attention" in self._outputs else []
        feed = {
            **self._fixed,
            **self._current,
            "token": np.ascontiguousarray(tokens, dtype=np.int64),
            "parents": np.ascontiguousarray(parents if self._step else np.zeros_like(tokens), dtype=np.int64),
            "n_candidates": np.array([query.n_candidates], dtype=np.int64),
            "probe_ids": probes if has_probes else np.zeros((self.n_sources, self.n_beams, 1), dtype=np.int64),
        }
        feed |= {name: np.array(name.removeprefix("want_") in wanted) for name in self._wants}
        try:
            found = self._step_for(tokens.size).run([*wanted, *map(output_of, self._states)], feed)
        except Exception as error:
            message = str(error).strip().splitlines()[0][:300]
            raise BackendError(f"ONNX Runtime failed in the decoder step ({message})") from error
        out = dict(zip(wanted, found, strict=False))
        self._current = dict(zip(self._states, found[len(wanted) :], strict=True))
        self._step += 1
        return StepResult(
            candidate_ids=out["candidate_ids"],
            candidate_log_probs=out["candidate_log_probs"],
            log_normalizer=out["log_normalizer"],
            probe_log_probs=out.get("probe_log_probs"),
            log_probs=out.get("log_probs"),
            attention=out.get("attention"),
        )

    def keep(self, sources: Ints) -> None:
        self.n_sources = len(sources)
        self._fixed = {name: value[sources] for name, value in self._fixed.items()}
        self._current = {name: value[sources] for name, value in self._current.items()}
