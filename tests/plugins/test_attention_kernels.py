"""The kernels themselves, run on this CPU, against the numpy references.

Each case draws sizes at random around the ones a test is about, and runs blocks and threads in another order.
"""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from plugin_helpers import (
    ELEMENTS,
    OPERATIONS,
    build,
    check_cross,
    check_self,
    cross_case,
    library,
    operation_module,
    run,
    self_case,
)
from tiny_names import in_the_long_run

from s2s_export.errors import BuildError

HEAD_SIZES = range(8, 129, 8)
BEAMS = range(1, 17)
MASKS = ("none", "prefix", "scattered", "all", "soft")

try:
    build.find_compiler("c++", "g++", "clang++")
except BuildError as missing:
    pytest.skip(str(missing), allow_module_level=True)


def random_self(rng: np.random.Generator, element: str, bias: bool, longest: int = 64, **fixed):
    capacity = fixed.pop("capacity", None) or int(rng.integers(1, longest + 1))
    sizes = {
        "head_size": int(rng.choice(HEAD_SIZES)),
        "beams": int(rng.integers(1, 17)),
        "position": int(rng.integers(0, capacity)),
        "sources": int(rng.integers(1, 4)),
        "heads": int(rng.integers(1, 4)),
        "hidden": float(rng.choice([0.0, 0.0, 0.3, 1.0])),
        "spread": float(rng.choice([0.1, 1.0, 4.0])),
    }
    return self_case(rng, element, capacity=capacity, bias=bias, **{**sizes, **fixed})


def random_cross(rng: np.random.Generator, element: str, bias: bool, longest: int = 64, **fixed):
    sizes = {
        "head_size": int(rng.choice(HEAD_SIZES)),
        "beams": int(rng.integers(1, 17)),
        "length": int(rng.integers(1, longest + 1)),
        "sources": int(rng.integers(1, 4)),
        "heads": int(rng.integers(1, 4)),
        "mask": str(rng.choice(MASKS)),
    }
    return cross_case(rng, element, bias=bias, **{**sizes, **fixed})


def sweep_self(seed: int, count: int, element: str, bias: bool, sanitize: bool = False, **fixed) -> None:
    for i in range(count):
        case = random_self(np.random.default_rng((seed, i)), element, bias, **fixed)
        check_self(case, run(case, schedule=i, sanitize=sanitize))


def sweep_cross(seed: int, count: int, element: str, bias: bool, sanitize: bool = False, **fixed) -> None:
    for i in range(count):
        case = random_cross(np.random.default_rng((seed, i)), element, bias, **fixed)
        check_cross(case, run(case, schedule=i, sanitize=sanitize))


each = pytest.mark.parametrize("element", ELEMENTS)
both = pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])


@each
@both
class TestRandom:
    def test_self(self, element: str, bias: bool) -> None:
        sweep_self(1, 40, element, bias)

    def test_cross(self, element: str, bias: bool) -> None:
        sweep_cross(2, 40, element, bias)

    @pytest.mark.slow
    def test_many(self, element: str, bias: bool) -> None:
        sweep_self(3, 1000, element, bias)
        sweep_cross(4, 1000, element, bias)

    def test_every_head_size_and_beam_count(self, element: str, bias: bool) -> None:
        for head_size in HEAD_SIZES:
            for beams in BEAMS[bias::2]:  # each of them, with or without a bias
                fixed = {"head_size": head_size, "beams": beams, "sources": 1, "heads": 1}
                sweep_self(head_size * 100 + beams, 1, element, bias, longest=24, **fixed)
                sweep_cross(head_size * 100 + beams, 1, element, bias, longest=24, **fixed)

    @pytest.mark.parametrize("length", [1, 2, 31, 32, 33, 127, 128, 129, 255, 256, 257, 511, 1023, 1024, 1500])
    def test_lengths(self, element: str, bias: bool, length: int) -> None:
        rng = np.random.default_rng(length)
        case = random_self(rng, element, bias, capacity=length, position=length - 1, sources=1, heads=1)
        check_self(case, run(case))
        case = random_cross(rng, element, bias, length=length, sources=1, heads=1)
        check_cross(case, run(case))


