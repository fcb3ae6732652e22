"""Random cases for the kernels of plugins/transformer: arguments, what numpy gives for them, and how near it must be.

Letters as in plugins/transformer/parameters.h.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import plugin_sources
from ...runtime.cuda.interface import Device, Launch

structures = plugin_sources.module("transformer.structures")
launches = plugin_sources.module("transformer.launches")
fragments = plugin_sources.module("transformer.fragments")
search = plugin_sources.module("beam_search.structures")
reference = plugin_sources.module("transformer.reference")
tolerances = plugin_sources.module("transformer.tolerances")

Array = NDArray[Any]
EFFECTS, NAMED = search.EFFECTS, search.NAMED
MOST_ROWS = 80  # of a product


def dtype_of(element: str) -> Any:
    """numpy's type of activations beside weights of an element."""
    return fragments.dtype(fragments.activations(element))


def allowed(stored: str, expected: Array, size: Array | float, rounded_first: str = "") -> Array:
    """See plugins/transformer/tolerances.py. Elements are those of weights."""
    names = (fragments.activations(stored), fragments.activations(rounded_first))
    return np.asarray(tolerances.allowed(names[0], expected, size, names[1]))


def stored(weight: Array, element: str, prefix: str = "") -> tuple[dict[str, Array], Array]:
    """A weight [O, I] as the fields that kernels read, and its exact value."""
    if element != "int8":
        rounded = weight.astype(dtype_of(element))
        return {f"{prefix}weight": fragments.pack(rounded, element)}, rounded.astype(np.float64)
    numbers, scale = fragments.quantized(weight)
    exact = numbers.astype(np.float64) * scale[:, None]
    return {f"{prefix}weight": fragments.pack(numbers, element), f"{prefix}weight_scale": scale}, exact


@dataclass
class Case:
    """One launch. read, written: arrays by the argument's field, "part.field" in a part of it; what is written begins
    as NaN, or as given.

    within: fields that point into another field's array, with their offset in bytes.
    expected: by field the result and the largest difference from it.
    """

    launch: Launch
    given: ctypes.Structure
    read: dict[str, Array]
    written: dict[str, Array]
    expected: dict[str, tuple[Array, Array]]
    within: Mapping[str, tuple[str, int]] = field(default_factory=dict)

    def run(self, device: Device) -> dict[str, Array]:
        """The written arrays."""
        element = next(one for one in launches.ELEMENTS if f"_{one}" in self.launch.kernel)
        kernels, stream = device.kernels(launches.folder(element), launches.any_kernel(element)), device.create_stream()
        arrays = {name: np.ascontiguousarray(array) for name, array in {**self.read, **self.written}.items()}
        at = {name: device.allocate(array.nbytes, name) for name, array in arrays.items()}
        try:
            for name, array in arrays.items():
                device.to_device(at[name], array, stream)
                self._point(name, at[name])
            for name, (other, offset) in self.within.items():
                self._point(name, at[other] + offset)
            kernels.run(self.launch, self.given, stream)
            found = {name: arrays[name].copy() for name in self.written}
            for name, array in found.items():
                device.to_host(array, at[name], stream)
            device.synchronize(stream)
            return found
        finally:
            for address in at.values():
                device.free(address)
            device.destroy_stream(stream)

    def _point(self, name: str, address: int) -> None:
        *parts, field_name = name.split(".")
        given = self.given
        for part in parts:
            given = getattr(given, part)
        if hasattr(given, field_name):
            setattr(given, field_name, address)

    def error(self, found: Mapping[str, Array]) -> float:
        """The largest error as a share of what is allowed; infinite where something is not finite that should be."""
        worst = 0.0
        for name, (expected, limits) in self.expected.items():
            values = found[name].astype(np.float64)
            lowest = np.isneginf(expected)
            if not np.array_equal(np.isneginf(values), lowest) or not np.isfinite(values[~lowest]).all():
                return float("inf")
            values, expected, limits = values[~lowest], expected[~lowest], limits[~lowest]
            worst = max(worst, float((np.abs(values - expected) / limits).max(initial=0.0)))
        return worst


def nothing(shape: tuple[int, ...], dtype: Any) -> Array:
    return np.full(shape, np.nan).astype(dtype)


