"""Runs the three graphs with ONNX Runtime on the CPU, whatever their element types, to measure and compare them.

Decoding is greedy with two beams: the first starts with the best token, the second with the second best, and they
change places now and then, so that ancestor tables and caches are tested. Slow and simple.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...bundle import GRAPHS, Bundle, output_of
from ...errors import BuildError
from ...runtime.decoding.ancestors import AncestorTable
from ...runtime.sources import MASK, Source, kind_of

N_BEAMS = 2
SWAP_EVERY = 5  # steps
BATCH = 8  # sources side by side
Observe = Callable[[str, str, Any], None]  # graph, value's name, array


@dataclass(frozen=True)
class Trace:
    """One batch that was decoded: the encoder's inputs by name, the tokens that were fed [T,B,K], the logits [T,B,K,V],
    and whether the text had not ended before [T,B,K]."""

    inputs: Any
    tokens: Any
    logits: Any
    is_open: Any


class Runner:
    """Sessions over three graph files.

    described: inputs and outputs by graph, as the manifest has them; N is not fixed. A graph may have more outputs.
    """

    def __init__(self, bundle: Bundle, paths: Mapping[str, Path], described: Mapping[str, Any]) -> None:
        self.bundle = bundle
        self.described = described
        self.sessions = {name: _session(paths[name]) for name in GRAPHS}

    def run(self, sources: Sequence[Source], n_steps: int, observe: Observe | None = None) -> list[Trace]:
        """Decode greedily, in batches."""
        limit = self.bundle.max_target_length
        n_steps = min(n_steps, limit) if limit else n_steps
        kind, traces = kind_of(self.bundle), []
        for start in range(0, len(sources), BATCH):
            inputs = kind.prepare(sources[start : start + BATCH])
            traces.append(self._decode(inputs, n_steps, None, observe))
        return traces

    def follow(self, traces: Sequence[Trace]) -> list[Trace]:
        """Decode again, fed the same tokens."""
        return [self._decode(t.inputs, len(t.tokens), t.tokens, None) for t in traces]

    def _decode(self, inputs: Mapping[str, Any], n_steps: int, tokens: Any, observe: Observe | None) -> Trace:
        values = dict(inputs)
        for name in ("encoder", "cross_kv_init"):
            values |= self._call(name, values, observe)
        n_sources, source_length = inputs[MASK].shape
        letters = {"B": n_sources, "K": N_BEAMS, "S": source_length, "M": 1, "Q": 1}
        letters |= {"C": n_steps, "N": n_steps * N_BEAMS}
        step = {entry["name"]: entry for entry in self.described["decoder_step"]["inputs"]}
        for name, entry in step.items():
            shape = [letters[size] if isinstance(size, str) else size for size in entry["shape"]]
            if name not in values:
                values[name] = np.zeros(shape, entry["dtype"])
            elif len(shape) > values[name].ndim:  # a recurrent decoder's first state: every beam starts from it
                values[name] = np.repeat(values[name][:, None], N_BEAMS, axis=1)
        values["n_candidates"] = np.ones(1, np.int64)
        table = AncestorTable(values["ancestors"]) if "ancestors" in values else None
        start = self.bundle.manifest["generation"].get("decoder_start_token_id") or 0
        fed = [np.full((n_sources, N_BEAMS), start, np.int64)]
        logits: list[Any] = []
        is_open: list[Any] = []
        ends = self._ends()
        for t in range(n_steps):
            if tokens is not None:
                fed[t:] = [tokens[t]]
            parents = np.tile(np.arange(N_BEAMS), (n_sources, 1))
            if t == 1:
                parents[:] = 0
            elif t and t % SWAP_EVERY == 0:
                parents = parents[:, ::-1].copy()
            values |= {"token": fed[t], "position": np.array([t], np.int64), "parents": parents}
            if table is not None:
                table.follow(parents)  # which changes the array in `values`
            out = self._call("decoder_step", values, observe)
            for name in step:
                if (updated := output_of(name)) in out:
                    values[name] = out[updated]
            logits.append(np.asarray(out["logits"], np.float32))
            before = np.take_along_axis(is_open[-1], parents, axis=1) if t else np.ones((n_sources, N_BEAMS), bool)
            is_open.append(before & ~(np.isin(fed[t], ends) if t else np.zeros_like(before)))
            fed.append(_next_tokens(logits[-1], first=t == 0))
        return Trace(inputs, np.stack(fed[:n_steps]), np.stack(logits), np.stack(is_open))

    def _ends(self) -> list[int]:
        """Tokens that end a text."""
        eos = self.bundle.manifest["generation"].get("eos_token_id")
        return eos if isinstance(eos, list) else [] if eos is None else [eos]

    def _call(self, graph: str, values: Mapping[str, Any], observe: Observe | None) -> dict[str, Any]:
        session = self.sessions[graph]
        names = [value.name for value in session.get_outputs()]
        feed = {value.name: values[value.name] for value in session.get_inputs()}
        found = dict(zip(names, session.run(names, feed), strict=True))
        if observe:
            for name, array in {**feed, **found}.items():
                observe(graph, name, array)
        return found


def _next_tokens(logits: Any, first: bool) -> Any:
    """The best token of each beam; at the first step the second beam takes the second best."""
    if not first:
        return logits.argmax(axis=-1)
    best = np.argsort(-logits[:, 0], axis=-1, kind="stable")
    return best[:, np.minimum(np.arange(N_BEAMS), best.shape[1] - 1)]


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 2
    # Q/DQ as it stands: this CPU's own int8 products may saturate where a GPU's do not.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"], enable_fallback=0)
    except Exception as error:
        reason = str(error).strip().splitlines()[0][:300]
        raise BuildError(
            f"{path.name}: ONNX Runtime can't load the lowered graph ({reason}); report this graph"
        ) from error
