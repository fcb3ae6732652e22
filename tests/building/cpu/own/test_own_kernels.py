"""The operators of plugins/cpu against numpy, with every instruction set that this processor has.

`scripts/arm` runs this file on emulated Arm processors too, where there is no torch and no conftest. OPERATORS in the
environment names a compiled library that is tried in place of those compiled here.
"""

from __future__ import annotations

import itertools
import math
import os
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from s2s_export import plugin_sources
from s2s_export.building.cpu import own
from s2s_export.building.cpu.own import packing
from s2s_export.building.cpu.own.products import ACTIVATIONS

RUNTIME_ERRORS = tuple(
    getattr(onnxruntime.capi.onnxruntime_pybind11_state, name)
    for name in ("Fail", "InvalidArgument", "RuntimeException", "InvalidGraph")
)
NUMPY_TYPES = ("f4", "f2", "i8", "i4", "i1", "u2", "?")
ONNX_TYPES = {np.dtype(t): helper.np_dtype_to_tensor_dtype(np.dtype(t)) for t in NUMPY_TYPES}
BUILD = plugin_sources.module("cpu.build")
SETS = list(BUILD.sets_of(plugin_sources.module("portable").machine()))
EMULATED = ["emulated amx"] if "amx" in SETS else []  # its tile instructions in plain C++, for machines without them
GIVEN = os.environ.get("OPERATORS")


@pytest.fixture(scope="module", params=["given"] if GIVEN else [*EMULATED, *SETS])
def library(request):
    if GIVEN:
        return Path(GIVEN)
    if request.param in EMULATED:
        return emulated()
    path = BUILD.library(*SETS[: SETS.index(request.param)])
    if request.param == "amx":
        skip_without_amx(path)
    if BUILD.instruction_set(path) != request.param:
        pytest.skip(f"this processor has no {request.param}")
    return path


def emulated():
    path = BUILD.library(emulated=True)
    skip_without_amx(path)
    return path


def skip_without_amx(path):
    """Where a library does not run the set, for a reason that is no fault of the set's."""
    why = BUILD.why_not_amx(path)
    assert why is None or "products are wrong" not in why
    if why:
        pytest.skip(f"no amx: {why}")


def run(library, op_type, inputs, n_outputs, constants=(), threads=1, wanted=None, **attributes):
    """Run one operator. inputs: arrays in order, None for one left out; constants: which of them are weights."""
    names = [f"in{i}" if array is not None else "" for i, array in enumerate(inputs)]
    outputs = [f"out{i}" if wanted is None or i in wanted else "" for i in range(n_outputs)]
    node = own.node(op_type, names, outputs, "node", **attributes)
    fed = {n: a for i, (n, a) in enumerate(zip(names, inputs, strict=True)) if n and i not in constants}
    weights = [numpy_helper.from_array(inputs[i], names[i]) for i in constants if names[i]]
    graph_inputs = [helper.make_tensor_value_info(n, ONNX_TYPES[a.dtype], None) for n, a in fed.items()]
    graph_outputs = [
        helper.make_tensor_value_info(name, kind, None)
        for name, kind in zip(outputs, output_types(op_type), strict=False)
        if name
    ]
    graph = helper.make_graph([node], "one", graph_inputs, graph_outputs, weights)
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid(own.DOMAIN, 1)]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # what is refused is tested by its message
    options.enable_cpu_mem_arena = False  # every tensor has memory of its own, whose ends a sanitizer sees
    options.register_custom_ops_library(str(library))
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    return onnxruntime.InferenceSession(model, options).run(None, fed)


def output_types(op_type):
    floats, ids = TensorProto.FLOAT, TensorProto.INT64
    if op_type.startswith("Head"):
        return [floats, ids, floats, floats, floats]
    if op_type == "TakeRowsInt8":
        return [TensorProto.INT8, floats, TensorProto.INT32]
    if op_type in ("TakeRowsFp16", "TakeRowsBf16"):
        return [TensorProto.UINT16]
    return [floats] * 3


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def packed_inputs(weight, is_int8):
    """What a product's weight looks like to it, and the weight that it then stands for."""
    packed = packing.to_int8(weight) if is_int8 else packing.to_floats(weight)
    arrays = list(packed.arrays.values())
    if not is_int8:
        return arrays, weight
    values = arrays[0].transpose(0, 2, 1, 3).reshape(-1, arrays[0].shape[1] * 4)[: len(weight), : weight.shape[1]]
    return arrays, values.astype(np.float32) * arrays[1][: len(weight), None]


def rounded_rows(x):
    """What int8 products make of their rows: 8 bits between the least and the largest value, 0 among them."""
    low, high = np.minimum(x.min(axis=1), 0), np.maximum(x.max(axis=1), 0)
    step = ((high - low) / 255).astype(np.float32)
    step[step == 0] = 1
    zero = np.rint(-low / step)
    return (np.clip(np.rint(x / step[:, None]) + zero[:, None], 0, 255) - zero[:, None]) * step[:, None]