def product(rng: np.random.Generator, element: str, rows: int = 0, blocks: int = 0) -> Case:
    """rows: R, or any. blocks: over the outputs, if not as many as usual; each then has several tiles."""
    rows = rows or int(rng.integers(1, MOST_ROWS))
    n_in, n_out = (16 * int(n) for n in rng.integers(1, [12, 24]))
    true_in = n_in - int(rng.integers(0, 8))
    with_norm = launches.is_skinny(rows) and bool(rng.random() < 0.6)
    is_gated, has_bias, has_residual = (bool(one) for one in rng.random(3) < (0.3, 0.7, 0.6))
    activation = str(rng.choice(structures.ACTIVATIONS))
    is_maxout = is_gated and bool(rng.random() < 0.5)
    dtype, scale = dtype_of(element), float(rng.choice([1.0, 0.25]))
    limit = n_out // 2 if is_gated else n_out - int(rng.integers(0, 5))  # a vocabulary need not be a multiple of 16
    of_weight, weight = stored(fragments.filled(rng.standard_normal((n_out, true_in)) / 4, n_out, n_in), element)
    x = fragments.filled(rng.standard_normal((rows, true_in)), rows, n_in).astype(np.float32 if with_norm else dtype)
    read = {**of_weight, "input": x}
    written: dict[str, Array] = {}
    wide = x.astype(np.float64)
    if with_norm:
        norm, keeps = _norm(rng, true_in, n_in), bool(rng.random() < 0.5)
        read |= {f"norm_{name}": array for name, array in norm.items()}
        parts = _parts(rng, rows, true_in, n_in) if rng.random() < 0.4 else {}
        read |= parts
        wide = total = wide + _sum_of(parts)
        wide = reference.normed(wide, norm["weight"], norm.get("bias"), 1e-5, true_in)
        written |= {name: nothing(x.shape, np.float32) for name in (("normed", "sum") if keeps else ())}
    bias = None
    if has_bias:
        bias = read["bias"] = rng.standard_normal(n_out).astype(np.float32)
    if has_residual:
        read["residual"] = rng.standard_normal((rows, limit)).astype(np.float32)
    elements = {"output": element, "output_float": "fp32"}
    names = [("output",), ("output_float",), ("output", "output_float")][int(rng.integers(3))]
    for name in names:
        written[name] = nothing((rows, limit), np.float32 if elements[name] == "fp32" else dtype_of(element))
    given = structures.ProductParameters(
        rows=rows, inputs=n_in, outputs=n_out, stride=limit, limit=limit, true_width=true_in,
        activation=structures.ACTIVATIONS.index(activation), gated=int(is_gated) + int(is_maxout), epsilon=1e-5,
        scale=scale,
        norm_weight=1 if with_norm else None, n_parts=len(read.get("parts", ())),
    )  # fmt: skip
    launch = launches.product(element, given)
    if blocks and launches.is_skinny(rows):
        launch = type(launch)(launch.kernel, (blocks, *launch.grid[1:]), launch.threads)
    if is_maxout:
        result, size = _product(wide, weight, bias, "linear", False, scale)
        result, size = (np.maximum(*(half.T for half in fragments.parted(one.T))) for one in (result, size))
    else:
        result, size = _product(wide, weight, bias, activation, is_gated, scale)
    result, size = result[:, :limit], size[:, :limit]
    if has_residual:
        result, size = result + read["residual"], size + np.abs(read["residual"])
    rounded = element if with_norm else ""
    expected = {name: (result, allowed(elements[name], result, size, rounded)) for name in names}
    if "normed" in written:
        expected["normed"] = (wide, allowed("fp32", wide, 10 + np.abs(wide)))
        expected["sum"] = (total, allowed("fp32", total, 10.0))
    return Case(launch, given, read, written, expected)


def _norm(rng: np.random.Generator, true_width: int, width: int) -> dict[str, Array]:
    """Weight, and bias where it is a LayerNorm."""
    found = {"weight": fragments.filled(1 + rng.random(true_width).astype(np.float32), width)}
    if rng.random() < 0.6:
        found["bias"] = fragments.filled(rng.standard_normal(true_width).astype(np.float32), width)
    return found


def _parts(rng: np.random.Generator, rows: int, true_width: int, width: int) -> dict[str, Array]:
    """What is added to rows before their norm; the bias is left out at times."""
    n = int(rng.integers(1, 5))
    found = {"parts": fragments.filled(rng.standard_normal((n, rows, true_width)).astype(np.float32), n, rows, width)}
    if rng.random() < 0.5:
        found["parts_bias"] = fragments.filled(rng.standard_normal(true_width).astype(np.float32), width)
    return found


def _sum_of(parts: Mapping[str, Array]) -> Array | float:
    return parts["parts"].astype(np.float64).sum(axis=0) + parts.get("parts_bias", 0.0) if parts else 0.0


