"""A decode state whose logits follow from a function of the text: no model, no torch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from s2s_export.runtime.decoding import StepQuery, StepResult

# (source, text) -> logits [V]
Script = Callable[[int, tuple[int, ...]], np.ndarray]


class ScriptedState:
    """`script` says the logits that follow a text of a source."""

    def __init__(self, script: Script, n_sources: int, n_beams: int, vocabulary_size: int) -> None:
        self._script = script
        self.n_sources, self.n_beams, self.vocabulary_size = n_sources, n_beams, vocabulary_size
        self._numbers = np.arange(n_sources)
        self._text = np.zeros((n_sources, n_beams, 0), dtype=np.int64)
        self._sources: list[list[int]] = []
        self.n_rows_run = 0
        self.queries: list[StepQuery] = []

    def step(self, tokens: np.ndarray, parents: np.ndarray, query: StepQuery) -> StepResult:
        text = np.take_along_axis(self._text, parents[:, :, None], axis=1)
        self._text = np.concatenate([text, tokens[:, :, None]], axis=2)
        self.n_rows_run += tokens.size
        self.queries.append(query)
        logits = np.stack(
            [
                np.stack([self._script(int(source), tuple(row.tolist())) for row in rows])
                for source, rows in zip(self._numbers, self._text, strict=True)
            ]
        ).astype(np.float32)
        result = seen_through(query, logits)
        if query.attention:
            result.attention = self._attention()
        return result

    def with_attention(self, sources: list[list[int]]) -> ScriptedState:
        """The state, which then has random attention to the positions of each source, by its tokens and the text."""
        self._sources = sources
        return self

    def _attention(self) -> np.ndarray:
        """[B, K, 1, 1, S]"""
        out = np.zeros((*self._text.shape[:2], max(map(len, self._sources))), dtype=np.float32)
        for b, k in np.ndindex(*out.shape[:2]):
            source = self._sources[self._numbers[b]]
            seed = np.random.default_rng([7, *source, *self._text[b, k].tolist()])
            out[b, k, : len(source)] = seed.dirichlet(np.ones(len(source)))
        return out[:, :, None, None]

    def keep(self, sources: np.ndarray) -> None:
        self._text, self._numbers = self._text[sources], self._numbers[sources]
        self.n_sources = len(sources)


def seen_through(query: StepQuery, logits: np.ndarray) -> StepResult:
    """logits [B, K, V] as a query sees them."""
    top = logits.max(axis=-1, keepdims=True)
    normalizer = top + np.log(np.exp(logits - top).sum(axis=-1, keepdims=True))
    log_probs = (logits - normalizer).astype(np.float32)
    ids = np.argsort(-log_probs, axis=-1, kind="stable")[..., : query.n_candidates]
    return StepResult(
        candidate_ids=ids,
        candidate_log_probs=np.take_along_axis(log_probs, ids, -1),
        log_normalizer=normalizer[..., 0].astype(np.float32),
        probe_log_probs=None if query.probe_ids is None else np.take_along_axis(log_probs, query.probe_ids, -1),
        log_probs=log_probs if query.dense else None,
    )