def activated(x, name):
    x = x.astype(np.float64)
    erf = np.vectorize(math.erf)
    return {
        "none": lambda: x,
        "relu": lambda: np.maximum(x, 0),
        "silu": lambda: x / (1 + np.exp(-x)),
        "quick_gelu": lambda: x / (1 + np.exp(-1.702 * x)),
        "gelu": lambda: 0.5 * x * (1 + erf(x / np.sqrt(2))),
        "gelu_tanh": lambda: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    }[name]()


# Products

SHAPES = [(1, 16, 16), (1, 512, 70), (2, 33, 130), (3, 64, 37), (4, 20, 256), (5, 7, 100), (8, 48, 48), (9, 31, 17),
          (17, 128, 96), (32, 96, 400), (39, 64, 80)]  # fmt: skip  # R, I, O


@pytest.mark.parametrize("is_int8", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def test_products(library, shape, is_int8):
    rows, n_in, n_out = shape
    rng = np.random.default_rng(sum(shape))
    x, weight, bias = normal(rng, rows, n_in), normal(rng, n_out, n_in), normal(rng, n_out)
    arrays, stands_for = packed_inputs(weight, is_int8)
    inputs = [x, *arrays, packing.filled(bias, packing.LANES)]
    op_type = "LinearInt8" if is_int8 else "Linear"
    (found,) = run(library, op_type, inputs, 1, range(1, len(inputs)), n_out=n_out)
    used = rounded_rows(x) if is_int8 else x
    expected = used.astype(np.float64) @ stands_for.T.astype(np.float64) + bias
    # A rounding of each sum's terms in float32; of int8 a value between two levels may go either way.
    assert np.abs(found - expected).max() <= (2e-2 if is_int8 else 4e-6) * np.sqrt(n_in)
    if is_int8:
        assert np.abs(found - expected).mean() < 1e-3 * np.sqrt(n_in)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(library, name):
    rng = np.random.default_rng(3)
    x = np.concatenate([normal(rng, 40, 16) * 3, np.linspace(-30, 30, 160, dtype=np.float32).reshape(10, 16)])
    inputs = [x, *packed_inputs(np.eye(16, dtype=np.float32), False)[0]]
    (found,) = run(library, "Linear", inputs, 1, [1], n_out=16, activation=ACTIVATIONS[name])
    # gelu: erf is within 3e-7, and 1 + erf(x) of a negative x is a difference of near numbers.
    assert found == pytest.approx(activated(x, name), rel=2e-6, abs=1e-6)


@pytest.mark.parametrize("kind", ["sum", "norm", "both", "rms"])
def test_residuals_and_norms(library, kind):
    rng = np.random.default_rng(5)
    x, weight, residual = normal(rng, 6, 40), normal(rng, 50, 40), normal(rng, 6, 50)
    scale, shift = normal(rng, 50), None if kind == "rms" else normal(rng, 50)
    norm = [] if kind == "sum" else [scale, shift]
    inputs = [x, *packed_inputs(weight, False)[0], None, residual, *norm]
    wanted = {"sum": (0,), "norm": (1,), "both": (0, 1), "rms": (0, 1)}[kind]
    found = run(library, "Linear", inputs, 2, [1], wanted=wanted, n_out=50, epsilon=1e-5, gives_sum=int(0 in wanted))
    sums = x @ weight.T + residual
    centred = sums if kind == "rms" else sums - sums.mean(axis=1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5) * scale + (
        0 if shift is None else shift
    )
    for place, array in zip(wanted, found, strict=True):
        assert array == pytest.approx((sums, normed)[place], rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("width", [1, 24, 71])
def test_norms_and_gates_that_follow_no_product(library, width):
    rng = np.random.default_rng(width)
    for rows in (0, 1, 70):
        x, weight, bias = normal(rng, rows, width), normal(rng, width), normal(rng, width)
        (found,) = run(library, "Norm", [x, weight, bias], 1, threads=2, epsilon=1e-5)
        centred = x - x.mean(1, keepdims=True) if rows else x
        wanted = centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5) * weight + bias
        np.testing.assert_allclose(found, wanted, atol=2e-5)
        (found,) = run(library, "Norm", [x, weight, None], 1, epsilon=1e-6)
        np.testing.assert_allclose(found, x / np.sqrt((x**2).mean(1, keepdims=True) + 1e-6) * weight, atol=2e-5)
        halves = normal(rng, rows, 2 * width)
        (found,) = run(library, "Gate", [halves], 1, threads=2, activation=ACTIVATIONS["relu"])
        np.testing.assert_array_equal(found, np.maximum(halves[:, :width], 0) * halves[:, width:])
    for wrong in ([x, weight[:0], None], [x, weight, normal(rng, width + 1)]):
        with pytest.raises(RUNTIME_ERRORS, match="a norm has another size"):
            run(library, "Norm", wrong, 1)
    with pytest.raises(RUNTIME_ERRORS, match="no two halves"):
        run(library, "Gate", [normal(rng, 3, 5)], 1)


def test_embeddings_and_rows_are_the_weight_again(library):
    rng = np.random.default_rng(6)
    weight, ids = normal(rng, 37, 22), rng.integers(0, 37, (3, 5))
    for is_int8 in (False, True):
        arrays, stands_for = packed_inputs(weight, is_int8)
        name = "EmbeddingInt8" if is_int8 else "Embedding"
        (rows,) = run(library, name, [ids, *arrays[: 2 if is_int8 else 1]], 1, [1], width=22, n_rows=37)
        assert rows == pytest.approx(stands_for[ids], rel=1e-6)
        name = "TakeRowsInt8" if is_int8 else "TakeRows"
        chosen = np.unique(ids)
        expected = packed_inputs(weight[chosen], is_int8)[0]
        found = run(library, name, [chosen, *arrays], len(expected), [1], n_rows=37)
        for a, b in zip(found, expected, strict=True):
            assert np.array_equal(a, b)
    with pytest.raises(Exception, match="outside the vocabulary"):
        run(library, "Embedding", [ids + 30, packed_inputs(weight, False)[0][0]], 1, [1], width=22, n_rows=37)


# Attention


@pytest.mark.parametrize("size", [8, 32, 64, 80, 128])
@pytest.mark.parametrize("beams", [1, 2, 4, 7])
def test_attention_over_the_cache(library, size, beams):
    rng = np.random.default_rng(size + beams)
    sources, heads, capacity, position = 2, 3, 12, 9
    qkv = normal(rng, sources * beams, 3 * heads * size)
    keys, values = (normal(rng, capacity, sources, heads, beams, size) for _ in range(2))
    keys[position + 1 :] = values[position + 1 :] = np.nan  # never read
    ancestors = rng.integers(0, beams, (sources, beams, capacity))
    ancestors[:, :, position] = np.arange(beams)
    bias = normal(rng, 1, heads, 1, capacity)
    inputs = [qkv, keys, values, ancestors, np.array([position]), bias]
    rows, *caches = run(library, "SelfAttention", inputs, 3, scale=0.3)
    q, k, v = qkv.reshape(sources, beams, 3, heads, size).transpose(2, 0, 3, 1, 4)  # [B,H,K,D]
    expected = np.zeros((sources, beams, heads, size))
    for cache, new in ((keys, k), (values, v)):
        cache[position] = new
    for b, beam, h in itertools.product(range(sources), range(beams), range(heads)):
        seen = [(t, b, h, ancestors[b, beam, t]) for t in range(position + 1)]
        scores = np.array([0.3 * q[b, h, beam] @ keys[s] for s in seen]) + bias[0, h, 0, : position + 1]
        weights = np.exp(scores - scores.max())
        expected[b, beam, h] = weights @ np.array([values[s] for s in seen]) / weights.sum()
    np.testing.assert_allclose(rows, expected.reshape(rows.shape), rtol=1e-5, atol=3e-6)
    for found, cache in zip(caches, (keys, values), strict=True):
        assert np.array_equal(found, cache, equal_nan=True)


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize(("size", "beams"), [(8, 3), (64, 4), (64, 1)])
def test_sources_with_positions_and_places_of_their_own(library, size, beams, relative):
    """Each source's rows are to the bit those that it gets alone, at the only place, and nothing else is written."""
    rng = np.random.default_rng(size + beams)
    heads, capacity, n_places = 2, 9, 6
    positions, places = np.array([0, 7, 3]), np.array([4, 0, 5])
    qkv = normal(rng, len(places) * beams, 3 * heads * size)
    keys, values = (normal(rng, capacity, n_places, heads, beams, size) for _ in range(2))
    ancestors = rng.integers(0, beams, (n_places, beams, capacity))
    distances = normal(rng, heads, 2 * capacity - 1)  # of keys before the query, and after it
    bias = distances[:, :capacity][None, :, None] if relative else None  # of position C-1
    inputs = [qkv, keys, values, ancestors, positions, bias, places]
    rows, *caches = run(library, "SelfAttention", inputs, 3, scale=0.3, relative=int(relative))
    expected = [keys.copy(), values.copy()]
    for i, (position, place) in enumerate(zip(positions, places, strict=True)):
        mine, at = slice(i * beams, (i + 1) * beams), slice(place, place + 1)
        shifted = np.roll(distances, -(capacity - 1 - position), axis=1)[:, :capacity]
        of_this = np.ascontiguousarray(shifted)[None, :, None] if relative else None
        alone = [qkv[mine], *(np.ascontiguousarray(a) for a in (keys[:, at], values[:, at], ancestors[at])),
                 np.array([position]), of_this]  # fmt: skip
        found, *written = run(library, "SelfAttention", alone, 3, scale=0.3)
        assert np.array_equal(rows[mine], found)
        for cache, new in zip(expected, written, strict=True):
            cache[position, place] = new[position, 0]
    for found, cache in zip(caches, expected, strict=True):
        assert np.array_equal(found, cache)


def test_single_rows_in_a_batch_are_those_of_each_alone(library):
    """Heads of a single row are computed together, whichever part of the work a thread takes."""
    rng = np.random.default_rng(5)
    sources, heads, size, positions, length = 3, 6, 32, 150, 40
    qkv, cache = normal(rng, sources, 3 * heads * size), normal(rng, 2, positions, sources, heads, 1, size)
    source, mask = normal(rng, 2, sources, heads, length, size), np.ones((sources, length), np.int64)
    table, last = np.zeros((sources, 1, positions), np.int64), np.array([positions - 1])

    def attended(chosen):
        itself = [qkv[chosen], *np.ascontiguousarray(cache[:, :, chosen]), table[chosen], last]
        other = [qkv[chosen, : heads * size], *np.ascontiguousarray(source[:, chosen]), mask[chosen]]
        for threads in (1, 2):
            yield run(library, "SelfAttention", itself, 3, threads=threads, scale=0.2)[0]
            yield run(library, "CrossAttention", other, 1, threads=threads, scale=0.2)[0]

    together = list(attended(slice(0, sources)))
    for i in range(sources):
        for found, alone in zip(together, attended(slice(i, i + 1)), strict=True):
            np.testing.assert_array_equal(found[i : i + 1], alone)


def test_attention_over_sources_at_places_of_their_own(library):
    rng = np.random.default_rng(4)
    keys, values = (normal(rng, 5, 2, 11, 32) for _ in range(2))
    mask = (np.arange(11) < np.array([[11], [4], [7], [0], [1]])).astype(np.int64)
    places = np.array([2, 4, 0])
    query = normal(rng, len(places) * 3, 64)
    (rows,) = run(library, "CrossAttention", [query, keys, values, mask, places], 1, scale=0.2)
    (found,) = run(library, "CrossAttention", [query, keys[places], values[places], mask[places]], 1, scale=0.2)
    assert np.array_equal(rows, found)


@pytest.mark.parametrize("size", [8, 32, 64, 96])
@pytest.mark.parametrize("beams", [1, 3, 4, 5])
def test_attention_over_the_source(library, size, beams):
    rng = np.random.default_rng(size * beams)
    sources, heads, length = 3, 2, 19
    query = normal(rng, sources * beams, heads * size)
    keys, values = (normal(rng, sources, heads, length, size) for _ in range(2))
    mask = (np.arange(length) < np.array([[19], [4], [0]])).astype(np.int64)
    (rows,) = run(library, "CrossAttention", [query, keys, values, mask], 1, scale=0.2)
    q = query.reshape(sources, beams, heads, size).transpose(0, 2, 1, 3)
    with np.errstate(divide="ignore"):
        scores = 0.2 * q @ keys.transpose(0, 1, 3, 2) + np.log(mask)[:, None, None]
    with np.errstate(invalid="ignore"):
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    expected = np.nan_to_num(weights / weights.sum(axis=-1, keepdims=True)) @ values  # nothing seen: nothing said
    np.testing.assert_allclose(rows, expected.transpose(0, 2, 1, 3).reshape(rows.shape), rtol=1e-5, atol=3e-6)
    narrow = [array.astype(np.float16) for array in (keys, values)]
    (of_halves,) = run(library, "CrossAttentionFp16", [query, *narrow, mask], 1, scale=0.2)
    wide = [array.astype(np.float32) for array in narrow]
    (of_wide,) = run(library, "CrossAttention", [query, *wide, mask], 1, scale=0.2)
    # Equal but for products that the compiler joins with sums in one of them alone.
    np.testing.assert_allclose(of_halves, of_wide, rtol=1e-5, atol=3e-6)


ENCODERS = [(3, 2, 19, 8), (1, 1, 1, 32), (2, 4, 16, 64), (1, 3, 70, 12), (1, 2, 400, 64), (2, 1, 33, 7)]  # B, H, S, D


@pytest.mark.parametrize("shape", ENCODERS)
@pytest.mark.parametrize("mask", ["none", "sources", "heads", "all", "queries"])
def test_attention_of_an_encoder(library, shape, mask):
    rng = np.random.default_rng(sum(shape))
    sources, heads, length, size = shape
    rows = normal(rng, sources * length, 3 * heads * size)
    dims = {
        "sources": (sources, 1, 1),
        "heads": (1, heads, length),
        "all": (sources, heads, length),
        "queries": (1, 1, length),
    }.get(mask)
    added = None if dims is None else normal(rng, *dims, length)
    if added is not None:
        added[..., 1:][rng.random(added[..., 1:].shape) < 0.3] = -1e9  # hidden; the first position never is
    sizes = np.array([sources, length, heads, size])
    (found,) = run(library, "EncoderAttention", [rows, sizes, added], 1, scale=0.3)
    q, k, v = rows.reshape(sources, length, 3, heads, size).transpose(2, 0, 3, 1, 4).astype(np.float64)
    scores = 0.3 * q @ k.transpose(0, 1, 3, 2) + (0 if added is None else added)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    expected = (weights / weights.sum(axis=-1, keepdims=True) @ v).transpose(0, 2, 1, 3)
    np.testing.assert_allclose(found, expected.reshape(found.shape), rtol=1e-5, atol=3e-6)
    (found,) = run(library, "EncoderAttention", [rows, sizes, added], 1, scale=0.3, int8=1)
    # A factor of a score is wrong by at most 1/254 (keys) or 1/510 (queries) of the largest of its position, and 64 of
    # them, 0.3 times, by about 0.03, so that weights are wrong by some hundredths of themselves.
    wrong = np.abs(found - expected.reshape(found.shape)) / np.abs(v).max()
    assert wrong.max() < 0.05 and np.sqrt((wrong**2).mean()) < 0.01


def test_attention_of_an_encoder_in_bytes_tells_what_is_no_number(library):
    rng = np.random.default_rng(0)
    rows, sizes = normal(rng, 40, 3 * 2 * 8), np.array([2, 20, 2, 8])
    rows[3, 20] = np.nan  # a key of the first source
    (found,) = run(library, "EncoderAttention", [rows, sizes, None], 1, scale=0.3, int8=1)
    assert np.isnan(found[:20]).any() and np.isfinite(found[20:]).all()
    rows[3, 20] = 1e30
    (found,) = run(library, "EncoderAttention", [rows, sizes, None], 1, scale=0.3, int8=1)
    assert np.isfinite(found[20:]).all()


@pytest.mark.parametrize("length", [1, 3, 5, 15, 16, 17, 33, 70])
def test_padding_changes_no_bit_of_an_encoders_attention(library, length):
    """So what a source is encoded to does not depend on how long others of its batch are."""
    rng, heads, size = np.random.default_rng(length), 2, 24
    for padding in (1, 2, 7, 16, 30):
        rows = normal(rng, 1, length + padding, 3 * heads * size)
        mask = np.zeros((1, 1, 1, length + padding), np.float32)
        mask[..., length:] = np.finfo(np.float32).min
        inputs = [rows.reshape(-1, rows.shape[2]), np.array([1, length + padding, heads, size]), mask]
        (padded,) = run(library, "EncoderAttention", inputs, 1, scale=0.3)
        inputs = [rows[0, :length], np.array([1, length, heads, size]), mask[..., :length]]
        (alone,) = run(library, "EncoderAttention", inputs, 1, scale=0.3)
        np.testing.assert_array_equal(padded[:length], alone)


# Convolutions


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("is_turned", [0, 1])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 5, 3), (1, 40, 7), (3, 33, 16)])  # B, T, C
def test_windows_of_a_convolution(library, shape, is_turned, stride):
    x = normal(np.random.default_rng(0), *shape)
    width = 5
    (found,) = run(
        library,
        "Windows",
        [x.transpose(0, 2, 1) if is_turned else x],
        1,
        width=width,
        stride=stride,
        is_turned=is_turned,
    )
    padded = np.pad(x, ((0, 0), (width // 2, width // 2), (0, 0)))
    expected = [padded[:, at : at + width].reshape(shape[0], -1) for at in range(0, shape[1], stride)]
    np.testing.assert_array_equal(found, np.stack(expected, axis=1))


# The output projection


@pytest.mark.parametrize("is_int8", [False, True])
@pytest.mark.parametrize(("sources", "beams", "n", "dense", "threads"), [
    (1, 1, 1, False, 1), (1, 4, 9, False, 1), (2, 5, 12, True, 2), (8, 4, 9, False, 2), (1, 3, 300, False, 1),
    (1, 2, 700, True, 1),
])  # fmt: skip
def test_candidates(library, is_int8, sources, beams, n, dense, threads):
    rng = np.random.default_rng(n + beams)
    rows, size, width = sources * beams, 1001, 48
    # Sums of few whole numbers: many logits are equal, and exact in any order of summation.
    x = rng.integers(-3, 4, (rows, width)).astype(np.float32)
    weight = rng.integers(-1, 2, (size, width)).astype(np.float32)
    if is_int8:
        x[:, 0], x[:, 1] = 127, -128  # so that rows are whole numbers of steps
        weight[:, :2] = 0
        weight[:, 2] = 127 * np.sign(weight[:, 2] + 0.5)
    arrays, stands_for = packed_inputs(weight, is_int8)
    bias = rng.integers(-2, 3, size).astype(np.float32)
    probes = rng.integers(0, size, (sources, beams, 3))
    inputs = [x, *arrays, packing.filled(bias, packing.LANES), np.array([n]), probes, np.array(dense)]
    constants = range(1, len(arrays) + 2)
    best, ids, normalizer, probed, log_probs = run(
        library, "HeadInt8" if is_int8 else "Head", inputs, 5, constants, threads, n_out=size
    )
    logits = x.astype(np.float64) @ stands_for.T.astype(np.float64) + bias
    expected = logits - (np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) + logits.max(1))[:, None]
    order = np.argsort(-np.round(logits, 3), axis=1, kind="stable")[:, :n]
    assert np.array_equal(ids.reshape(rows, n), order)
    assert best.reshape(rows, n) == pytest.approx(np.take_along_axis(expected, order, 1), rel=1e-5, abs=1e-4)
    assert normalizer.ravel() == pytest.approx((logits - expected)[:, 0], rel=1e-5)
    assert probed.reshape(rows, 3) == pytest.approx(
        np.take_along_axis(expected, probes.reshape(rows, 3), 1), rel=1e-5, abs=1e-4
    )
    assert log_probs.shape == ((sources, beams, size) if dense else (0, 0, size))
    if dense:
        assert log_probs.reshape(rows, size) == pytest.approx(expected, rel=1e-5, abs=1e-4)


def test_a_head_over_a_shortlist(library):
    rng = np.random.default_rng(9)
    x, weight, bias = normal(rng, 4, 24), normal(rng, 53, 24), normal(rng, 53)
    inputs = [x, packed_inputs(weight, False)[0][0], bias, np.array([3]), np.zeros((1, 4, 1), np.int64), np.array(True)]
    _, ids, _, _, log_probs = run(library, "Head", inputs, 5)
    logits = x @ weight.T + bias
    assert log_probs.shape == (1, 4, 53)
    assert np.array_equal(ids[0], np.argsort(-logits, axis=1)[:, :3])


def test_impossible_logits(library):
    weight, bias = np.zeros((40, 4), np.float32), np.full(40, -np.inf, np.float32)
    bias[[7, 20]] = 1.0, 2.0
    inputs = [np.ones((1, 4), np.float32), packed_inputs(weight, False)[0][0], packing.filled(bias, 16), np.array([5]),
              np.zeros((1, 1, 1), np.int64), np.array(False)]  # fmt: skip
    best, ids, normalizer, _, _ = run(library, "Head", inputs, 5, [1, 2], n_out=40)
    assert ids[0, 0, :2].tolist() == [20, 7] and ids[0, 0, 2:].tolist() == [0, 1, 2]
    assert best[0, 0, 2:].tolist() == [-np.inf] * 3 and np.isfinite(normalizer).all()


def test_what_is_no_number_stays_so(library):
    weight, bias = np.zeros((40, 4), np.float32), np.zeros(40, np.float32)
    bias[33] = np.nan
    packed = [packed_inputs(weight, False)[0][0], packing.filled(bias, 16)]
    inputs = [np.ones((1, 4), np.float32), *packed]
    asked = [np.array([5]), np.zeros((1, 1, 1), np.int64), np.array(True)]
    *_, normalizer, _, log_probs = run(library, "Head", [*inputs, *asked], 5, [1, 2], n_out=40)
    assert np.isnan(normalizer).all() and np.isnan(log_probs).all()
    for activation in ACTIVATIONS.values():
        (found,) = run(library, "Linear", inputs, 1, [1, 2], n_out=40, activation=activation)
        assert np.isnan(found[0]).tolist() == [i == 33 for i in range(40)]


def test_sizes_that_do_not_fit_are_an_error(library):
    weight = packed_inputs(np.zeros((40, 8), np.float32), False)[0][0]
    with pytest.raises(Exception, match="other sizes than its rows"):
        run(library, "Linear", [np.zeros((2, 9), np.float32), weight], 1, [1], n_out=40)
    with pytest.raises(Exception, match="do not fit each other"):
        cache = np.zeros((4, 1, 2, 1, 8), np.float32)
        table = np.zeros((1, 1, 5), np.int64)
        run(library, "SelfAttention", [np.zeros((1, 48), np.float32), cache, cache, table, np.array([0])], 3, scale=1.0)


def cases():
    """A right call of every operator: inputs, number of outputs, which inputs have one right size only, attributes."""
    rng = np.random.default_rng(11)
    weight, ids = normal(rng, 37, 22), rng.integers(0, 37, (3, 5))
    floats, bytes_ = (packed_inputs(weight, is_int8)[0] for is_int8 in (False, True))
    halves = [(floats[0].view(np.uint32) >> 16).astype(np.uint16)]
    x, bias, residual, norm = (
        normal(rng, 6, 22),
        packing.filled(normal(rng, 37), 16),
        normal(rng, 6, 37),
        normal(rng, 37),
    )
    asked = [np.array([4]), rng.integers(0, 37, (2, 3, 2)), np.array(True)]
    cache, source = normal(rng, 5, 2, 3, 2, 8), normal(rng, 2, 3, 7, 8)
    ancestors, mask = rng.integers(0, 2, (2, 2, 5)), np.ones((2, 7), np.int64)
    self_attention = [normal(rng, 4, 72), cache, cache, ancestors, np.array([3]), normal(rng, 3, 5)]
    encoder = [normal(rng, 10, 72), np.array([2, 5, 3, 8]), normal(rng, 2, 3, 5, 5)]
    return {
        "Linear": ([x, *floats, bias, residual, norm, norm], 2, (1, 2, 4, 5), {"n_out": 37}),
        "LinearInt8": ([x, *bytes_, bias, residual, norm, norm], 2, (1, 2, 3, 4, 6, 7), {"n_out": 37}),
        "LinearFp16": ([x, *halves, bias, residual, norm, norm], 2, (1, 2, 4, 5), {"n_out": 37}),
        "LinearBf16": ([x, *halves, bias, residual, norm, norm], 2, (1, 2, 4, 5), {"n_out": 37}),
        "EmbeddingFp16": ([ids, *halves], 1, (1,), {"width": 22, "n_rows": 37}),
        "EmbeddingBf16": ([ids, *halves], 1, (1,), {"width": 22, "n_rows": 37}),
        "TakeRowsBf16": ([ids.ravel(), *halves], 1, (), {"n_rows": 37}),
        "Embedding": ([ids, *floats], 1, (1,), {"width": 22, "n_rows": 37}),
        "EmbeddingInt8": ([ids, *bytes_[:2]], 1, (1, 2), {"width": 22, "n_rows": 37}),
        "TakeRows": ([ids.ravel(), *floats], 1, (), {"n_rows": 37}),
        "TakeRowsInt8": ([ids.ravel(), *bytes_], 3, (2, 3), {"n_rows": 37}),
        "SelfAttention": (self_attention, 3, range(4), {"scale": 1.0}),
        "CrossAttention": ([normal(rng, 4, 24), source, source, mask], 1, (1, 2), {"scale": 1.0}),
        "CrossAttentionFp16": ([normal(rng, 4, 24), *[source.astype("f2")] * 2, mask], 1, (1, 2), {"scale": 1.0}),
        "EncoderAttention": (encoder, 1, (0, 1), {"scale": 1.0}),
        "Head": ([x, *floats, bias, *asked], 5, (1, 2), {"n_out": 37}),
        "HeadInt8": ([x, *bytes_, bias, *asked], 5, (1, 2, 3, 4), {"n_out": 37}),
        "HeadFp16": ([x, *halves, bias, *asked], 5, (1, 2), {"n_out": 37}),
        "Norm": ([residual, norm, norm], 1, (1, 2), {"epsilon": 1e-5}),
        "Gate": ([x], 1, (), {"activation": 3}),
        "Windows": ([normal(rng, 2, 7, 3)], 1, (), {"width": 3, "stride": 2}),
    }


CASES = ("Linear", "LinearInt8", "Embedding", "EmbeddingInt8", "TakeRows", "TakeRowsInt8", "SelfAttention",
         "CrossAttention", "CrossAttentionFp16", "EncoderAttention", "Head", "HeadInt8", "LinearFp16", "LinearBf16",
         "EmbeddingFp16", "EmbeddingBf16", "TakeRowsBf16", "HeadFp16", "Norm", "Gate",
         "Windows")  # fmt: skip


def of_other_sizes(array):
    """The array cut, lengthened, flattened, without anything, and with a size in front."""
    for axis in range(array.ndim):
        yield np.ascontiguousarray(array.take(range(array.shape[axis] - 1), axis))
        yield np.concatenate([array, array.take([0], axis)], axis)
    if array.ndim != 1:
        yield array.ravel()
    yield array.ravel()[:0]
    yield array.ravel()[:0].reshape(0, *array.shape[1:]) if array.ndim else np.zeros((0,), array.dtype)
    yield array[None]


@pytest.mark.parametrize("case", CASES)
def test_inputs_of_other_sizes_are_refused_or_served(library, case):
    """One input at a time has other sizes, one attribute another value; whatever has one right size only is refused."""
    inputs, n_outputs, fixed, attributes = cases()[case]
    run(library, case, inputs, n_outputs, **attributes)
    served = []
    for i, array in enumerate(inputs):
        for other in of_other_sizes(np.asarray(array)):
            try:
                run(library, case, [*inputs[:i], other, *inputs[i + 1 :]], n_outputs, **attributes)
                served.append((i, other.shape))
            except RUNTIME_ERRORS as error:
                assert "s2s.cpu" in str(error) or "Invalid" in str(error) or "dimension" in str(error), error
    assert not [entry for entry in served if entry[0] in fixed]
    sized = {"n_out", "width", "n_rows"} if case != "Windows" else set()  # whose width is no size of an input
    for name in sized & attributes.keys():
        for value in (-1, 1, attributes[name] + 16, 2**31, 2**40):
            with pytest.raises(RUNTIME_ERRORS, match="s2s.cpu"):
                run(library, case, inputs, n_outputs, **{**attributes, name: value})


def test_windows_of_no_width_are_refused(library):
    inputs, n_outputs, _, attributes = cases()["Windows"]
    for name, values in (("width", (-1, 0, 2, 2**31 + 1, 2**40 + 1)), ("stride", (-1, 0, 2**31, 2**40))):
        for value in values:
            with pytest.raises(RUNTIME_ERRORS, match="s2s.cpu"):
                run(library, "Windows", inputs, n_outputs, **{**attributes, name: value})


def test_values_that_point_outside_are_refused(library):
    inputs, n_outputs, _, attributes = cases()["SelfAttention"]
    for i, value in ((3, 2), (3, -1), (4, 5), (4, -1)):
        wrong = inputs[i].copy()
        wrong.flat[0] = value
        with pytest.raises(RUNTIME_ERRORS, match="s2s.cpu"):
            run(library, "SelfAttention", [*inputs[:i], wrong, *inputs[i + 1 :]], n_outputs, **attributes)
    placed = [*inputs[:4], np.array([3, 0]), inputs[5], np.array([1, 0])]
    run(library, "SelfAttention", placed, n_outputs, **attributes)
    for i, values in ((4, [3, 5]), (4, [3, -1]), (4, [3, 0, 0]), (6, [1, 2]), (6, [-1, 0]), (6, [1]), (6, [[1, 0]])):
        with pytest.raises(RUNTIME_ERRORS, match="s2s.cpu"):
            run(library, "SelfAttention", [*placed[:i], np.array(values), *placed[i + 1 :]], n_outputs, **attributes)
    inputs, n_outputs, _, attributes = cases()["CrossAttention"]
    for values in ([1, 2], [-1, 0], [[1, 0]]):
        with pytest.raises(RUNTIME_ERRORS, match="s2s.cpu"):
            run(library, "CrossAttention", [*inputs, np.array(values)], n_outputs, **attributes)
    inputs, n_outputs, _, attributes = cases()["EncoderAttention"]
    for sizes in (
        [1, 5, 3, 8],
        [2, 5, 6, 4],
        [5, 2, 3, 8],
        [-2, -5, 3, 8],
        [2, 5, 2**40, 8],
        [2, 5, 0, 8],
        [10, 1, 3, 8],
    ):
        with pytest.raises(RUNTIME_ERRORS, match="s2s.cpu"):
            run(library, "EncoderAttention", [inputs[0], np.array(sizes), inputs[2]], n_outputs, **attributes)


def test_rows_that_are_no_numbers(library):
    """int8 rows: the whole row is NaN, and no other."""
    inputs, _, _, attributes = cases()["LinearInt8"]
    for value in (np.nan, np.inf, -np.inf):
        x = inputs[0].copy()
        x[2, 21] = value
        (found,) = run(library, "LinearInt8", [x, *inputs[1:5]], 1, **attributes)
        assert np.isnan(found[2]).all() and np.isfinite(np.delete(found, 2, axis=0)).all()


@pytest.mark.parametrize("n", [5, 300])
def test_candidates_of_logits_that_are_no_numbers(library, n):
    """Ids are tokens, whatever the logits are."""
    x, weight = np.full((1, 4), np.nan, np.float32), np.ones((400, 4), np.float32)
    asked = [np.array([n]), np.zeros((1, 1, 1), np.int64), np.array(False)]
    best, ids, *_ = run(library, "Head", [x, *packed_inputs(weight, False)[0], None, *asked], 5, [1], n_out=400)
    assert ((ids >= 0) & (ids < 400)).all() and len(set(ids.ravel().tolist())) == n
    assert not np.isfinite(best).any()
