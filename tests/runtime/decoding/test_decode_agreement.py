"""`decode` returns what transformers' generate() returns, for random options and models."""

from __future__ import annotations

import generate_versions
import pytest
from agreement import Tally, compare

N_SHARDS = 6
N_A_SHARD = 50


def check(seeds: range) -> Tally:
    tally = Tally()
    for seed in seeds:
        compare(seed, tally)
    print(f"{tally.n_cases} cases, {tally.n_hypotheses} outputs, {tally.n_ties} ties, {tally.n_fillers} fillers")
    assert not tally.different, "\n".join(tally.different)
    # Ties are decided by rounding. They are rare, or something else is wrong.
    assert tally.n_ties <= max(1, tally.n_cases // 50)
    return tally


@pytest.mark.matrix
@pytest.mark.skipif(
    generate_versions.VERSION < generate_versions.CACHES_AS_OBJECTS,
    reason="the state that runs PyTorch here needs the caches of transformers 4.54",
)
@pytest.mark.parametrize(
    "shard", [pytest.param(i, marks=pytest.mark.slow if i >= N_SHARDS // 3 else ()) for i in range(N_SHARDS)]
)
def test_random_options_give_the_tokens_of_generate(shard: int) -> None:
    tally = check(range(shard * N_A_SHARD, (shard + 1) * N_A_SHARD))
    assert tally.n_fillers < tally.n_hypotheses // 4


@pytest.mark.slow
@pytest.mark.parametrize("shard", range(12))
def test_many_random_options_give_the_tokens_of_generate(shard: int) -> None:
    check(range(10_000 + shard * 250, 10_000 + (shard + 1) * 250))
