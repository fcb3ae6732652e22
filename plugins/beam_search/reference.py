"""What the beam-search kernels compute, in numpy. The kernels are tested against this, bit for bit where it says so.

The rules are those of transformers' generate() (5.x): finished hypotheses compete in a pool of K, only the best K
candidates of a step may finish, -1e9 is added to what shall come last, and a heuristic bound closes a source.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

FAR = np.float32(-1e9)


def log_softmax_top(logits: NDArray, n_candidates: int) -> tuple[NDArray, NDArray, NDArray]:
    """(log_normalizer [R] float64, candidate_ids [R,M], candidate_log_probs [R,M] float64) of logits [R,V].

    Best first; of equal logits the lower token first. NaN comes last.
    """
    given = logits.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        largest = np.nanmax(given, axis=1, keepdims=True)
        normalizer = largest + np.log(np.exp(given - largest).sum(axis=1, keepdims=True))
        ranked = np.where(np.isnan(given), -np.inf, given)
        ids = np.argsort(-ranked, axis=1, kind="stable")[:, :n_candidates]
        log_probs = np.take_along_axis(ranked, ids, axis=1) - normalizer
    return normalizer[:, 0], ids, log_probs


def best(values: NDArray, count: int) -> NDArray:
    """Indices of the `count` largest, in order; of equal ones the first comes first."""
    return np.argsort(-values, kind="stable")[:count]


@dataclass
class Search:
    """The tables of B sources. Arrays have the kernels' layout and are changed in place by `update` and `stop`."""

    sources: int
    beams: int
    end_ids: tuple[int, ...]
    prompt: int
    limit: int
    capacity: int
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    arrays: dict[str, NDArray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        B, K = self.sources, self.beams
        scores = np.full((B, K), FAR)
        scores[:, 0] = 0
        ancestors = np.zeros((B, K, self.capacity), np.int64)
        ancestors[:, :, : self.prompt] = np.arange(K)[:, None]  # every beam feeds the prompt itself
        counts = range(self.limit + 1)
        self.arrays = {
            "position": np.array([self.prompt - 1]),
            "end_ids": np.array(self.end_ids, np.int64),
            "length_divisor": np.array([max(n, 1) ** float(self.length_penalty) for n in counts], np.float32),
            "scores": scores,
            "next_tokens": np.zeros((B, K), np.int64),
            "tokens": np.full((self.limit, B, K), -1, np.int32),
            "parents": np.full((self.limit, B, K), -1, np.int32),
            "ancestors": ancestors,
            "pool_scores": np.full((B, K), FAR),
            "pool_finished": np.zeros((B, K), np.int32),
            "pool_steps": np.full((B, K), -1, np.int32),
            "pool_parents": np.full((B, K), -1, np.int32),
            "pool_tokens": np.full((B, K), -1, np.int32),
            "open": np.ones(B, np.int32),
            "all_hit": np.zeros(B, np.int32),
            "stop": np.zeros(1, np.int32),
        }

    @property
    def step(self) -> int:
        return int(self.arrays["position"][0]) - self.prompt + 1

    @property
    def n_chosen(self) -> int:
        return max(2, 1 + len(self.end_ids)) * self.beams

    @property
    def bound_at_limit(self) -> bool:
        return self.early_stopping == "never" and self.length_penalty > 0

    def update(self, candidate_log_probs: NDArray, candidate_ids: NDArray) -> None:
        """One step from candidates [B,K,M] after the decoding rules, M at least `n_chosen` / K."""
        for source in range(self.sources):
            self._update_source(source, candidate_log_probs[source], candidate_ids[source])

    def _update_source(self, b: int, log_probs: NDArray, ids: NDArray) -> None:
        state, step, K = self.arrays, self.step, self.beams
        accumulated = (log_probs + state["scores"][b][:, None]).astype(np.float32).reshape(-1)
        accumulated = np.where(np.isnan(accumulated), np.float32(-np.inf), accumulated)
        beam = np.repeat(np.arange(K), ids.shape[1])
        chosen = np.lexsort((ids.reshape(-1), beam, -accumulated))[: self.n_chosen]  # the first K*V in a stable sort
        value, beam, token = accumulated[chosen], beam[chosen], ids.reshape(-1)[chosen]
        hit = np.isin(token, self.end_ids) | (step + 1 >= self.limit)

        running = np.where(hit, value + FAR, value).astype(np.float32)
        go_on = best(running, K)
        state["scores"][b] = running[go_on]
        state["next_tokens"][b] = state["tokens"][step, b] = token[go_on]
        state["parents"][step, b] = beam[go_on]
        written = int(state["position"][0])
        table = state["ancestors"][b]
        table[:, : written + 1] = table[beam[go_on], : written + 1]
        if written + 1 < self.capacity:
            table[:, written + 1] = np.arange(K)

        finishes = hit & (np.arange(len(chosen)) < K)
        hypothesis = (value / state["length_divisor"][step + 1]).astype(np.float32)
        if self.early_stopping is True and state["pool_finished"][b].all():
            hypothesis = hypothesis + FAR
        if not state["open"][b]:
            hypothesis = hypothesis + FAR
        hypothesis = np.where(finishes, hypothesis, hypothesis + FAR).astype(np.float32)
        ranked = best(np.concatenate([state["pool_scores"][b], hypothesis]), K)
        new = {
            "pool_scores": hypothesis,
            "pool_finished": finishes,
            "pool_steps": np.full(len(chosen), step),
            "pool_parents": beam,
            "pool_tokens": token,
        }
        for name, values in new.items():
            state[name][b] = np.concatenate([state[name][b], values])[ranked]

        divisor = state["length_divisor"][self.limit if self.bound_at_limit else step + 1]
        bound = np.float32(state["scores"][b, 0] / divisor)
        asked = np.where(state["pool_finished"][b], state["pool_scores"][b].min(), FAR)
        state["open"][b] &= bool((bound > asked).any())
        state["all_hit"][b] = hit.all()

    def stop(self) -> bool:
        """Sets the stop flag, or goes to the next position."""
        state = self.arrays
        settled = self.early_stopping is True and state["pool_finished"].all()
        state["stop"][0] = not (state["open"].any() and not settled and not state["all_hit"].all())
        state["position"][0] += not state["stop"][0]
        return bool(state["stop"][0])

    def hypotheses(self, source: int) -> list[tuple[float, list[int]]]:
        """(score, generated tokens), best first: the pool's records, each followed back through its parents."""
        state, found = self.arrays, []
        for k in range(self.beams):
            tokens, beam = [], int(state["pool_parents"][source, k])
            for step in range(int(state["pool_steps"][source, k]) - 1, -1, -1):
                tokens.append(int(state["tokens"][step, source, beam]))
                beam = int(state["parents"][step, source, beam])
            found.append(
                (float(state["pool_scores"][source, k]), [*tokens[::-1], int(state["pool_tokens"][source, k])])
            )
        return found
