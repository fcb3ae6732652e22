"""An open batch of a recurrent decoder on ONNX Runtime. Its states are a few numbers a beam, so each step gathers those
of its sources. Letters: B sources of a step, P places, K beams, S source length."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...bundle import output_of
from ...errors import BackendError
from ..decoding.state import Ints, StepQuery, StepResult
from ._places import Places, SourceArrays


class RecurrentBatch:
    """See `decoding.joining.OpenBatch`. The arguments are those of `AttentionBatch`."""

    def __init__(
        self,
        open_session: Callable[[], Any],
        graph: Mapping[str, Any],
        n_beams: int,
        n_places: int,
        vocabulary_size: int,
        limit: int | None,
        failed: Callable[[str, Exception], BackendError],
    ) -> None:
        self.vocabulary_size = vocabulary_size
        self.n_beams = n_beams
        self._session = open_session()
        self._failed = failed
        self._limit = limit
        self._outputs = [entry["name"] for entry in graph["outputs"]]
        names = [entry["name"] for entry in graph["inputs"]]
        self._states = [name for name in names if output_of(name) in self._outputs]
        self._wants = [name for name in names if name.startswith("want_")]
        given = ("token", "parents", "n_candidates", "probe_ids", *self._states, *self._wants)
        fixed = [entry for entry in graph["inputs"] if entry["name"] not in given]
        self._fixed = [entry["name"] for entry in fixed]
        mask = {"name": "source_mask", "dtype": "int64", "shape": ["B", "S"]}  # says how long sources are
        self._sources = SourceArrays([mask, *(e for e in fixed if e["name"] != "source_mask")], n_places)
        self._places = Places(n_places)
        self._positions = np.zeros(n_places, dtype=np.int64)
        self._current: dict[str, NDArray[Any]] = {}  # states [P,K,...] by name
        self._gathered: tuple[bytes, dict[str, NDArray[Any]]] = (b"", {})

    @property
    def n_free(self) -> int:
        """Places that sources can still take."""
        return self._places.n_free

    def join(self, values: Mapping[str, NDArray[Any]]) -> Ints:
        """Take in sources. values: what the encoder and cross-KV-init graphs gave of them. Returns their places [B]."""
        n = len(values["source_mask"])
        places = self._places.take(n)
        self._sources.put(places, values)
        for name in self._states:  # the first states are one a source; every beam starts from them
            first = values[name]
            if name not in self._current:
                n_places = n + self._places.n_free
                self._current[name] = np.zeros((n_places, self.n_beams, *first.shape[1:]), dtype=first.dtype)
            self._current[name][places] = first[:, None]
        self._positions[places] = 0
        self._gathered = (b"", {})
        return places

    def leave(self, places: Ints) -> None:
        self._places.leave(places)

    def step(self, places: Ints, tokens: Ints, parents: Ints, query: StepQuery) -> StepResult:
        positions = self._positions[places]
        last = int(positions.max())
        if self._limit is not None and last >= self._limit:
            raise BackendError(f"the decoder has no position {last}: the model's limit is {self._limit} tokens")
        probes = query.probe_ids
        has_probes = probes is not None and probes.shape[2] > 0
        wanted = ["candidate_ids", "candidate_log_probs", "log_normalizer"]
        wanted += ["probe_log_probs"] if has_probes else []
        wanted += ["log_probs"] if query.dense else []
        wanted += ["attention"] if query.attention and "attention" in self._outputs else []
        feed: dict[str, Any] = {
            **self._of(places),
            **{name: self._current[name][places] for name in self._states},
            "token": np.ascontiguousarray(tokens, dtype=np.int64),
            "parents": np.where(positions[:, None] > 0, parents, 0),
            "n_candidates": np.array([query.n_candidates], dtype=np.int64),
            "probe_ids": probes if has_probes else np.zeros((len(places), self.n_beams, 1), dtype=np.int64),
        }
        feed |= {name: np.array(name.removeprefix("want_") in wanted) for name in self._wants}
        try:
            found = self._session.run([*wanted, *map(output_of, self._states)], feed)
        except Exception as error:
            raise self._failed("the decoder step", error) from error
        out = dict(zip(wanted, found, strict=False))
        for name, state in zip(self._states, found[len(wanted) :], strict=True):
            self._current[name][places] = state
        self._positions[places] += 1
        return StepResult(
            candidate_ids=out["candidate_ids"],
            candidate_log_probs=out["candidate_log_probs"],
            log_normalizer=out["log_normalizer"],
            probe_log_probs=out.get("probe_log_probs"),
            log_probs=out.get("log_probs"),
            attention=out.get("attention"),
        )

    def _of(self, places: Ints) -> dict[str, NDArray[Any]]:
        """What the encoder gave of these sources, gathered anew when they are others than in the step before."""
        key = places.tobytes()
        if self._gathered[0] != key:
            self._gathered = (key, {name: self._sources.arrays[name][places] for name in self._fixed})
        return self._gathered[1]