def _product(
    rows: Array, weight: Array, bias: Array | None, activation: str, is_gated: bool, scale: float
) -> tuple[Array, Array]:
    """The product, and the size of the terms that were added up for it."""

    def size(weight: Array, bias: Array | None) -> Array:
        return np.asarray(np.abs(rows) @ np.abs(weight).T * scale + (0 if bias is None else np.abs(bias)))

    if not is_gated:  # slopes of the activations are below 1.2
        return reference.product(rows, weight, bias, activation, scale=scale), 1.2 * size(weight, bias)
    (gate, inner), (gate_bias, inner_bias) = fragments.parted(weight), (None, None)
    if bias is not None:
        gate_bias, inner_bias = fragments.parted(bias)
    result = reference.product(rows, inner, inner_bias, activation, gate, gate_bias, scale)
    of_gate, of_inner = size(gate, gate_bias), size(inner, inner_bias)
    return result, 2.4 * of_gate * (1 + of_inner) + of_inner  # each multiplies the other's errors


def wide_norm(rng: np.random.Generator, element: str, width: int = 0) -> Case:
    """A product that begins with the norm of wide rows."""
    width = width or int(rng.choice([512, 528, 1024, 2048]))
    of_weight, exact = stored(rng.standard_normal((16, width)), element)
    norm = {name: rng.standard_normal(width).astype(np.float32) for name in ("norm_weight", "norm_bias")}
    x = 3 + rng.standard_normal((2, width)).astype(np.float32)
    given = structures.ProductParameters(
        rows=2, inputs=width, outputs=16, stride=16, limit=16, true_width=width, epsilon=1e-5, scale=1.0, norm_weight=1
    )
    launch = launches.product(element, given)
    rows = reference.normed(x.astype(np.float64), norm["norm_weight"], norm["norm_bias"], 1e-5, width)
    limits = allowed("fp32", rows @ exact.T, np.abs(rows) @ np.abs(exact).T, element)
    read = {**of_weight, "input": x, **norm}
    written = {"output_float": nothing((2, 16), np.float32)}
    return Case(launch, given, read, written, {"output_float": (rows @ exact.T, limits)})


def finish_rows(rng: np.random.Generator, element: str) -> Case:
    """What follows a product that a library computed, of which some sums are too large for the element."""
    rows, n_out, is_gated = int(rng.integers(33, MOST_ROWS)), 16 * int(rng.integers(1, 40)), bool(rng.random() < 0.4)
    activation, dtype = str(rng.choice(structures.ACTIVATIONS)), dtype_of(element)
    sums = (3 * rng.standard_normal((rows, n_out))).astype(dtype)
    if element != "bf16":
        sums[:2, :8], sums[2:4, :8] = np.inf, -np.inf
    wide = np.clip(sums.astype(np.float64), -65504, 65504) if element != "bf16" else sums.astype(np.float64)
    inner = np.ones((rows, n_out))
    if is_gated:
        gate, other = fragments.parted(wide.T)
        wide, inner = gate.T, other.T
    result = reference.activated(wide, activation) * inner if is_gated else reference.activated(wide, activation)
    residual = rng.standard_normal(result.shape).astype(np.float32) if rng.random() < 0.5 else None
    total = result if residual is None else result + residual
    outputs = result.shape[1]
    given = structures.ProductParameters(
        rows=rows, outputs=n_out, stride=outputs, limit=outputs, activation=structures.ACTIVATIONS.index(activation),
        gated=int(is_gated),
    )  # fmt: skip
    bounded = np.clip(total, -65504, 65504) if element != "bf16" else total
    size = 4 + 2 * np.abs(total)  # of activations, whose own steps lose about a unit of fp32
    written = {"output": nothing(total.shape, dtype), "output_float": nothing(total.shape, np.float32)}
    expected = {
        "output": (bounded, allowed(element, bounded, size)), "output_float": (total, allowed("fp32", total, size))
    }  # fmt: skip
    read = {"input": sums, **({} if residual is None else {"residual": residual})}
    return Case(launches.finish_rows(element, given), given, read, written, expected)


def norm_rows(rng: np.random.Generator, element: str) -> Case:
    rows, true_width = int(rng.integers(1, 20)), int(rng.integers(5, 2100))
    width = fragments.rounded(true_width)
    x = fragments.filled(rng.standard_normal((rows, true_width)), rows, width).astype(np.float32)
    norm = _norm(rng, true_width, width)
    result = reference.normed(x.astype(np.float64), norm["weight"], norm.get("bias"), 1e-6, true_width)
    given = structures.NormParameters(rows=rows, width=width, true_width=true_width, epsilon=1e-6)
    written = {"output": nothing(x.shape, dtype_of(element)), "output_float": nothing(x.shape, np.float32)}
    expected = {
        name: (result, allowed(one, result, 10 + np.abs(result)))
        for name, one in (("output", element), ("output_float", "fp32"))
    }
    return Case(launches.norm(element, given), given, {"input": x, **norm}, written, expected)


