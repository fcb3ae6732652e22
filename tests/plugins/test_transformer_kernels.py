"""The host build of the Transformer's kernels against numpy, on random sizes of every kind that models have."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
from device_helpers import missing_compiler

from s2s_export import plugin_sources
from s2s_export.errors import BuildError
from s2s_export.measuring.gpu_check import native_cases as cases
from s2s_export.measuring.gpu_check import recurrent_cases
from s2s_export.runtime.cuda.emulation import HostDevice, _library

if reason := missing_compiler():
    pytest.skip(reason, allow_module_level=True)

launches = plugin_sources.module("transformer.launches")
structures = plugin_sources.module("transformer.structures")
fragments = plugin_sources.module("transformer.fragments")
SCHEDULES = (0, 1, 7)
KINDS = cases.KINDS | recurrent_cases.KINDS
ELEMENTS = ("fp16", "bf16", "int8")


class Scheduled(HostDevice):
    """The emulation with one order of blocks and threads. It has canaries around every allocation."""

    def __init__(self, order: int) -> None:
        super().__init__()
        self._order = order

    def _run(self, launch: Any, given: Any, folder: str = "") -> None:
        loaded = _library(folder)
        loaded.s2s_host_schedule(ctypes.c_uint64(self._order))
        try:
            super()._run(launch, given, folder)
        finally:
            loaded.s2s_host_schedule(ctypes.c_uint64(0))


def check(case: cases.Case, what: object, order: int = 0) -> None:
    share = case.error(case.run(Scheduled(order)))
    assert share <= 1.0, f"{what} {case.launch.kernel}: {share:.2f} of the tolerance"


def test_structures_have_the_compilers_sizes() -> None:
    sizes = (ctypes.c_int32 * 16)()
    n = _library("transformer").s2s_transformer_sizes(sizes, 16)
    assert list(sizes[:n]) == [ctypes.sizeof(structure) for structure in structures.ALL]


def test_fragments() -> None:
    weight = np.arange(48 * 32, dtype=np.float32).reshape(48, 32) % 2048
    packed = fragments.pack(weight, "fp16")
    np.testing.assert_array_equal(fragments.unpack(packed), weight.astype(np.float16))
    # Lane 4g + t has inputs 2t, 2t+1 of outputs g and g+8, then 2t+8, 2t+9 of both.
    assert packed[1, 1, 4 * 3 + 2].tolist() == [
        weight[16 + o, 16 + first + pair] for first in (4, 12) for o in (3, 11) for pair in (0, 1)
    ]
    gate, inner = weight[:24], weight[24:]
    both = fragments.interleaved(gate, inner)
    np.testing.assert_array_equal(both[8:24], np.concatenate([inner[:8], gate[8:16]]))
    for part, expected in zip(fragments.parted(both), (gate, inner), strict=True):
        np.testing.assert_array_equal(part, expected)


def test_weights_of_eight_bits_are_exact() -> None:
    """Every whole number from -128 to 127 comes to the tensor cores as itself, and scales are applied to the sums."""
    numbers = np.arange(-128, 128).astype(np.int8).reshape(16, 16)
    scale = (2.0 ** np.arange(-8, 8)).astype(np.float32)
    rows = np.eye(16, dtype=np.float16)
    given = structures.ProductParameters(rows=16, inputs=16, outputs=16, stride=16, limit=16, scale=1.0)
    expected = (numbers.astype(np.float64) * scale[:, None]).T
    read = {"weight": fragments.pack(numbers, "int8"), "weight_scale": scale, "input": rows}
    written = {"output_float": np.full((16, 16), np.nan, np.float32)}
    limits = {"output_float": (expected, np.full(expected.shape, 1e-30))}
    check(cases.Case(launches.product("int8", given), given, read, written, limits), "int8")
    weight = np.random.default_rng(0).standard_normal((32, 48))
    found, scales = fragments.quantized(weight)
    assert np.abs(found).max(axis=1).tolist() == [127] * 32
    assert (np.abs(found * scales[:, None] - weight) <= scales[:, None] * 0.5001).all()


@pytest.mark.parametrize("element", ELEMENTS[:2])
def test_multiply_by_mma_and_by_shuffles(element: str) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((16, 16)).astype(fragments.dtype(element))
    rows = rng.standard_normal((8, 16)).astype(fragments.dtype(element))
    by_lane = np.ascontiguousarray(rows.reshape(8, 2, 4, 2).transpose(0, 2, 1, 3))  # [g, t, half, pair]
    packed, sums = fragments.pack(weight, element), np.full((2, 32, 4), np.nan, np.float32)
    given = (ctypes.c_void_p * 3)(packed.ctypes.data, by_lane.ctypes.data, sums.ctypes.data)
    assert _library("transformer").s2s_transformer_multiply(int(element == "bf16"), given) == 0
    expected = (weight.astype(np.float64) @ rows.astype(np.float64).T).reshape(2, 8, 4, 2)  # [half, g, t, row]
    for found in sums:
        np.testing.assert_allclose(found.reshape(8, 4, 2, 2), expected.transpose(1, 2, 0, 3), atol=2e-5)


@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("kind", KINDS)
def test_kernels(kind: str, element: str) -> None:
    for seed in range(8):
        check(KINDS[kind](np.random.default_rng(seed), element), (kind, seed), SCHEDULES[seed % 3])


@pytest.mark.slow
@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("kind", KINDS)
def test_many_cases(kind: str, element: str) -> None:
    for seed in range(100, 250):
        check(KINDS[kind](np.random.default_rng(seed), element), (kind, seed), SCHEDULES[seed % 3])


@pytest.mark.parametrize("rows", [1, 8, 9, 32, 33, 64, 70])
def test_rows_of_products(rows: int) -> None:
    """Fewer than a fragment meets, several of eight, and those of tiles; blocks with one tile and with several."""
    for seed, blocks in enumerate((0, 2, 0)):
        check(cases.product(np.random.default_rng([rows, seed]), ELEMENTS[seed % 3], rows, blocks), (rows, seed))


@pytest.mark.parametrize("width", [512, 528, 1024, 2048])
def test_norms_of_each_width_before_a_product(width: int) -> None:
    case = cases.wide_norm(np.random.default_rng(width), "fp16", width)
    assert case.launch.kernel.endswith(f"norm{next(size for size in launches.NORM_WIDTHS if width <= size)}")
    check(case, width)


@pytest.mark.parametrize("kind", launches.GATES)
@pytest.mark.parametrize("rows", [1, 8, 9, 32, 33])
def test_rows_of_recurrent_cells(rows: int, kind: str) -> None:
    """A block of eight rows, or of 32 for which weights are read once."""
    for seed in range(3):
        case = recurrent_cases.cell(np.random.default_rng([rows, seed]), ELEMENTS[seed], kind, rows)
        assert case.launch.kernel.endswith("g1" if rows <= 8 else "g4")
        check(case, (rows, kind), SCHEDULES[seed])


@pytest.mark.parametrize("position", [0, 1, 5])
def test_states_that_a_step_begins_with(position: int) -> None:
    """The source's at first; then the parents', also at the last position."""
    for element in ELEMENTS:
        check(recurrent_cases.begin_step(np.random.default_rng(position), element, position), position)


@pytest.mark.parametrize("additive", [False, True])
def test_both_scores_of_attention(additive: bool) -> None:
    for order in SCHEDULES:
        check(recurrent_cases.source_scores(np.random.default_rng(order), "fp16", additive), additive, order)


def test_gates_by_units() -> None:
    """Five units of three gates a tile, and a row of zeros; four of four."""
    for n in (3, 4):
        gates = 1.0 + np.arange(n * 16 * 2).reshape(n, 16, 2)
        laid = fragments.by_units(gates)
        assert laid.shape == (64, 2)
        np.testing.assert_array_equal(laid[: 16 // n], gates[0, : 16 // n])
        np.testing.assert_array_equal(laid[16 // n : 2 * (16 // n)], gates[1, : 16 // n])
        assert n == 4 or not laid[15::16].any()
        np.testing.assert_array_equal(fragments.of_units(laid.T, n, 16).transpose(0, 2, 1), gates)


@pytest.mark.parametrize("how", ["rows", "offset", "padding", "padding moves", "none"])
def test_positions_of_embeddings(how: str) -> None:
    check(cases.embed(np.random.default_rng(7), "fp16", how), how)


@pytest.mark.parametrize("only", [False, True])
@pytest.mark.parametrize("rows", [1, 8, 20])
def test_candidates_of_the_head(rows: int, only: bool) -> None:
    """In the lists of several blocks, with ties; every order of blocks and threads gives the same."""
    for order in SCHEDULES:
        check(cases.head_candidates(np.random.default_rng(rows + order), "fp16", rows, only), (rows, only), order)


def test_lists_of_real_vocabularies() -> None:
    assert [launches.candidate_lists(4, 512, v, 8) for v in (64, 128, 129, 58101, 256206)] == [1, 1, 2, 128, 128]
    assert launches.candidate_lists(33, 512, 58101, 8) == 0  # rows of tiles
    assert launches.candidate_lists(4, 4096, 58101, 8) == 0  # no norm that wide
    assert launches.candidate_lists(4, 512, 58101, 33) == 0
    assert launches.candidate_lists(4, 512, 600_000, 8) == 0


@pytest.mark.parametrize("width", [16, 512, 1024])
def test_widths_of_streams_before_cross_attention(width: int) -> None:
    for number in (1, 5):
        check(cases.cross_block(np.random.default_rng(width), ELEMENTS[number % 3], number, 64, width), width)


@pytest.mark.parametrize(
    "kind", ["self_attention", "cross_attention", "self_block", "cross_block", "encoder_attention"]
)
@pytest.mark.parametrize("head_size", [16, 48, 64, 112, 128])
def test_head_sizes(kind: str, head_size: int) -> None:
    for number in (1, 4, 5, 16, 3):  # beams; of the encoder, tokens
        case = getattr(cases, kind)(np.random.default_rng(number), ELEMENTS[number % 3], number, head_size)
        check(case, (kind, number))


def test_a_wrong_kernel_shows() -> None:
    """Tolerances are narrow enough that a result which is off by a quarter is found, in every kernel."""
    for kind in set(KINDS) - {"wide_norm"}:
        case = KINDS[kind](np.random.default_rng(3), "fp16")
        found = case.run(HostDevice())
        name = next(iter(case.expected))
        found[name] = found[name] + found[name].dtype.type(0.25)
        assert not case.error(found) <= 1.0, kind


def test_sizes_that_no_kernel_serves() -> None:
    product = structures.ProductParameters(rows=1, inputs=20, outputs=16)
    with pytest.raises(BuildError, match="20 inputs and 16 outputs; expected multiples of 16"):
        launches.product("fp16", product)
    product = structures.ProductParameters(rows=1, inputs=4096, outputs=16, norm_weight=16)
    with pytest.raises(BuildError, match="a norm of 4096 inputs before a product; expected at most 2048"):
        launches.product("fp16", product)
    product = structures.ProductParameters(rows=40, inputs=16, outputs=16, norm_weight=16)
    with pytest.raises(BuildError, match="a norm before a product of 40 rows; expected norm_rows before it"):
        launches.product("fp16", product)
    attention = structures.SelfAttentionParameters(sources=1, heads=1, beams=17, head_size=64, capacity=4)
    with pytest.raises(BuildError, match="17 beams; the kernels take 1 to 16"):
        launches.self_attention("fp16", attention)
    attention.head_size = 144
    with pytest.raises(BuildError, match="the head size is 144"):
        launches.self_attention("fp16", attention)
    block = structures.CrossBlockParameters(query=structures.ProductParameters(inputs=1040, norm_weight=16))
    block.attention.beams, block.attention.head_size, block.output.outputs = 1, 64, 16
    with pytest.raises(BuildError, match="a query of 1040 inputs; expected a norm of a multiple of 16 up to 1024"):
        launches.cross_block("fp16", block)
    block.output.outputs = 20
    with pytest.raises(BuildError, match="an output projection to 20; expected a multiple of 16"):
        launches.cross_block("fp16", block)
    head = structures.HeadParameters(candidates=40, lists=1)
    with pytest.raises(BuildError, match="40 candidates of 0 tokens for 0 rows of 0 in 1 lists; expected up to 32"):
        launches.head_candidates("fp16", head)
    layer = structures.CellParameters(rows=1, inputs=16, units=20, outputs=80)
    with pytest.raises(
        BuildError, match="a layer of 20 lstm units with 16 inputs and 80 outputs; expected lstm or gru"
    ):
        launches.cell("fp16", layer, "lstm")
    with pytest.raises(BuildError, match="no kernels for 'fp32'"):
        launches.norm("fp32", structures.NormParameters(rows=1))
