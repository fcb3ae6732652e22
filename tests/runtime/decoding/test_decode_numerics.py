"""Sums over the vocabulary as they are stated: against Python's own numbers, in any order, and torch's."""

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
def test_sums_are_those_of_whole_numbers(shape: tuple[int, ...]) -> None:
    values = -np.abs(np.random.default_rng(0).normal(0, 9, shape)).astype(np.float32)
    values[..., ::5], values[..., ::7] = -30.5, -np.inf  # half a unit and less is rounded, halves to even
    found, orders = numerics.sum_of_exponentials(values), np.random.default_rng(1)
    each = numerics.exponentials_up_to_one(values)
    for place in np.ndindex(*shape[:-1]):
        total = sum(round(number * 2**numerics.WEIGHT_BITS) for number in each[place].tolist())
        assert found[place] == total / 2**numerics.WEIGHT_BITS
        assert numerics.sum_of_exponentials(orders.permutation(values[place])) == found[place]


def test_logarithms_in_float32_are_within_their_tolerance() -> None:
    values = np.geomspace(1e-37, 3e38, 20_001).astype(np.float32)
    wanted = np.array([math.log(x) for x in values.tolist()])
    np.testing.assert_allclose(numerics.float_logarithms(values), wanted, 2e-7, 1e-10)
    below = np.geomspace(1e-16, 0.9, 2_001).astype(np.float32)
    wanted = np.array([math.log1p(-x) for x in below.tolist()])
    near = below < 0.25  # beyond that, what is known of the value is the value as it was rounded
    found = numerics.float_logarithms(np.float32(1) - below, below)
    np.testing.assert_allclose(found[near], wanted[near], 2e-7)
    np.testing.assert_allclose(found, wanted, 6e-7)


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