def embed(rng: np.random.Generator, element: str, how: str = "") -> Case:
    """how: where the row of the table of positions comes from."""
    how = how or str(rng.choice(["rows", "offset", "padding", "padding moves", "none"]))
    of_table, table = stored(rng.standard_normal((48, 32)), element)
    positions = rng.standard_normal((16, 32)).astype(dtype_of(element))
    ids, at = np.array([3, 1, 47, 1, 20], np.int64), np.full(5, 6)  # position + offset
    read = {"embedding": of_table["weight"], "ids": ids, "position": np.array([4], np.int64)}
    if "weight_scale" in of_table:
        read["embedding_row_scales"] = of_table["weight_scale"]
    if how != "none":
        read["positions"] = fragments.pack(positions, fragments.activations(element))
    if how == "rows":
        at = read["rows_of_positions"] = np.array([0, 5, 1, 2, 15], np.int32)
    elif how.startswith("padding"):
        at = np.where(ids == 1, 5 if how == "padding moves" else 1, at)
    given = structures.EmbedParameters(
        rows=5, width=32, vocabulary=48, n_positions=16, offset=2, padding_id=1 if how.startswith("padding") else -1,
        padding_moves=int(how == "padding moves"), scale=1.5,
    )  # fmt: skip
    result = 1.5 * table[ids] + (0 if how == "none" else positions[at].astype(np.float64))
    written = {"output": nothing((5, 32), dtype_of(element)), "output_float": nothing((5, 32), np.float32)}
    expected = {
        name: (result, allowed(one, result, 1 + np.abs(result)))
        for name, one in (("output", element), ("output_float", "fp32"))
    }
    return Case(launches.embed(element, given), given, read, written, expected)


def windows(rng: np.random.Generator, element: str, by_channel: bool | None = None) -> Case:
    """by_channel: of the input as features lie, in fp32; else as rows of the element."""
    by_channel = bool(rng.integers(2)) if by_channel is None else by_channel
    B, length, channels, step = (int(rng.integers(1, n)) for n in (4, 20, 40, 3))
    size = int(rng.choice([1, 3, 5]))
    padding, inputs = size // 2, fragments.rounded(size * channels) + 16 * int(rng.integers(2))
    x = rng.standard_normal((B, length, channels)).astype(np.float32 if by_channel else dtype_of(element))
    expected = reference.windows(x, size, step, padding, inputs).astype(dtype_of(element)).astype(np.float64)
    S = expected.shape[1]
    given = structures.WindowParameters(
        positions=S, length=length, channels=channels, inputs=inputs, size=size, step=step, padding=padding,
        by_channel=int(by_channel),
    )  # fmt: skip
    read = {"input": np.ascontiguousarray(x.swapaxes(1, 2)) if by_channel else x}
    written = {"output": nothing((B, S, inputs), dtype_of(element))}
    limits = np.full(expected.shape, 1e-30)  # rounded once, as numpy rounds
    return Case(launches.windows(element, given, B), given, read, written, {"output": (expected, limits)})


def self_attention(rng: np.random.Generator, element: str, K: int = 0, D: int = 0) -> Case:
    B, H, K, D = 2, 2, K or int(rng.integers(1, 17)), D or 16 * int(rng.integers(1, 9))
    C, dtype = int(rng.choice([5, 20])), dtype_of(element)
    position = int(rng.integers(0, C))
    rows = rng.standard_normal((B, K, 3, H, D)).astype(dtype)
    caches = {name: rng.standard_normal((B, H, C, K, D)).astype(dtype) for name in ("key_cache", "value_cache")}
    for cache in caches.values():
        cache[:, :, position] = np.nan  # what no beam may read before it is written
        cache[:, :, position + 1 :] = 0
    ancestors = rng.integers(0, K, (B, K, C))
    read = {"rows": rows, "ancestors": ancestors, "position": np.array([position], np.int64)}
    table = rng.standard_normal((H, 7)).astype(np.float32) if rng.random() < 0.5 else None
    read |= {} if table is None else {"bias": table}
    given = structures.SelfAttentionParameters(
        sources=B, heads=H, beams=K, head_size=D, capacity=C, first_distance=-6, n_distances=7, scale=D**-0.5
    )
    query, key, value = (rows[:, :, i].astype(np.float64).transpose(0, 2, 1, 3) for i in range(3))  # [B,H,K,D]
    after = {name: cache.astype(np.float64) for name, cache in caches.items()}
    after["key_cache"][:, :, position], after["value_cache"][:, :, position] = key, value
    result, times = np.zeros((B, K, H, D)), np.arange(position + 1)
    for b in range(B):
        for k in range(K):
            chosen = np.where(times == position, k, ancestors[b, k, : position + 1])
            keys, values = (after[name][b, :, times, chosen].transpose(1, 0, 2) for name in caches)
            bias = None if table is None else reference.biases(table, -6, times - position)[:, None]
            seen = np.ones((1, position + 1), bool)
            result[b, k] = reference.attention(query[b, :, k][:, None], keys, values, seen, D**-0.5, bias)[:, 0]
    # Of the caches, what was there and this step's; later slots stay as they are.
    expected = {"output": (result, allowed(element, result, 5.0))}
    for name, cache in after.items():
        cache[:, :, position + 1 :] = 0
        expected[name] = (cache, np.full(cache.shape, 1e-30))
    written = {"output": nothing((B, K, H, D), dtype), **caches}
    return Case(launches.self_attention(element, given), given, read, written, expected)


