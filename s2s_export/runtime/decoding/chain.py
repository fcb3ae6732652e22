"""Applies all active rules to what a decoder step returns.

Letters: B sources, K beams, R = B*K rows, M candidates, Q probed tokens, V vocabulary, W = M+Q or V tokens considered.

If all rules are sparse, only the best M tokens of a row and the Q tokens that the rules name can matter: a token that
no rule names keeps its score, so that if it is among the best `n` after the rules, it was among the best n + Q before.
The search asks for that many candidates, applies the edits to the probed tokens, removes those from the candidates, and
gets the same best `n` as from the whole distribution. With a dense rule, it asks for the whole distribution. In both
cases, `apply_edit` applies an edit to a flat array of scores.

Renormalising (`renormalize_logits`, with which OPUS-MT models ban their padding token) would be dense. After sparse
rules alone the sum of all probabilities is known from the tokens that they changed: 1, less what these had, plus what
they have. Where little is left, as after a ban of the token that was all but certain, the difference of two such sums
is imprecise. Then `Imprecise` is raised, and the caller decodes again with the whole distribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from .numerics import along, exponentials, logarithms
from .options import GenerationOptions
from .rule import MINUS_INFINITY, DenseRule, Edit, Rule, SparseRule, View
from .rules import active
from .state import Floats, Ints, StepQuery, StepResult

# The most candidates in a row. If more were needed, the whole distribution is asked for instead, because a partial sort
# of more tokens takes longer than copying the distribution.
MOST_CANDIDATES = 512
# The least sum of probabilities from which rows are renormalised by the tokens that rules changed. A log-probability is
# off by about 1e-6, so the sum's logarithm is by 2e-5 here: well within the 1e-4 to which scores agree.
LEAST_SUM = 0.05


class Imprecise(Exception):
    """The tokens that rules changed had nearly all probability; only the whole distribution says what is left."""


@dataclass
class Scored:
    """The tokens considered, with their scores after the rules. Entries of minus infinity may only fill a row.

    ids [B, K, W] int64, or None if W = V and the position is the id. log_probs [B, K, W]: the log-probabilities after
    the rules. logits [B, K, W]: the logits after the rules, or the same array if it leads to the same choice.
    """

    ids: Ints | None
    log_probs: Floats
    logits: Floats


class Chain:
    """The rules that `options` switch on, in order."""

    def __init__(
        self,
        options: GenerationOptions,
        vocabulary_size: int,
        *,
        dense: bool = False,
        sparse_sums: bool = False,
        more: Sequence[Rule] = (),
    ) -> None:
        """more: rules of the search itself, after those of the options. sparse_sums: whether to renormalise by the
        tokens that rules changed; `Plan.read` may then raise Imprecise."""
        self._rules: list[Rule] = [*active(options, vocabulary_size), *more]
        self._vocabulary_size = vocabulary_size
        whole = [rule for rule in self._rules if isinstance(rule, DenseRule)]
        self._normalises = (
            sparse_sums and not dense and whole == self._rules[-1:] and bool(whole) and whole[0].is_normalisation
        )
        self._is_dense = dense or (bool(whole) and not self._normalises)
        self.reads_history = any(rule.reads_history for rule in self._rules)
        self.shift_invariant = all(rule.shift_invariant for rule in self._rules)
        self._last: tuple[list[Edit], int, Plan] | None = None

    def plan(self, view: View, n_rows: tuple[int, int], n_best: int, *, attention: bool = False) -> Plan:
        """The query for the next step. n_rows: B, K. n_best: how many of the best tokens of each row are needed."""
        if self._is_dense:
            return Plan(StepQuery(1, dense=True, attention=attention), self._rules, view, None)
        edits = [edit for rule in self._rules if isinstance(rule, SparseRule) and (edit := rule.edit(view)) is not None]
        if self._last is not None and self._last[1] == n_rows[0] and _same(self._last[0], edits):
            return self._last[2]
        probe = Probe(edits, n_rows, self._vocabulary_size)
        n_candidates = min(n_best + probe.n_changed, self._vocabulary_size)
        if n_candidates > MOST_CANDIDATES:
            return Plan(StepQuery(1, dense=True, attention=attention), self._rules, view, None)
        ids = probe.ids if probe.n_changed else None
        # The plan must not refer to the view: the reference cycle would keep the caches alive after the search.
        query = StepQuery(n_candidates, ids, attention=attention)
        plan = Plan(query, self._rules, None, probe, normalises=self._normalises)
        self._last = (edits, n_rows[0], plan)
        return plan


def _same(before: Sequence[Edit], now: Sequence[Edit]) -> bool:
    return len(before) == len(now) and all(a is b for a, b in zip(before, now, strict=True))


class Probe:
    """The tokens that edits name, sorted in each row, and the positions of each mention.

    ids [B, K, Q] int64. counts [R, Q]: true at the first position of each token. n_changed: most tokens in a row.
    places: for each edit, the flat positions in [R, Q] of the tokens that it names.
    """

    def __init__(self, edits: Sequence[Edit], n_rows: tuple[int, int], vocabulary_size: int) -> None:
        self.edits = edits
        n = n_rows[0] * n_rows[1]
        widths = [edit.ids.shape[-1] for edit in edits]
        shape = (n, sum(widths))
        mentions = (
            np.concatenate([_by_row(edit.ids, n_rows) for edit in edits], axis=1)
            if edits
            else np.zeros(shape, np.int64)
        )
        order = np.argsort(mentions, axis=1, kind="stable")
        named = along(mentions, order)
        self.counts = named >= 0
        self.counts[:, 1:] &= named[:, 1:] != named[:, :-1]
        self.n_changed = int(self.counts.sum(axis=1).max(initial=0))
        self.ids = np.maximum(named, 0).reshape(*n_rows, -1)
        # A token's place is its first mention in the sorted row. That of NO_TOKEN is one past the end.
        at = np.arange(named.size).reshape(shape)
        first = np.where(named >= 0, np.maximum.accumulate(np.where(self.counts, at, 0), axis=1), named.size)
        places = np.empty_like(at)
        places[np.arange(n)[:, None], order] = first
        ends = list(accumulate(widths))
        self.places = [places[:, end - width : end] for width, end in zip(widths, ends, strict=True)]
        # One key for each mention, made of the row and the id + 1, in one ascending array.
        self._row = (np.arange(n) * (vocabulary_size + 1) + 1)[:, None]
        self._keys = (named + self._row).ravel()

    def holds(self, ids: Ints) -> NDArray[np.bool_]:
        """Which of the ids [R, M] are probed in their row."""
        keys = ids + self._row
        found = np.searchsorted(self._keys, keys)
        held: NDArray[np.bool_] = self._keys[np.minimum(found, len(self._keys) - 1)] == keys
        return held


class Plan:
    """A query, and how to read its result."""

    def __init__(
        self,
        query: StepQuery,
        rules: Sequence[Rule],
        view: View | None,
        probe: Probe | None,
        *,
        normalises: bool = False,
    ) -> None:
        """normalises: whether scores of a sparse query become log-probabilities again."""
        self.query = query
        self._normalises = normalises
        self._rules = rules
        self._view = view
        self._probe = probe

    def read(self, result: StepResult, *, logits: bool) -> Scored:
        """The step's tokens after the rules. logits: whether the scores of the logits are needed as well."""
        read = self._read_dense if self._probe is None else self._read_sparse
        ids, log_probs = read(result, None)
        return Scored(ids, log_probs, read(result, result.log_normalizer)[1] if logits else log_probs)

    def _read_dense(self, result: StepResult, shift: Floats | None) -> tuple[None, Floats]:
        if result.log_probs is None or self._view is None:
            raise ValueError("the decode state returned no log_probs, expected them for a query with dense=True")
        scores = result.log_probs.astype(np.float32)  # A copy, because the buffer belongs to the state.
        if shift is not None:
            scores += shift[..., None]
        for rule in self._rules:
            if isinstance(rule, DenseRule):
                scores = rule.apply(scores, self._view)
            elif isinstance(rule, SparseRule) and (edit := rule.edit(self._view)) is not None:
                scores = edit_dense(scores, edit)
        return None, scores

    def _read_sparse(self, result: StepResult, shift: Floats | None) -> tuple[Ints, Floats]:
        probe, candidates, scores = self._probe, result.candidate_ids, result.candidate_log_probs
        if shift is not None:
            scores = scores + shift[..., None]
        if probe is None or not probe.n_changed:
            if self._normalises:
                scores = result.candidate_log_probs  # nothing was changed
            is_nothing_allowed = probe is not None and any(edit.kind in ("only", "keep") for edit in probe.edits)
            return candidates, np.full_like(scores, MINUS_INFINITY) if is_nothing_allowed else scores
        if result.probe_log_probs is None:
            raise ValueError("the decode state returned no probe_log_probs, expected them for a query with probe_ids")
        probed = result.probe_log_probs if shift is None else result.probe_log_probs + shift[..., None]
        n = probed.shape[0] * probed.shape[1]
        flat = np.append(probed.ravel(), np.float32(0.0))
        for edit, places in zip(probe.edits, probe.places, strict=True):
            flat = apply_edit(flat, places, edit)
        changed = np.where(probe.counts, flat[:-1].reshape(n, -1), MINUS_INFINITY)
        if any(edit.kind in ("only", "keep") for edit in probe.edits):
            kept = np.full_like(scores, MINUS_INFINITY)
        else:
            kept = np.where(probe.holds(candidates.reshape(n, -1)).reshape(scores.shape), MINUS_INFINITY, scores)
        ids = np.concatenate([candidates, probe.ids], axis=-1)
        scores = np.concatenate([kept, changed.reshape(probed.shape)], axis=-1)
        if self._normalises:
            scores = scores - self._log_sum(result.probe_log_probs, changed.reshape(probed.shape), probe, shift)
        return ids, scores

    def _log_sum(self, before: Floats, after: Floats, probe: Probe, shift: Floats | None) -> Floats:
        """[B, K, 1]: the logarithm of the sum of all probabilities after the rules, plus the shift. Raises Imprecise.

        before, after [B, K, Q]: log-probabilities of the probed tokens, and their scores with the shift [B, K].
        """
        counts = probe.counts.reshape(before.shape)
        moved = np.float64(0.0) if shift is None else shift.astype(np.float64)[..., None]
        with np.errstate(over="ignore", invalid="ignore"):
            # One after another, in the order of the tokens: the sum does not depend on places that no token fills.
            each = np.where(counts, exponentials(before.astype(np.float64)), 0.0)
            had = np.add.accumulate(each, axis=-1)[..., -1:]
            have = np.add.accumulate(exponentials(after - moved), axis=-1)[..., -1:]
            rest = 0.0 if any(edit.kind in ("only", "keep") for edit in probe.edits) else 1.0 - had
            total = rest + have
        if not (np.isfinite(total) & (total >= LEAST_SUM)).all():
            raise Imprecise("too little probability is left to renormalise by the tokens that rules changed")
        found: Floats = (logarithms(total) + moved).astype(np.float32)
        return found


