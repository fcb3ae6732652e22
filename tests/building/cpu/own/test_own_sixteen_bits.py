"""Weights of 16 bits: every operator's results are bit for bit those of the same weight in fp32, on every set.

`scripts/arm` runs this file too; see test_own_kernels.py.
"""

from __future__ import annotations

import numpy as np
import pytest
from test_own_kernels import RUNTIME_ERRORS, SHAPES, library, normal, run  # noqa: F401

from s2s_export.building.cpu.own import packing, sixteen

# Tiles of every number of rows, and more rows than are widened tile by tile.
ALL_SHAPES = [*SHAPES, *((rows, 40, 150) for rows in range(1, 20)), (6, 33, 16), (41, 1, 300), (100, 129, 70)]


def weight_in(rng, storage, *shape):
    """Normal values that `storage` holds, with subnormal ones, the largest ones and zeros of both signs."""
    weight = normal(rng, *shape)
    special = [2.0**-24, -(2.0**-15) * 0.75, 65504.0, -0.0, 0.0] if storage == "fp16" else [2.0**-130, -3e38, -0.0, 0.0]
    places = rng.integers(0, weight.size, 8 + weight.size // 64)
    weight.flat[places] = rng.choice(np.array(special, np.float32), len(places))
    return sixteen.widened(sixteen.narrowed(weight, storage), storage)


def both(weight, storage):
    """The weight packed in `storage`, and in fp32."""
    narrow = packing.to_floats(weight, narrows=True)
    assert (narrow.storage, narrow.is_exact) == (storage, True)
    wide = packing.to_floats(weight)
    assert wide.storage == "fp32" and narrow.arrays[""].nbytes * 2 == wide.arrays[""].nbytes
    return narrow, wide


def same_bits(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype and a.tobytes() == b.tobytes()


@pytest.mark.parametrize("storage", sixteen.STORAGES)
def test_products(library, storage):  # noqa: F811
    for rows, n_in, n_out in ALL_SHAPES:
        rng = np.random.default_rng(rows + n_in + n_out)
        narrow, wide = both(weight_in(rng, storage, n_out, n_in), storage)
        x, bias = normal(rng, rows, n_in), packing.filled(normal(rng, n_out), packing.LANES)
        found, expected = (
            run(library, p.operator("Linear"), [x, *p.arrays.values(), bias], 1, [1, 2], n_out=n_out, activation=3)
            for p in (narrow, wide)
        )
        same_bits(found, expected)


@pytest.mark.parametrize("storage", sixteen.STORAGES)
@pytest.mark.parametrize(("sources", "beams", "n", "dense", "threads"), [
    (1, 1, 1, False, 1), (1, 4, 9, True, 2), (8, 1, 300, False, 1), (8, 4, 9, True, 2),
])  # fmt: skip
def test_heads(library, storage, sources, beams, n, dense, threads):  # noqa: F811
    rng = np.random.default_rng(n + sources)
    narrow, wide = both(weight_in(rng, storage, 1001, 48), storage)
    x, bias = normal(rng, sources * beams, 48), packing.filled(normal(rng, 1001), packing.LANES)
    asked = [np.array([n]), rng.integers(0, 1001, (sources, beams, 3)), np.array(dense)]
    found, expected = (
        run(library, p.operator("Head"), [x, *p.arrays.values(), bias, *asked], 5, [1, 2], threads, n_out=1001)
        for p in (narrow, wide)
    )
    same_bits(found, expected)


@pytest.mark.parametrize("storage", sixteen.STORAGES)
def test_every_number_of_16_bits_is_read_exactly(library, storage):  # noqa: F811
    """By the operator that reads single rows, and by products with a matrix of ones and zeros."""
    bits = np.arange(1 << 16, dtype=np.uint16)
    values = sixteen.widened(bits, storage)
    numbers = np.where(np.isnan(values), np.float32(0), values)  # a weight is stored in fp32 if it has one of them
    bits = np.where(np.isnan(values), np.uint16(0), bits)
    table = numbers.reshape(-1, 16)
    packed = np.ascontiguousarray(bits.reshape(-1, 16, 16).transpose(0, 2, 1))
    name = packing.SUFFIXES[storage]
    (rows,) = run(library, f"Embedding{name}", [np.arange(len(table)), packed], 1, [1], width=16, n_rows=len(table))
    assert rows.tobytes() == table.tobytes()
    for n_rows in (1, 24):  # widened in registers, and once for all rows
        x = np.zeros((n_rows, 1), np.float32)
        x[0] = 1
        finite = np.where(np.isfinite(numbers), bits, np.uint16(0))
        wanted = np.where(np.isfinite(numbers), numbers, np.float32(0))
        (found,) = run(library, f"Linear{name}", [x, finite.reshape(-1, 1, 16)], 1, [1], n_out=1 << 16)
        assert np.array_equal(found[0], wanted) and not found[1:].any()


@pytest.mark.parametrize("storage", sixteen.STORAGES)
def test_rows_of_a_shortlist_stay_in_16_bits(library, storage):  # noqa: F811
    rng = np.random.default_rng(8)
    weight = weight_in(rng, storage, 60, 24)
    narrow, wide = both(weight, storage)
    chosen = np.array([3, 7, 8, 30, 31, 32, 33, 34, 40, 41, 42, 43, 44, 50, 51, 52, 59])
    (taken,) = run(library, narrow.operator("TakeRows"), [chosen, *narrow.arrays.values()], 1, [1], n_rows=60)
    assert np.array_equal(taken, both(weight[chosen], storage)[0].arrays[""])
    x, bias, asked = normal(rng, 4, 24), normal(rng, 17), [np.array([3]), np.zeros((1, 4, 1), np.int64), np.array(True)]
    taken_wide = packing.to_floats(weight[chosen]).arrays[""]
    same_bits(
        run(library, narrow.operator("Head"), [x, taken, bias, *asked], 5),
        run(library, wide.operator("Head"), [x, taken_wide, bias, *asked], 5),
    )


def test_weights_of_other_types_and_sizes_are_refused(library):  # noqa: F811
    rng = np.random.default_rng(2)
    x = normal(rng, 3, 8)
    narrow, wide = both(weight_in(rng, "fp16", 40, 8), "fp16")
    cut = narrow.arrays[""][:, :7].copy()
    for operator, weight in (("LinearFp16", cut), ("LinearBf16", cut), ("LinearFp16", narrow.arrays[""][:2].copy())):
        with pytest.raises(RUNTIME_ERRORS, match="other sizes than its rows"):
            run(library, operator, [x, weight], 1, [1], n_out=40)
    for operator, weight in (("LinearFp16", wide.arrays[""]), ("Linear", narrow.arrays[""])):
        with pytest.raises(RUNTIME_ERRORS, match="(?i)type"):
            run(library, operator, [x, weight], 1, [1], n_out=40)
    with pytest.raises(RUNTIME_ERRORS, match="outside the vocabulary"):
        run(library, "EmbeddingFp16", [np.array([40]), narrow.arrays[""]], 1, [1], width=8, n_rows=40)
