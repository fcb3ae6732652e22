"""The ancestor table against texts that are copied at every step, which is what it saves."""

from __future__ import annotations

import numpy as np

from s2s_export.runtime.decoding.ancestors import AncestorTable


def test_the_table_finds_what_copies_hold() -> None:
    B, K = 3, 4
    rng = np.random.default_rng(0)
    table = AncestorTable.of(B, K, 2)
    slots = np.zeros((0, B, K), np.int64)  # what each beam wrote at each position: never moved
    copied = np.zeros((B, K, 0), np.int64)  # the beams' texts
    for t in range(12):
        if table.is_full:
            table.grow(table.capacity + 3)
        parents = rng.integers(0, K, (B, K)) if t % 3 else np.tile(np.arange(K), (B, 1))
        tokens = rng.integers(0, 100, (B, K))
        changed = table.follow(parents)
        slots = np.concatenate([slots, tokens[None]])
        copied = np.concatenate([np.take_along_axis(copied, parents[:, :, None], axis=1), tokens[:, :, None]], axis=2)
        assert changed == bool(t and (parents != np.arange(K)).any())
        for b in range(B):
            for k in range(K):
                found = [slots[i, b, table.array[b, k, i]] for i in range(t + 1)]
                assert found == copied[b, k].tolist()
        if t == 7:
            kept = np.array([0, 2])
            table.keep(kept)
            slots, copied, B = slots[:, kept], copied[kept], 2


def test_fewer_beams_than_the_table_has_and_memory_of_the_callers() -> None:
    """An engine that runs four beams for a search with two: the rows behind stay as they were."""
    memory = np.empty(2 * 4 * 3, np.int64)
    table = AncestorTable(memory.reshape(2, 4, 3))
    table.follow(np.array([[0, 0], [0, 0]]))
    assert table.follow(np.array([[1, 1], [0, 0]]))
    assert table.array[:, :, 0].tolist() == [[1, 1, 2, 3], [0, 0, 2, 3]]
    table.keep(np.array([1]), memory[:12].reshape(1, 4, 3))
    assert np.shares_memory(table.array, memory)
    assert table.array[0, :, 0].tolist() == [0, 0, 2, 3]
