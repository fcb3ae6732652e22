"""The rules that keep some tokens of a whole distribution, each by itself, against numpy's definition.

Both take exponentials and sums, which differ in the last place, so a token at the very threshold may stay in one and
go in the other. "At the threshold" is what changes in the definition itself when the option changes by `ROUNDING`.
Everywhere else they are equal, and nearly all rows are equal throughout.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from device_helpers import loop_launches, missing_compiler, resolved, rules_applied, rules_defined, schedule

if missing_compiler():
    pytest.skip(str(missing_compiler()), allow_module_level=True)

ROUNDING = 4e-6
FILTERS: dict[str, tuple[float, ...]] = {
    "top_p": (0.02, 0.5, 0.9, 0.999),
    "top_h": (0.01, 0.4, 0.9, 0.999),
    "min_p": (0.0, 0.01, 0.3, 1.0),
    "typical_p": (0.02, 0.3, 0.9, 0.999),
    "epsilon_cutoff": (1e-4, 0.02, 0.3, 0.999),
    "eta_cutoff": (1e-4, 0.02, 0.3, 0.999),
    "top_k": (1, 5, 50, 10_000),
}
KINDS = ("plain", "sharp", "ties", "flat", "masked", "nearly masked", "all masked", "nan", "infinite")


def random_scores(rng: np.random.Generator, kind: str, V: int) -> np.ndarray:
    """Log-probabilities and what may become of them: [1, 2, V]."""
    scores = rng.standard_normal((1, 2, V)) * 3 - 5
    if kind == "sharp":
        scores *= 40
    elif kind == "ties":
        scores = np.round(scores / 2)
    elif kind == "flat":
        scores[:] = -2.5
    elif kind == "masked":
        scores[rng.random(scores.shape) < 0.6] = -np.inf
    elif kind == "nearly masked":
        scores[..., rng.permutation(V)[min(3, V - 1) :]] = -np.inf
    elif kind == "all masked":
        scores[:] = -np.inf
    elif kind == "nan":
        scores[0, 0, rng.integers(V, size=2)] = np.nan
    elif kind == "infinite":
        scores[0, 1, rng.integers(V)] = np.inf
    return scores.astype(np.float32)


def kept(scores: np.ndarray) -> np.ndarray:
    return scores != -np.inf


class Compared:
    """Tokens and rows seen, and how many were not equal throughout."""

    n_rows = n_unequal = 0

    def add(self, name: str, value: float, keep: int, scores: np.ndarray, what: str) -> None:
        history, sources = np.ones((1, 2, 1), np.int64), np.full((1, 1), -1)
        chosen: dict[str, Any] = {"do_sample": True, "top_k": 0, "decoder_start_token_id": 1, "max_length": 9}
        # With beams one token more than there are end tokens stays at least.
        chosen |= {"num_beams": 1 if keep == 1 else 2, "eos_token_id": list(range(max(1, keep - 1)))}
        assert resolved(chosen, scores.shape[-1]).min_tokens_to_keep == keep

        def defined(amount: Any) -> np.ndarray:
            with np.errstate(all="ignore"):
                return rules_defined({**chosen, name: amount}, scores, history, sources)

        found, wanted = rules_applied({**chosen, name: value}, scores, history, sources), defined(value)
        # What stays is what it was.
        np.testing.assert_array_equal(found[kept(found)], scores[kept(found)], what)
        if name == "top_k":
            np.testing.assert_array_equal(found, wanted, what)
        near = [value] if name == "top_k" else [value * (1 - ROUNDING), min(value * (1 + ROUNDING), 1.0)]
        settled = np.logical_and.reduce([kept(defined(v)) == kept(wanted) for v in near])
        np.testing.assert_array_equal(kept(found)[settled], kept(wanted)[settled], what)
        self.n_rows += 2
        self.n_unequal += int((kept(found) != kept(wanted)).any(axis=-1).sum())


SLICES = (30, loop_launches.FILTER_SLICE)  # tokens of a block


def compare(name: str, seed: int, n_cases: int, sizes: tuple[int, ...], slices: tuple[int, ...] = SLICES) -> Compared:
    chance, rng, compared = random.Random(seed), np.random.default_rng(seed), Compared()
    for i in range(n_cases):
        V, kind, value = chance.choice(sizes), KINDS[i % len(KINDS)], chance.choice(FILTERS[name])
        keep = chance.choice([k for k in (1, 1, 3, 6) if k <= V])
        schedule(seed + i)
        with pytest.MonkeyPatch.context() as patch:
            size = chance.choice(slices)
            patch.setattr(loop_launches, "FILTER_SLICE", size)
            what = f"{name}={value} keep {keep} {kind} V {V} slices of {size} seed {seed}"
            compared.add(name, value, keep, random_scores(rng, kind, V), what)
    return compared


@pytest.mark.parametrize("name", FILTERS)
def test_filter(name: str) -> None:
    compared = compare(name, 1, 3 * len(KINDS), (2, 3, 17, 99, 130, 700))
    assert compared.n_unequal <= 0.05 * compared.n_rows


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "typical_p" else pytest.mark.slow) for name in FILTERS]
)
def test_filter_of_a_large_vocabulary(name: str) -> None:
    compare(name, 2, 5, (58101,), SLICES[1:])


@pytest.mark.slow
@pytest.mark.parametrize("name", FILTERS)
def test_filter_often(name: str) -> None:
    compared = compare(name, 3, 1000, (2, 3, 17, 40, 99, 130, 700, 3000))
    print(f"{name}: {compared.n_unequal} of {compared.n_rows} rows differ at the threshold")
    # Equal scores make equal terms of an entropy, which add up to a share of it exactly.
    assert compared.n_unequal <= (0.03 if name == "top_h" else 0.005) * compared.n_rows