@pytest.mark.parametrize("element", in_the_long_run(ELEMENTS, ["fp16"]))
def test_order_of_threads_does_not_matter(element: str) -> None:
    """Bit for bit: a barrier that is missing would show here."""
    rng = np.random.default_rng(5)
    for case in (
        random_self(rng, element, True, capacity=300, position=280),
        random_cross(rng, element, True, length=300, mask="scattered", beams=11),
        random_cross(rng, element, True, length=40, mask="all"),
    ):
        forward = run(case)
        for schedule in (1, 2, 3, 4, 5):
            again = run(case, schedule=schedule)
            assert all(again[name].tobytes() == forward[name].tobytes() for name in forward), case.describe()


@each
def test_source_without_a_real_position_gets_the_mean(element: str) -> None:
    case = cross_case(np.random.default_rng(0), element, 64, 4, 9, bias=True, mask="all")
    output = run(case)["output"].astype(np.float64)
    mean = case.tensors["value"].astype(np.float64).mean(axis=2, keepdims=True)
    np.testing.assert_allclose(output, np.broadcast_to(mean, output.shape), rtol=2**-7, atol=1e-5)


@each
def test_source_of_one_token_gets_its_value(element: str) -> None:
    case = cross_case(np.random.default_rng(0), element, 80, 5, 1, bias=False, mask="none")
    np.testing.assert_array_equal(run(case)["output"], np.broadcast_to(case.tensors["value"], (1, 1, 5, 80)))


@each
def test_padding_is_not_read(element: str) -> None:
    """Not only weighed with zero: NaN in it does not spread."""
    case = cross_case(np.random.default_rng(3), element, 32, 3, 50, bias=False, mask="prefix")
    real = case.tensors["mask"][0, 0, 0] == 0
    assert not real.all()
    clean = run(case)["output"]
    case.tensors["key"][:, :, ~real] = np.nan
    case.tensors["value"][:, :, ~real] = np.nan
    np.testing.assert_array_equal(run(case)["output"], clean)


@each
def test_first_position_gets_its_own_value(element: str) -> None:
    case = self_case(np.random.default_rng(0), element, 64, 4, 20, position=0, bias=True)
    np.testing.assert_array_equal(run(case)["output"], case.tensors["value"])


@pytest.mark.parametrize("position", [-1, 20, 2**40, -(2**63)])
def test_position_outside_the_cache_writes_nothing(position: int) -> None:
    case = self_case(np.random.default_rng(0), "fp16", 64, 4, 20, position=position, bias=True)
    outputs = run(case)
    assert not outputs["output"].any()
    assert outputs["key_cache"].tobytes() == case.tensors["key_cache"].tobytes()
    assert outputs["value_cache"].tobytes() == case.tensors["value_cache"].tobytes()


def test_decoding_with_reordered_beams_equals_moving_the_cache() -> None:
    """Thirty steps of a search that reorders at every step: the table against the copying it replaces."""
    rng = np.random.default_rng(8)
    K, C, D, steps = 5, 32, 40, 30
    case = self_case(rng, "fp32", D, K, C, position=0, bias=False, heads=2)
    case.tensors["ancestors"][...] = 0
    history_keys, history_values = np.zeros((2, K, 0, D)), np.zeros((2, K, 0, D))
    for t in range(steps):
        parents = rng.integers(0, K, K)
        history_keys, history_values = history_keys[:, parents], history_values[:, parents]
        case.tensors["ancestors"][0] = case.tensors["ancestors"][0, parents]
        case.tensors["ancestors"][0, :, t] = np.arange(K)
        case.tensors["position"] = np.array([t])
        for name in ("query", "key", "value"):
            case.tensors[name] = rng.standard_normal((1, 2, K, D)).astype(np.float32)
        outputs = run(case, schedule=t)
        case.tensors.update(key_cache=outputs["key_cache"].copy(), value_cache=outputs["value_cache"].copy())
        history_keys = np.concatenate([history_keys, case.tensors["key"][0, :, :, None]], axis=2)
        history_values = np.concatenate([history_values, case.tensors["value"][0, :, :, None]], axis=2)
        scores = np.einsum("hkd,hktd->hkt", case.tensors["query"][0], history_keys) * case.scale
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        expected = np.einsum("hkt,hktd->hkd", weights, history_values)
        np.testing.assert_allclose(outputs["output"][0], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["BeamSelfAttention", "CrossAttention"])
