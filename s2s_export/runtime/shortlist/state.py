"""Decoding with a shortlist: a batch's tokens, their rows of the output projection, and the mapping of ids.

Letters: W tokens in the batch's shortlist, V vocabulary, E width; B, K, M, Q as in decoding/state.py.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...bundle import Bundle, first_changed, inside
from ...engines import PORTABLE, folder_of, read
from ...errors import BackendError, BundleError, EngineError, InvalidOption
from ..backends._recurrent import RecurrentState
from ..backends.onnxruntime import OnnxRuntimeBackend, OnnxRuntimeState, open_session, run
from ..decoding import GenerationOptions, token_ids_of
from ..decoding.state import DecodeState, Floats, Ints, StepQuery, StepResult
from ..native_graphs import NativeGraph, NativeGraphs
from .lists import Lists

FOLDER = "shortlist"
RECORD = "shortlist.json"
LISTS = "lists.bin"
FORMAT = "s2s-shortlist"
FORMAT_VERSION = 1
MINUS_INFINITY = np.float32(-np.inf)
# The least number of tokens in a batch's shortlist, so that it has as many candidates as the search asks for.
FEWEST = 64
DTYPES = {"float": np.float32, "float16": np.float16, "bfloat16": np.uint16}
TOKEN_LISTS = ("suppress_tokens", "begin_suppress_tokens")  # token ids, though not named ..._id or ..._ids
WEIGHT, BIAS, IDS = "shortlist_weight", "shortlist_bias", "shortlist_ids"
PREFIX = "shortlist_"  # of the names of inputs that all sources of a batch share
ROWS = "shortlist_rows"  # the graph that reads rows of the weights of our own kernels


class Shortlist:
    """An open shortlist for one backend. Safe to use from several threads."""

    def __init__(self, backend: OnnxRuntimeBackend, record: Mapping[str, Any], folder: Path) -> None:
        bundle = backend.bundle
        self.record = record
        self._backend = backend
        target = record["targets"][target_of(backend)]
        self._steps = _Steps(backend, target["graphs"], folder)
        self._has_rows = "rows" in target
        if self._has_rows:
            self._steps.open_rows(target["rows"])
        sizes = bundle.manifest["sizes"]
        n_source = int(sizes.get("source_vocabulary_size", bundle.vocabulary_size))
        self.lists = Lists.read(folder / LISTS, n_source, bundle.vocabulary_size)
        self._is_shared = n_source == bundle.vocabulary_size
        self._fixed_ids = _ids_in(bundle.manifest["generation"])
        self._weight = _mapped(bundle, record["head"]["weight"])
        bias = record["head"]["bias"]
        self._bias = np.zeros(len(self._weight), np.float32) if bias is None else _mapped(bundle, bias).ravel()

    def ids_of(self, sources: Sequence[Sequence[int]], options: GenerationOptions) -> Ints:
        """The tokens that a batch may produce [W], ascending."""
        others = self._fixed_ids | token_ids_of(options)
        if self._is_shared:
            # Source tokens may be copied, as names are, and rules about the source refer to them.
            others |= {token for source in sources for token in source}
        n = self.lists.n_target
        ids = self.lists.union(sources, (token for token in others if 0 <= token < n))
        if len(ids) < min(FEWEST, n):
            rest = np.setdiff1d(np.arange(min(n, 2 * FEWEST)), ids)
            ids = np.union1d(ids, rest[: FEWEST - len(ids)])
        return ids

    def begin(self, sources: Sequence[Sequence[int]], options: GenerationOptions) -> DecodeState:
        """Like a backend's `begin`, with the output cut to the tokens that this batch may produce."""
        ids = self.ids_of(sources, options)
        values = self._backend.encode(sources)
        values |= self._rows_of(ids)
        values[BIAS] = np.ascontiguousarray(self._bias[ids], dtype=np.float32)
        return ShortlistState(self._steps.begin(values, options.n_rows, ids), ids, self.lists.n_target)

    def _rows_of(self, ids: Ints) -> dict[str, Any]:
        """The rows of the output projection, in the form that the step reads."""
        return self._steps.rows(ids) if self._has_rows else {WEIGHT: _as_float32(self._weight[ids])}


