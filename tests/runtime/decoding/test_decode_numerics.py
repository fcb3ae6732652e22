"""Sums over the vocabulary whose order is stated: against Python's own numbers, one after another, and torch's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from s2s_export.runtime.decoding import numerics


def test_exponentials_are_within_their_tolerance() -> None:
    values = np.append(np.linspace(-86.9, 0, 20_001), [0.0]).astype(np.float32)
    found = numerics.exponentials_up_to_one(values)
    wanted = np.array([math.exp(x) for x in values.tolist()])
    assert np.abs(found / wanted - 1).max() < 2e-7 and found[-1] == 1.0
    assert not numerics.exponentials_up_to_one(np.array([-87.0, -1e30, -np.inf], np.float32)).any()


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 16), (2, 3, 15), (1, 5, 1501), (3, 1, 3000)], ids=str)
def test_lanes_are_summed_one_after_another(shape: tuple[int, ...]) -> None:
    values = -np.abs(np.random.default_rng(0).normal(0, 9, shape)).astype(np.float32)
    found = numerics.sum_of_exponentials(values)
    each = numerics.exponentials_up_to_one(values).astype(np.float64)
    for place in np.ndindex(*shape[:-1]):
        lanes = [0.0] * numerics.LANES
        for i, number in enumerate(each[place].tolist()):
            lanes[i % numerics.LANES] += number
        total = 0.0
        for lane in lanes:
            total += lane
        assert found[place] == total


def test_normalised_is_log_softmax() -> None:
    scores = np.random.default_rng(1).normal(0, 6, (2, 3, 5000)).astype(np.float32)
    scores[:, :, ::7] = -np.inf
    wanted = torch.log_softmax(torch.from_numpy(scores), -1).numpy()
    np.testing.assert_allclose(numerics.normalised(scores), wanted, atol=3e-6, rtol=1e-6)
    for strange in (np.inf, np.nan, -np.inf):
        scores[0, 0, :] = -np.inf
        scores[0, 0, 3] = strange
        with np.errstate(all="ignore"):
            found = numerics.normalised(scores)
        assert not (found[0, 0] > -np.inf).any() and np.isfinite(found[1, 2, 1])