def test_launcher_and_python_plan_alike(name: str) -> None:
    """Who loads the binary from Python must launch what the C launcher would."""
    operation = OPERATIONS[name]
    launch = type("Launch", (ctypes.Structure,), {"_fields_": LAUNCH_FIELDS})()
    function = getattr(library(operation.folder), f"s2s_{operation.folder}_plan")
    for element in ELEMENTS:
        for head_size in HEAD_SIZES:
            for beams in BEAMS:
                sizes = {"B": 3, "H": 5, "K": beams, "D": head_size, "C": beams * 20, "S": beams * 20}
                given = operation.arguments(sizes, {}, 1.0)
                assert function(ELEMENTS.index(element), ctypes.byref(given), ctypes.byref(launch)) == 0
                plan = operation.plan(element, sizes)
                assert (plan.kernel, list(plan.grid), plan.threads) == (
                    launch.kernel.decode(),
                    list(launch.grid),
                    launch.threads,
                )


LAUNCH_FIELDS = (("kernel", ctypes.c_char * 64), ("grid", ctypes.c_uint32 * 3), ("threads", ctypes.c_uint32))


@pytest.mark.parametrize(
    ("element", "change", "status"),
    [
        (3, {}, -1),
        (-1, {}, -1),
        (0, {"D": 12}, -2),
        (0, {"D": 136}, -2),
        (0, {"D": 0}, -2),
        (0, {"K": 17}, -3),
        (0, {"K": 0}, -3),
        (0, {"B": 0}, -4),
        (0, {"B": 65536}, -4),
        (0, {"C": 0, "S": 0}, -4),
        (0, {}, -5),
    ],
)
@pytest.mark.parametrize("name", ["BeamSelfAttention", "CrossAttention"])
def test_launcher_refuses(name: str, element: int, change: dict[str, int], status: int) -> None:
    operation = OPERATIONS[name]
    sizes = {"B": 1, "H": 1, "K": 1, "D": 64, "C": 8, "S": 8, **change}
    given = operation.arguments(sizes, {}, 1.0)  # null pointers: what the last case is refused for
    assert getattr(library(operation.folder), f"s2s_{operation.folder}")(element, ctypes.byref(given), None) == status
    with pytest.raises(BuildError, match="was not launched: "):
        operation_module.check(status, name)


def test_shapes_that_disagree_are_named() -> None:
    operation = OPERATIONS["CrossAttention"]
    with pytest.raises(BuildError, match=r"value has shape \[1, 2, 6, 8\], expected \[B, H, S, D\] with .*S=5"):
        operation.sizes([(1, 2, 3, 8), (1, 2, 5, 8), (1, 2, 6, 8), (1, 1, 1, 5)])
    with pytest.raises(BuildError, match="has 2 inputs, not 4"):
        operation.sizes([(1, 2, 3, 8), (1, 2, 5, 8)])


@pytest.mark.slow
@each
@both
def test_long_sweep(element: str, bias: bool) -> None:
    sweep_self(11, 1500, element, bias)
    sweep_cross(12, 1500, element, bias)
    sweep_self(13, 60, element, bias, longest=1024)
    sweep_cross(14, 60, element, bias, longest=1024)