def edit_dense(scores: Floats, edit: Edit) -> Floats:
    """Apply an edit to the whole distribution [B, K, V], which may be overwritten."""
    if edit.kind == "look":
        return scores
    n_sources, n_beams, vocabulary_size = scores.shape
    ids = _by_row(edit.ids, (n_sources, n_beams))
    rows = (np.arange(n_sources * n_beams) * vocabulary_size)[:, None]
    if edit.kind == "ban":  # most of them are, and need no copy
        flat = scores.reshape(-1)
        flat[(ids + rows)[ids >= 0]] = MINUS_INFINITY
        return flat.reshape(scores.shape)
    places = np.where(ids >= 0, ids + rows, scores.size)
    return apply_edit(np.append(scores.ravel(), np.float32(0.0)), places, edit)[:-1].reshape(scores.shape)


def apply_edit(scores: Floats, places: Ints, edit: Edit) -> Floats:
    """Apply an edit, whose tokens are at `places`, to scores [n + 1] in place. The last score belongs to no token."""
    if edit.kind == "look":
        pass
    elif edit.kind == "ban":
        scores[places] = MINUS_INFINITY
    elif edit.kind == "add":
        sums = np.zeros_like(scores)
        np.add.at(sums, places, np.broadcast_to(np.asarray(edit.amount, dtype=np.float32), places.shape))
        scores += sums
    elif edit.kind == "scale":
        before, amount = scores[places], np.float32(edit.amount)
        scores[places] = np.where(before < 0, before * amount, before / amount)
    elif edit.kind == "grow":
        before = scores[places]
        with np.errstate(over="ignore", invalid="ignore"):
            growth = np.abs(before) * np.float32(edit.amount)
            scores[places] = np.where(np.isfinite(before), before + growth, before)
    elif edit.kind == "keep":
        before = scores[places]
        scores = np.full_like(scores, MINUS_INFINITY)
        scores[places] = before
    else:
        scores = np.full_like(scores, MINUS_INFINITY)
        scores[places] = np.float32(0.0)
    return scores


def _by_row(ids: Ints, n_rows: tuple[int, int]) -> Ints:
    """[R, n] from [B or 1, K or 1, n]."""
    return np.broadcast_to(ids, (*n_rows, ids.shape[-1])).reshape(n_rows[0] * n_rows[1], -1)
