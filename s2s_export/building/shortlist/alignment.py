"""Which target tokens translate a source token: IBM model 1 (Brown et al. 1993, section 4.1), fitted by EM.

The model consists of t(e | f), the probability that source token f translates to target token e. It assumes that each
target token of a pair was produced by one of the pair's source tokens, or by the empty token, in proportion to t.
Adding up those expected counts over all pairs gives the next t. Five rounds of this are usual for word aligners.

Letters: P pairs, n co-occurrences of a source and a target token in the same pair, counted with repetition.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ROUNDS = 5
MOST_CO_OCCURRENCES = 60_000_000  # about 2 GiB of arrays; pairs beyond this are ignored
Ids = Sequence[int]


@dataclass(frozen=True)
class Translations:
    """t(target | source) [n], sorted by source and then by falling probability. The empty token is source F."""

    source: NDArray[np.int64]
    target: NDArray[np.int64]
    probability: NDArray[np.float64]

    def best(self, n_source: int, n: int) -> list[list[int]]:
        """The n most probable target tokens of each of n_source source tokens."""
        starts = np.searchsorted(self.source, np.arange(n_source + 1))
        return [self.target[a : min(b, a + n)].tolist() for a, b in itertools.pairwise(starts)]


def fit(pairs: Sequence[tuple[Ids, Ids]], n_source: int, n_target: int, rounds: int = ROUNDS) -> Translations:
    """Estimate t from pairs of source and target ids. Pairs beyond MOST_CO_OCCURRENCES are ignored."""
    keys, places = _co_occurrences(pairs, n_source, n_target)
    known, which = np.unique(keys, return_inverse=True)
    source = known // n_target
    share = np.full(len(known), 1.0 / n_target)
    for _ in range(rounds):
        weight = share[which]
        weight /= np.bincount(places, weights=weight)[places]
        counts = np.bincount(which, weights=weight, minlength=len(known))
        share = counts / np.maximum(np.bincount(source, weights=counts, minlength=n_source + 1)[source], 1e-300)
    order = np.lexsort((-share, source))
    return Translations(source[order], (known % n_target)[order], share[order])


def _co_occurrences(
    pairs: Sequence[tuple[Ids, Ids]], n_source: int, n_target: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Keys source * n_target + target [n], and for each the index of its target token in the text [n]."""
    keys, places = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    n_places = n = 0
    for source, target in pairs:
        given = np.unique(np.append(np.asarray(source, dtype=np.int64), n_source))
        found = np.asarray(target, dtype=np.int64)
        n += len(given) * len(found)
        if n > MOST_CO_OCCURRENCES:
            break
        keys.append((given[None, :] * n_target + found[:, None]).ravel())
        places.append(np.repeat(np.arange(n_places, n_places + len(found)), len(given)))
        n_places += len(found)
    return np.concatenate(keys), np.concatenate(places)


def most_frequent(targets: Sequence[Ids], n: int, n_target: int) -> list[int]:
    """The n most frequent target tokens; fewer if fewer occur."""
    counts = np.bincount(np.concatenate([np.asarray(t, np.int64) for t in targets]), minlength=n_target)
    order = np.argsort(-counts, kind="stable")[:n]
    return [int(i) for i in order if counts[i]]