def open_shortlist(backend: Any) -> Shortlist:
    """The shortlist of a backend's bundle and target.

    Raises InvalidOption if the bundle has none or the backend can't use one, EngineError for a target that was built
    later, BundleError.
    """
    if not isinstance(backend, OnnxRuntimeBackend):
        raise InvalidOption(
            f"the backend {backend.name} decodes without a shortlist; leave --shortlist out or use onnxruntime"
        )
    bundle = backend.bundle
    if not backend.kind.has_ids:
        raise InvalidOption(
            f"{bundle.path}: a shortlist is looked up by the source's token ids, but the model reads "
            f"'{backend.kind.name}'; leave --shortlist out"
        )
    folder = bundle.path / FOLDER
    make = f"s2s shortlist {bundle.path}"
    if not (folder / RECORD).is_file():
        raise InvalidOption(f"{bundle.path}: has no shortlist; make one with `{make} --data PAIRS.tsv`")
    record = read_record(folder)
    target = target_of(backend)
    if target not in record["targets"]:
        raise EngineError(f"{folder}: the target '{target}' was built after the shortlist; run `{make}`")
    if record["targets"][target]["made_from"] != made_from(bundle, backend.graphs, target):
        raise EngineError(f"{folder}: was made for another build of the target '{target}'; run `{make}`")
    for name, entry in record["files"].items():
        path = inside(folder, name)
        if not path.is_file() or path.stat().st_size != entry["bytes"]:
            raise BundleError(f"{path}: is missing or has another size than {entry['bytes']}; run `{make}` again")
    if bundle.verify and (name := first_changed(folder, record["files"])) is not None:
        raise BundleError(f"{folder / name}: is not what was made, the file is damaged; run `{make}` again")
    backend.release_steps()  # The weights of the decoder would be in memory twice.
    return Shortlist(backend, record, folder)


def read_record(folder: Path) -> dict[str, Any]:
    try:
        record = json.loads((folder / RECORD).read_bytes())
    except (OSError, ValueError) as error:
        raise BundleError(f"{folder / RECORD}: not readable as JSON ({error}); make the shortlist again") from error
    if record.get("format") != FORMAT or record.get("format_version", 0) > FORMAT_VERSION:
        raise BundleError(
            f"{folder / RECORD}: format {record.get('format')} {record.get('format_version')}, but this version reads "
            f"{FORMAT} up to {FORMAT_VERSION}; upgrade s2s-export or make the shortlist again"
        )
    return dict(record)


def target_of(backend: OnnxRuntimeBackend) -> str:
    return getattr(backend, "target", None) or PORTABLE


def made_from(bundle: Bundle, graphs: Mapping[str, Any], target: str) -> list[str]:
    """The sha256 of all decoder steps of a target."""
    files: Mapping[str, Any] = bundle.manifest["files"]
    if target != PORTABLE:
        files = read(folder_of(bundle, target))["files"]
    return [files[graphs[name]["file"]]["sha256"] for name in step_names(graphs)]


def step_names(graphs: Mapping[str, Any]) -> list[str]:
    return sorted(name for name in graphs if name.startswith("decoder_step"))


class _Steps:
    """In place of a decode state's backend: the rewritten steps, opened when they are first needed."""

    has_prefill = False

    def __init__(self, backend: OnnxRuntimeBackend, graphs: Mapping[str, Any], folder: Path) -> None:
        self.bundle = backend.bundle
        self.graphs = graphs
        self._backend = backend
        self.operators = backend.operators
        self.weights, self.threads, self.spin = backend.weights, backend.threads, backend.spin
        self.shared = {name: backend.shared.get("decoder_step") for name in (*graphs, ROWS)}
        self.natives = NativeGraphs(backend.operators, backend.weights, backend.threads)
        self._folder = folder
        self._sessions: dict[str, Any] = {}
        self._names = sorted(step_names(graphs), key=self._max_rows)

    def begin(self, values: dict[str, Any], n_beams: int, ids: Ints) -> DecodeState:
        if self.bundle.manifest["decoder"] == "recurrent":
            graph = self.graphs["decoder_step"]
            limit = self.bundle.max_target_length
            return _RecurrentState(self.step_for, graph, values, n_beams, len(ids), limit)
        return _AttentionState(self, values, n_beams, ids)

    def step_for(self, n_rows: int) -> Any:
        name = self.step_name(n_rows)
        if name not in self._sessions:
            # If two threads open it at the same time, one session is kept and the other dropped.
            self._sessions[name] = self.open(self.graphs[name]["file"])
        return self._sessions[name]

    def open(self, file: str) -> Any:
        path, shared = inside(self._folder, file), self.shared["decoder_step"]
        return open_session(path, self.weights, self.threads, operators=self.operators, shared=shared, spin=self.spin)

    def step_name(self, n_rows: int) -> str:
        """The graph of the decoder step for so many rows."""
        return next(name for name in self._names if n_rows <= self._max_rows(name))

    def file_of(self, name: str) -> Path:
        """Where a graph lies."""
        return inside(self._folder, self.graphs[name]["file"])

    def native(self, name: str) -> NativeGraph | None:
        """See `OnnxRuntimeBackend.native`."""
        return self.natives.get(name, self.file_of(name), self.graphs[name], self.shared[name])

    def open_rows(self, file: str) -> None:
        """Open the graph that reads rows of the weights of our own kernels."""
        inputs = (entry["name"] for entry in self.graphs["decoder_step"]["inputs"])
        self._row_names = [name for name in inputs if name.startswith(PREFIX) and name != BIAS]
        described = {
            "inputs": [{"name": IDS, "dtype": "int64"}], "outputs": [{"name": name} for name in self._row_names]
        }  # fmt: skip
        self._rows = self.natives.get(ROWS, self._folder / file, described, self.shared[ROWS])
        if self._rows is None:
            self._sessions[ROWS] = self.open(file)

    def rows(self, ids: Ints) -> dict[str, Any]:
        """The rows of the output projection of these tokens, in the form that the step reads."""
        feed = {IDS: np.asarray(ids, dtype=np.int64)}
        try:
            found = self._rows.run(self._row_names, feed) if self._rows else None
        except RuntimeError as error:
            raise BackendError(f"the shortlist's rows can't be read ({error}); make the shortlist again") from error
        if found is None:
            found = run(self._sessions[ROWS], self._row_names, feed)
        return dict(zip(self._row_names, found, strict=True))

    def _max_rows(self, name: str) -> float:
        return float(self.graphs[name].get("max_rows", float("inf")))