def cross_attention(rng: np.random.Generator, element: str, K: int = 0, D: int = 0) -> Case:
    """Of the third of three layers, whose keys and values lie between others'; one source has nothing real."""
    B, H, K, D = 2, 2, K or int(rng.integers(1, 17)), D or 16 * int(rng.integers(1, 9))
    S, dtype = int(rng.choice([1, 9, 70])), dtype_of(element)
    query = rng.standard_normal((B, K, H, D)).astype(dtype)
    states = rng.standard_normal((B, S, 3, 2, H, D)).astype(dtype)
    mask = (rng.random((B, S)) < 0.7).astype(np.int32)
    mask[0] = 0
    given = structures.CrossAttentionParameters(
        sources=B, heads=H, beams=K, head_size=D, length=S, stride=6 * H * D, scale=D**-0.5
    )
    result = _attended(query.astype(np.float64), states, mask)
    layer, both = 2 * 2 * H * D * dtype.itemsize, H * D * dtype.itemsize
    return Case(
        launches.cross_attention(element, given), given, {"query": query, "states": states, "mask": mask},
        {"output": nothing(result.shape, dtype)}, {"output": (result, allowed(element, result, 5.0))},
        {"keys": ("states", layer), "values": ("states", layer + both)},
    )  # fmt: skip


def cross_weights(rng: np.random.Generator, element: str) -> Case:
    """The weights of some heads, in a list's order, between others'."""
    inner = cross_attention(rng, element)
    read, (B, K, H, D) = inner.read, inner.read["query"].shape
    heads = [int(head) for head in rng.permutation(H)[: rng.integers(1, H + 1)]]
    key, mask = read["states"][:, :, 2, 0].astype(np.float64), read["mask"][:, None, None] != 0
    scores = np.einsum("bkhd,bshd->bkhs", read["query"].astype(np.float64), key) * D**-0.5
    scores = np.where(mask.any(axis=-1, keepdims=True), np.where(mask, scores, -np.inf), 0)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    first, n_all = int(rng.integers(3)), len(heads) + 3
    given = structures.CrossWeightsParameters(
        attention=inner.given, n_all=n_all, first=first, n_heads=len(heads), listed=tuple(heads)
    )
    found = np.full((B, K, n_all, weights.shape[-1]), -np.inf)
    written, limits = {"weights": found.astype(np.float32)}, np.full(found.shape, 1e-5)
    found[:, :, first : first + len(heads)] = weights[:, :, heads]
    own = {f"attention.{name}" if name != "states" else name: array for name, array in read.items()}
    within = {"attention.keys": inner.within["keys"]}
    return Case(launches.cross_weights(element, given), given, own, written, {"weights": (found, limits)}, within)


