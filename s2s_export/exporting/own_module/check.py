"""Whether a module's graphs work for other sizes than they were traced with, and give its hypotheses.

Graphs are compared with the module as those of families are. The search over the graphs is then compared with the same
search over the module itself, which computes every beam's whole history anew.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ...bundle import Bundle
from ...errors import BackendError, ParityError
from ...runtime.decoding import decode
from ...runtime.decoding.state import Floats, Ints, StepQuery, StepResult
from ...runtime.session import load
from ...runtime.sources import MASK
from .. import parity
from ..graphs.traced import MEMORY, STATE
from .interface import Interface
from .sources import Sources

OTHER_LENGTHS = ((1,), (2, 13), (3, 3, 3, 3, 3))  # of the sources of a batch; parity has three of 9, 4 and 6
SEARCHES: tuple[dict[str, Any], ...] = ({"num_beams": 1}, {"num_beams": 4, "num_return_sequences": 2})
LENGTHS, MAX_NEW_TOKENS, SEED = (7, 3, 5, 1), 12, 20142
SCORE_TOLERANCE = 1e-4

Inputs = Mapping[str, torch.Tensor]


class ModuleReference:
    """A module seen as the three graphs (`parity.Reference`). slots: fields of the state that became slots."""

    def __init__(
        self, model: Any, interface: Interface, sources: Sources, slots: Collection[str] = frozenset()
    ) -> None:
        self.model, self.interface, self.sources, self._slots = model, interface, sources, slots

    @torch.no_grad()
    def encode(self, inputs: Inputs) -> dict[str, torch.Tensor]:
        memory = self._memory(inputs)
        return {MEMORY + f.name: getattr(memory, f.name) for f in self.interface.memory}

    @torch.no_grad()
    def cross(self, inputs: Inputs) -> dict[str, torch.Tensor]:
        state = self.model.start(self._memory(inputs))
        return {STATE + f.name: getattr(state, f.name) for f in self.interface.state if f.name not in self._slots}

    @torch.no_grad()
    def step(self, inputs: Inputs, history: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        repeats = history.shape[0] // inputs[MASK].shape[0]
        repeated = {name: value.repeat_interleave(repeats, 0) for name, value in inputs.items()}
        state = self.model.start(self._memory(repeated))
        for token in history.T:
            logits, state, weights = self.model.step(token, state)
        return logits, weights

    def _memory(self, inputs: Inputs) -> Any:
        return self.model.encode(*(inputs[name] for name, _, _ in self.sources.inputs))


class ReferenceState:
    """A batch that PyTorch decodes, each step from the whole histories (`decoding.state.DecodeState`)."""

    def __init__(self, reference: parity.Reference, inputs: Inputs, n_beams: int, vocabulary_size: int) -> None:
        self.vocabulary_size = vocabulary_size
        self.n_sources, self.n_beams = inputs[MASK].shape[0], n_beams
        self._reference, self._inputs = reference, dict(inputs)
        self._histories = np.zeros((self.n_sources, n_beams, 0), dtype=np.int64)

    def step(self, tokens: Ints, parents: Ints, query: StepQuery) -> StepResult:
        followed = np.take_along_axis(self._histories, np.asarray(parents)[:, :, None], axis=1)
        self._histories = np.concatenate([followed, np.asarray(tokens)[:, :, None]], axis=2)
        rows = torch.from_numpy(self._histories.reshape(self.n_sources * self.n_beams, -1))
        logits = self._reference.step(self._inputs, rows)[0].float()
        shape = (self.n_sources, self.n_beams, -1)
        log_probs: Floats = torch.log_softmax(logits, dim=-1).numpy().reshape(shape)
        ids = np.argsort(-log_probs, axis=-1, kind="stable")[..., : query.n_candidates]
        probes = query.probe_ids
        return StepResult(
            candidate_ids=ids,
            candidate_log_probs=np.take_along_axis(log_probs, ids, -1),
            log_normalizer=torch.logsumexp(logits, dim=-1).numpy().reshape(shape[:2]),
            probe_log_probs=None if probes is None else np.take_along_axis(log_probs, probes, -1),
            log_probs=log_probs if query.dense else None,
        )

    def keep(self, sources: Ints) -> None:
        self.n_sources = len(sources)
        self._histories = self._histories[sources]
        self._inputs = {name: value[torch.from_numpy(np.asarray(sources))] for name, value in self._inputs.items()}


def check(written: Bundle, reference: parity.Reference) -> list[parity.OutputError]:
    """The error of every output for other sizes. Raises ParityError for a size or a search that fails."""
    found = []
    for lengths in OTHER_LENGTHS:
        limited = tuple(min(length, written.max_source_length or length) for length in lengths)
        try:
            expected = parity.expect(written, reference, limited)
            errors = parity.compare(written, expected)
        except BackendError as error:
            raise ParityError(f"the traced functions fail for {_batch(limited)}: {error}") from error
        if bad := [error for error in errors if not error.is_close]:
            lines = "; ".join(error.line() for error in bad)
            raise ParityError(f"the traced functions differ from the module's for {_batch(limited)}: {lines}")
        found += errors
    check_search(written, reference)
    return found


def _batch(lengths: Sequence[int]) -> str:
    return f"{len(lengths)} source{'s' if len(lengths) > 1 else ''} of {max(lengths)} tokens"


def check_search(written: Bundle, reference: parity.Reference) -> None:
    rng = np.random.default_rng(SEED)
    session = load(written.path, "onnxruntime", "portable", threads=1, verify=False)
    sources = [session.kind.random(rng, min(n, written.max_source_length or n)) for n in LENGTHS]
    inputs = parity.tensors(session.kind.prepare(sources))
    limit = min(MAX_NEW_TOKENS, (written.max_target_length or MAX_NEW_TOKENS + 1) - 1)
    for search in SEARCHES:
        options = session.options(**search, max_new_tokens=limit)
        state = ReferenceState(reference, inputs, options.n_rows, written.vocabulary_size)
        # All stay to the end: torch.nn.TransformerEncoder cuts padding that no source reaches any more.
        expected = decode(state, [session.kind.ids(source) for source in sources], options, leave_early=False)
        actual = session.generate(sources, **search, max_new_tokens=limit)
        for own, graph in zip(expected, actual, strict=True):
            same = [a.token_ids for a in own] == [b.token_ids for b in graph]
            near = all(abs(a.score - b.score) < SCORE_TOLERANCE for a, b in zip(own, graph, strict=True))
            if not near:  # equal scores of other tokens are a tie, which rounding decides
                raise ParityError(
                    f"with {search['num_beams']} beams the graphs give {list(graph[0].token_ids)}, "
                    f"and the module's own functions {list(own[0].token_ids)}" + ("" if not same else ", scored apart")
                )