class _AttentionState(OnnxRuntimeState):
    def __init__(self, steps: Any, values: dict[str, Any], n_beams: int, ids: Ints) -> None:
        super().__init__(steps, values, n_beams)
        self.vocabulary_size = self._letters["W"] = len(ids)
        self.listed = ids

    def keep(self, sources: Ints) -> None:
        shared = {name: self._fixed.pop(name) for name in list(self._fixed) if name.startswith(PREFIX)}
        super().keep(sources)
        self._fixed |= shared


class _RecurrentState(RecurrentState):
    def keep(self, sources: Ints) -> None:
        shared = {name: self._fixed.pop(name) for name in list(self._fixed) if name.startswith(PREFIX)}
        super().keep(sources)
        self._fixed |= shared


class ShortlistState:
    """A decode state over V tokens that wraps one over the W tokens `ids`, which are ascending: `inner`.

    Any other token has the log-probability minus infinity.
    """

    def __init__(self, state: DecodeState, ids: Ints, vocabulary_size: int) -> None:
        self.vocabulary_size = vocabulary_size
        self.inner = state
        self._ids = ids
        self._places = np.full(vocabulary_size, -1, dtype=np.int64)
        self._places[ids] = np.arange(len(ids))

    @property
    def n_sources(self) -> int:
        return self.inner.n_sources

    @property
    def n_beams(self) -> int:
        return self.inner.n_beams

    def step(self, tokens: Ints, parents: Ints, query: StepQuery) -> StepResult:
        places = None if query.probe_ids is None else self._places[query.probe_ids]
        inner = dataclasses.replace(
            query,
            n_candidates=min(query.n_candidates, len(self._ids)),
            probe_ids=None if places is None else np.maximum(places, 0),
        )
        found = self.inner.step(tokens, parents, inner)
        probed = found.probe_log_probs
        if probed is not None and places is not None:
            probed = np.where(places >= 0, probed, MINUS_INFINITY)
        missing = query.n_candidates - inner.n_candidates
        return dataclasses.replace(
            found,
            candidate_ids=_filled(self._ids[found.candidate_ids], missing, 0),
            candidate_log_probs=_filled(found.candidate_log_probs, missing, MINUS_INFINITY),
            probe_log_probs=probed,
            log_probs=None if found.log_probs is None else self._dense(found.log_probs),
        )

    def keep(self, sources: Ints) -> None:
        self.inner.keep(sources)

    def _dense(self, log_probs: Floats) -> Floats:
        """[B,K,W] -> [B,K,V]"""
        out = np.full((*log_probs.shape[:2], self.vocabulary_size), MINUS_INFINITY, dtype=np.float32)
        out[:, :, self._ids] = log_probs
        return out


def _filled(values: Any, n: int, value: Any) -> Any:
    """values [B,K,M], with n times `value` at the end of each row."""
    return values if n <= 0 else np.pad(values, ((0, 0), (0, 0), (0, n)), constant_values=value)


def _ids_in(options: Mapping[str, Any]) -> set[int]:
    """All token ids that options name, also inside lists."""
    found: set[int] = set()
    for name, value in options.items():
        if name.endswith(("_id", "_ids")) or name in TOKEN_LISTS:
            found |= _whole_numbers(value)
        elif name == "sequence_bias" and value:
            found |= _whole_numbers([word for word, _ in (value.items() if isinstance(value, dict) else value)])
    return found


def _whole_numbers(value: Any) -> set[int]:
    if isinstance(value, int) and not isinstance(value, bool):
        return {value}
    if isinstance(value, (list, tuple)):
        return {number for part in value for number in _whole_numbers(part)}
    return set()


def _mapped(bundle: Bundle, place: Mapping[str, Any]) -> Any:
    """A tensor of a weight file, memory-mapped."""
    path = inside(bundle.path, place["file"])
    return np.memmap(path, DTYPES[place["dtype"]], "r", int(place["offset"]), tuple(place["shape"]))


def _as_float32(rows: Any) -> Floats:
    if rows.dtype == np.uint16:  # bfloat16: the upper half of a float32
        wide: Floats = (rows.astype(np.uint32) << 16).view(np.float32)
        return wide
    return np.ascontiguousarray(rows, dtype=np.float32)