def cross_parts(rng: np.random.Generator, element: str) -> Case:
    """A source among several blocks: what each of them finds. The last of them may have no position."""
    case = cross_attention(rng, element)
    given, read = case.given, case.read
    splits = int(rng.integers(2, 6))
    given.splits = splits
    x, y, z = case.launch.grid
    query, (B, K, H, D) = read["query"].astype(np.float64), read["query"].shape
    key, value = (read["states"][:, :, 2, i].astype(np.float64) for i in range(2))
    scores = np.einsum("bkhd,bshd->bkhs", query, key) * D**-0.5
    scores = np.where(read["mask"][:, None, None] != 0, scores, -np.inf)
    each = -(-given.length // splits)
    found = np.zeros((B, K, H, splits, D + 2))
    for i in range(splits):
        some = scores[..., i * each : (i + 1) * each]
        largest = some.max(axis=-1, initial=-np.inf)
        weights = np.where(np.isfinite(some), np.exp(some - np.where(np.isfinite(largest), largest, 0)[..., None]), 0)
        found[..., i, :D] = np.einsum("bkhs,bshd->bkhd", weights, value[:, i * each : (i + 1) * each])
        found[..., i, D] = np.where(np.isfinite(largest), largest, np.float32(-3.402823466e38))
        found[..., i, D + 1] = weights.sum(axis=-1)
    limits = 2e-5 * (1 + np.abs(found[..., -1:])) * np.ones(found.shape)
    launch = plugin_sources.module("common.nodes").Launch(case.launch.kernel, (x * splits, y, z), case.launch.threads)
    written = {"parts": nothing(found.shape, np.float32)}
    return Case(launch, given, read, written, {"parts": (found, limits)}, case.within)


def merge_cross(rng: np.random.Generator, element: str) -> Case:
    """The other half: one of its rows has no real position, and gets the mean of the values."""
    case = cross_attention(rng, element)
    given, read, splits = case.given, case.read, int(rng.integers(2, 6))
    given.splits = splits
    B, K, H, D = read["query"].shape
    parts = rng.standard_normal((B, K, H, splits, D + 2)).astype(np.float32)
    parts[..., D + 1] = 1 + rng.random((B, K, H, splits))
    parts[:, :, :, 0] = [0.0] * D + [-3.402823466e38, 0.0]  # a block without a real position
    parts[0] = parts[0, 0, 0, 0]
    exact = parts[1:].astype(np.float64)
    weights = np.exp(exact[..., D] - exact[..., D].max(axis=-1, keepdims=True))
    sums = np.einsum("bkhs,bkhsd->bkhd", weights, exact[..., :D])
    rest = sums / (weights * exact[..., D + 1]).sum(axis=-1)[..., None]
    mean = np.broadcast_to(read["states"][:1, :, 2, 1].astype(np.float64).mean(axis=1)[:, None], (1, K, H, D))
    result = np.concatenate([mean, rest])
    read = {"parts": parts, "states": read["states"]}
    expected = {"output": (result, allowed(element, result, 5.0))}
    return Case(launches.merge_cross(element, given), given, read, case.written, expected, case.within)


def _attended(query: Array, states: Array, mask: Array) -> Array:
    """query [B, K, H, D] over the third layer of states [B, S, 3, 2, H, D]: [B, K, H, D]."""
    key, value = (states[:, :, 2, i].astype(np.float64).transpose(0, 2, 1, 3) for i in range(2))
    visible = np.broadcast_to(mask[:, None, None] != 0, (*key.shape[:2], query.shape[1], key.shape[2]))
    found = reference.attention(query.transpose(0, 2, 1, 3), key, value, visible, query.shape[-1] ** -0.5)
    return np.asarray(found.transpose(0, 2, 1, 3))


def self_block(rng: np.random.Generator, element: str, K: int = 0, D: int = 0) -> Case:
    """Self-attention, and what each head adds to the output projection."""
    inner = self_attention(rng, element, K, D)
    result, _ = inner.expected.pop("output")
    written = {f"attention.{name}": array for name, array in inner.written.items() if name != "output"}
    read = {f"attention.{name}": array for name, array in inner.read.items()}
    expected = {f"attention.{name}": found for name, found in inner.expected.items()}
    of_weight, weight, found = _projected(rng, element, result)
    output = structures.HeadOutputParameters(outputs=weight.shape[0])
    given = structures.SelfBlockParameters(attention=inner.given, output=output)
    return Case(
        launches.self_block(element, given), given, {**read, **of_weight},
        {**written, "output.parts": nothing(found[0].shape, np.float32)}, {**expected, "output.parts": found},
    )  # fmt: skip


def cross_block(rng: np.random.Generator, element: str, K: int = 0, D: int = 0, width: int = 0) -> Case:
    """Norm of a stream to which parts are added, query, cross-attention, and what each head adds to the projection."""
    inner = cross_attention(rng, element, K, D)
    B, K, H, D = inner.read["query"].shape
    rows, true_in = B * K, int(rng.integers(1, width or 400))
    n_in = fragments.rounded(width or true_in)
    x = fragments.filled(rng.standard_normal((rows, true_in)).astype(np.float32), rows, n_in)
    norm, parts = _norm(rng, true_in, n_in), _parts(rng, rows, true_in, n_in)
    total = x + _sum_of(parts)
    wide = reference.normed(total, norm["weight"], norm.get("bias"), 1e-5, true_in)
    of_query_weight, query_weight = stored(rng.standard_normal((H * D, n_in)) / np.sqrt(true_in), element, "query.")
    bias = rng.standard_normal(H * D).astype(np.float32)
    query = reference.product(wide, query_weight, bias)
    result = _attended(query.reshape(B, K, H, D), inner.read["states"], inner.read["mask"])
    of_weight, weight, (terms, limits) = _projected(rng, element, result)
    read = {f"query.norm_{name}": array for name, array in norm.items()}
    read |= {f"query.{name}": array for name, array in parts.items()}
    read |= {"query.input": x, "query.bias": bias, **of_query_weight, **of_weight}
    read |= {"states": inner.read["states"], "attention.mask": inner.read["mask"]}
    of_query = structures.ProductParameters(
        rows=rows, inputs=n_in, outputs=H * D, true_width=true_in, epsilon=1e-5, scale=1.0, norm_weight=1,
        n_parts=len(parts["parts"]),
    )  # fmt: skip
    output = structures.HeadOutputParameters(outputs=weight.shape[0])
    given = structures.CrossBlockParameters(query=of_query, attention=inner.given, output=output)
    # A query that is off by a unit moves scores, and by them the weights of values: a few units, as scores are small.
    unit = 16 * float(np.finfo(np.float16).eps if element != "bf16" else 2.0**-7)
    expected = {
        "output.parts": (terms, limits + unit * np.abs(weight).sum(axis=1).max() / np.sqrt(D)),
        "query.normed": (wide, allowed("fp32", wide, 10 + np.abs(wide))),
        "query.sum": (total, allowed("fp32", total, 10.0)),
    }
    written = {name: nothing(array.shape, np.float32) for name, (array, _) in expected.items()}
    within = {f"attention.{name}": place for name, place in inner.within.items()}
    return Case(launches.cross_block(element, given), given, read, written, expected, within)


def _projected(
    rng: np.random.Generator, element: str, result: Array
) -> tuple[dict[str, Array], Array, tuple[Array, Array]]:
    """A weight [O, H*D] as fields and exactly, and each head's term [H, B*K, O] of the projection of `result`
    [B, K, H, D]."""
    B, K, H, D = result.shape
    outputs = 16 * int(rng.integers(1, 12))
    of_weight, weight = stored(rng.standard_normal((outputs, H * D)) / np.sqrt(D), element, "output.")
    by_head, rows = weight.reshape(outputs, H, D), result.reshape(B * K, H, D)
    terms = np.einsum("rhd,ohd->hro", rows, by_head)
    size = np.einsum("rhd,ohd->hro", 1 + np.abs(rows), np.abs(by_head))
    return of_weight, weight, (terms, allowed("fp32", terms, size, element))


def head_candidates(rng: np.random.Generator, element: str, rows: int = 0, only: bool | None = None) -> Case:
    """The output projection's best tokens with banned ones among them, or with only some allowed. Products are whole
    numbers, so that equal logits are equal and the order of ties counts."""
    rows, n_in, M = rows or int(rng.integers(1, 33)), 16 * int(rng.integers(1, 6)), int(rng.integers(1, 9))
    vocabulary = 128 * int(rng.integers(1, 4)) + int(rng.integers(20, 128))
    only = bool(rng.random() < 0.3) if only is None else only
    n_out = fragments.rounded(vocabulary)
    weight = fragments.filled(rng.integers(-2, 3, (vocabulary, n_in)), n_out, n_in)
    x = rng.integers(-2, 3, (rows, n_in)).astype(dtype_of(element))
    banned = rng.choice(vocabulary, 5, replace=False).astype(np.int32)
    history = rng.integers(0, vocabulary, (rows, 6)).astype(np.int32)
    listed = {"which": NAMED.index("listed"), "last_length": 99}
    allowed_ids = np.sort(rng.choice(np.setdiff1d(np.arange(vocabulary), banned), 9, replace=False)).astype(np.int32)
    rules = [
        search.DeviceRule(effect=EFFECTS.index("ban"), which=NAMED.index("history"), last_length=99),
        *([search.DeviceRule(effect=EFFECTS.index("only"), first_id=5, count=9, **listed)] if only else []),
        search.DeviceRule(effect=EFFECTS.index("ban"), count=5, **listed),
        search.DeviceRule(effect=EFFECTS.index("ban"), count=5, which=0, first_length=50, last_length=99),  # not yet
    ]
    logits = x.astype(np.float64) @ weight[:vocabulary].T
    edited = logits.copy()
    for row in range(rows):
        edited[row, history[row, :4]] = -np.inf  # of a text of four tokens
    if only:
        edited[:] = -np.inf
        edited[:, allowed_ids] = 0.0
    edited[:, banned] = -np.inf
    lists = launches.candidate_lists(rows, n_in, vocabulary, M)
    ids, values = np.zeros((rows, lists, M), np.int64), np.zeros((rows, lists, M))
    maxima, sums = np.zeros((rows, lists)), np.zeros((rows, lists))
    for number in range(lists):
        mine = np.flatnonzero(np.arange(vocabulary) // 128 % lists == number)
        order = np.argsort(-edited[:, mine], axis=1, kind="stable")[:, :M]
        ids[:, number], values[:, number] = mine[order], np.take_along_axis(edited[:, mine], order, 1)
        maxima[:, number] = logits[:, mine].max(axis=1)
        sums[:, number] = np.exp(logits[:, mine] - maxima[:, number, None]).sum(axis=1)
    if only:
        maxima[:], sums[:] = -np.inf, 0.0
        maxima[:, 0], sums[:, 0] = 0.0, 1.0
    of_rules = search.RulesParameters(beams=1, n_sources=rows, vocabulary=vocabulary, history_width=6, source_width=1)
    product = structures.ProductParameters(rows=rows, inputs=n_in, outputs=n_out, limit=vocabulary, scale=1.0)
    given = structures.HeadParameters(product=product, rules=of_rules, candidates=M, lists=lists)
    read = {"product.input": x, "product.weight": fragments.pack(weight, element), "rules.history": history}
    if element == "int8":
        read["product.weight_scale"] = np.ones(n_out, np.float32)
    read |= {"rules.sources": np.full((rows, 1), -1, np.int32), "rules.position": np.array([3], np.int64)}
    read |= {"rules.ids": np.concatenate([banned, allowed_ids]), "rules.n_rules": np.array([len(rules)], np.int32)}
    read |= {"rules.rules": np.frombuffer(b"".join(bytes(rule) for rule in rules), np.uint8)}
    written = {"list_values": nothing(values.shape, np.float32), "list_ids": np.full(ids.shape, -7, np.int32)}
    written |= {name: nothing(maxima.shape, np.float32) for name in ("list_maximum", "list_sum")}
    expected = {
        "list_values": (values, np.full(values.shape, 1e-30)),
        "list_ids": (ids, np.full(ids.shape, 0.5)),
        "list_maximum": (maxima, np.full(maxima.shape, 1e-30)),
        "list_sum": (sums, 1e-5 * (1 + sums)),
    }
    return Case(launches.head_candidates(element, given), given, read, written, expected)


def encoder_attention(rng: np.random.Generator, element: str, S: int = 0, D: int = 0) -> Case:
    B, H, S, D = 2, 1, S or int(rng.integers(1, 90)), D or 16 * int(rng.integers(1, 9))
    dtype = dtype_of(element)
    rows = rng.standard_normal((B, S, 3, H, D)).astype(dtype)
    mask = (np.arange(S) < np.array([[S], [max(1, S // 2)]])).astype(np.int32)
    table = rng.standard_normal((H, 9)).astype(np.float32) if rng.random() < 0.5 else None
    read = {"rows": rows, "mask": mask, **({} if table is None else {"bias": table})}
    given = structures.EncoderAttentionParameters(
        sources=B, heads=H, head_size=D, length=S, first_distance=-4, n_distances=9, scale=D**-0.5
    )
    query, key, value = (rows[:, :, i].astype(np.float64).transpose(0, 2, 1, 3) for i in range(3))
    steps = np.arange(S)
    bias = None if table is None else reference.biases(table, -4, steps[None] - steps[:, None])
    visible = np.broadcast_to(mask[:, None, None] != 0, (B, H, S, S))
    result = reference.attention(query, key, value, visible, D**-0.5, bias).transpose(0, 2, 1, 3)
    expected = {"output": (result, allowed(element, result, 5.0, element))}
    written = {"output": nothing(result.shape, dtype)}
    return Case(launches.encoder_attention(element, given), given, read, written, expected)


KINDS: dict[str, Callable[[np.random.Generator, str], Case]] = {
    "product": product,
    "wide_norm": wide_norm,
    "finish_rows": finish_rows,
    "norm_rows": norm_rows,
    "embed": embed,
    "windows": windows,
    "self_attention": self_attention,
    "cross_attention": cross_attention,
    "cross_weights": cross_weights,
    "cross_parts": cross_parts,
    "merge_cross": merge_cross,
    "self_block": self_block,
    "cross_block": cross_block,
    "encoder_attention": encoder_attention,
    "head_candidates": head_candidates,
}
