"""Random cases for the attention kernels, and a call of the host build on numpy arrays."""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from s2s_export import plugin_sources

plugins = plugin_sources.module()
build = plugin_sources.module("build")
operation_module = plugin_sources.module("common.nodes")
self_reference = plugin_sources.module("beam_self_attention.reference").beam_self_attention
cross_reference = plugin_sources.module("cross_attention.reference").cross_attention
OPERATIONS = plugins.operations()
ELEMENTS = operation_module.ELEMENTS
DTYPES = {"fp32": np.dtype(np.float32), "fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}
CANARY = 16  # elements around every array that a kernel writes; must come back untouched


@functools.cache
def library(folder: str, sanitize: bool = False) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(build.host_library(folder, sanitize)))
    loaded.s2s_host_schedule.argtypes = [ctypes.c_uint64]
    return loaded


@dataclass
class Case:
    """A node's inputs by name, and what to expect of it."""

    operation: str
    element: str
    scale: float
    tensors: dict[str, NDArray]
    values: NDArray = field(default_factory=lambda: np.zeros(1))  # what the output averages

    def describe(self) -> str:
        shapes = {name: tensor.shape for name, tensor in self.tensors.items()}
        return f"{self.operation} {self.element} {shapes} position={self.tensors.get('position')}"


def guarded(array: NDArray) -> tuple[NDArray, NDArray]:
    """A 16-byte aligned copy of `array` with canaries before and after; (the copy, all of it)."""
    room = np.full(array.size + 2 * CANARY + 64, 7, array.dtype)
    skip = (-(room.ctypes.data + CANARY * array.itemsize) % 16) // array.itemsize + CANARY
    inner = room[skip : skip + array.size].reshape(array.shape)
    inner[...] = array
    return inner, room


def run(case: Case, schedule: int = 0, sanitize: bool = False) -> dict[str, NDArray]:
    """The host build's outputs by name; caches are changed in copies. Asserts that nothing else was written."""
    operation = OPERATIONS[case.operation]
    sizes = operation.sizes([case.tensors[tensor.name].shape for tensor in operation.inputs])
    shape = [sizes[letter] for letter in operation.outputs[0].shape]
    written = {"output": guarded(np.full(shape, np.nan, DTYPES[case.element]))}
    for tensor in operation.outputs[1:]:
        written[tensor.aliases] = guarded(case.tensors[tensor.aliases])
    read = {name: guarded(tensor)[0] for name, tensor in case.tensors.items() if name not in written}
    arrays = {**read, **{name: inner for name, (inner, _) in written.items()}}
    untouched = {name: array.copy() for name, array in read.items()}
    given = operation.arguments(sizes, {name: array.ctypes.data for name, array in arrays.items()}, case.scale)
    loaded = library(operation.folder, sanitize)
    loaded.s2s_host_schedule(schedule)
    status = getattr(loaded, f"s2s_{operation.folder}")(ELEMENTS.index(case.element), ctypes.byref(given), None)
    assert status == 0, f"{case.describe()}: status {status}"
    for name, (inner, room) in written.items():
        outside = np.ones(room.size, bool)
        first = (inner.ctypes.data - room.ctypes.data) // room.itemsize
        outside[first : first + inner.size] = False
        assert (room[outside] == 7).all(), f"{case.describe()}: wrote outside {name}"
    for name, array in read.items():
        assert array.tobytes() == untouched[name].tobytes(), f"{case.describe()}: wrote into {name}"
    return {name: inner for name, (inner, _) in written.items()}


def self_case(
    rng: np.random.Generator,
    element: str,
    head_size: int,
    beams: int,
    capacity: int,
    position: int,
    bias: bool,
    sources: int = 1,
    heads: int = 1,
    hidden: float = 0.0,
    spread: float = 1.0,
) -> Case:
    """`hidden`: share of table entries that name no beam. `spread`: standard deviation of queries."""
    dtype = DTYPES[element]

    def normal(*shape: int) -> NDArray:
        return rng.standard_normal(shape).astype(dtype)

    ancestors = rng.integers(0, beams, (sources, beams, capacity))
    ancestors[rng.random(ancestors.shape) < hidden] = rng.choice([-1, beams, -(2**40), 2**40])
    if 0 <= position < capacity:
        ancestors[:, :, position] = np.arange(beams)
    slots = capacity * beams
    tensors = {
        "query": (spread * normal(sources, heads, beams, head_size).astype(np.float32)).astype(dtype),
        "key": normal(sources, heads, beams, head_size),
        "value": normal(sources, heads, beams, head_size),
        "key_cache": normal(sources, heads, slots, head_size),
        "value_cache": normal(sources, heads, slots, head_size),
        "mask": np.zeros((sources, 1, beams, slots), dtype),
        "ancestors": ancestors,
        "position": np.array([position]),
    }
    # What no beam may read: positions to come hold NaN.
    future = max(position, 0) * beams
    tensors["key_cache"][:, :, future:] = np.nan
    tensors["value_cache"][:, :, future:] = np.nan
    if bias:
        tensors["bias"] = (3 * normal(1, heads, 1, capacity).astype(np.float32)).astype(dtype)
    name = "BeamSelfAttentionBias" if bias else "BeamSelfAttention"
    return Case(name, element, head_size**-0.5, tensors)


def check_self(case: Case, outputs: dict[str, NDArray]) -> float:
    """Asserts agreement with the reference; returns the largest share of the tolerance that was used."""
    given = {name: array for name, array in case.tensors.items() if name not in ("mask", "position")}
    position = int(case.tensors["position"][0])
    expected, keys, values = self_reference(**given, position=position, scale=case.scale)
    assert outputs["key_cache"].tobytes() == keys.tobytes(), f"{case.describe()}: key cache"
    assert outputs["value_cache"].tobytes() == values.tobytes(), f"{case.describe()}: value cache"
    return check_output(case, outputs["output"], expected, np.nan_to_num(values.astype(np.float32)))


def cross_case(
    rng: np.random.Generator,
    element: str,
    head_size: int,
    beams: int,
    length: int,
    bias: bool,
    sources: int = 1,
    heads: int = 1,
    mask: str = "prefix",
) -> Case:
    """`mask`: "none", "prefix" (padding at the end), "scattered", "all" (nothing real), "soft" (small values added)."""
    dtype = DTYPES[element]

    def normal(*shape: int) -> NDArray:
        return rng.standard_normal(shape).astype(dtype)

    if mask == "prefix":
        lengths = rng.integers(1, length + 1, (sources, 1))
        real = np.arange(length) < lengths
    elif mask == "scattered":
        real = rng.random((sources, length)) < 0.5
    else:
        real = np.full((sources, length), mask != "all")
    lowest = float(rng.choice([-8192.0, -1e4, -65504.0, -np.inf, *([-3e38] if element != "fp16" else [])]))
    additive = np.where(real, 0.0, lowest)
    if mask == "soft":
        additive = additive + rng.uniform(-5, 5, real.shape)
    tensors = {
        "query": normal(sources, heads, beams, head_size),
        "key": normal(sources, heads, length, head_size),
        "value": normal(sources, heads, length, head_size),
        "mask": additive.astype(dtype)[:, None, None, :],
    }
    if bias:
        tensors["bias"] = normal(1, heads, 1, length)
    name = "CrossAttentionBias" if bias else "CrossAttention"
    return Case(name, element, head_size**-0.5, tensors)


def check_cross(case: Case, outputs: dict[str, NDArray]) -> float:
    """Asserts agreement with the reference; returns the largest share of the tolerance that was used."""
    expected = cross_reference(**case.tensors, scale=case.scale)
    return check_output(case, outputs["output"], expected, case.tensors["value"])


def check_output(case: Case, output: NDArray, expected: NDArray, values: NDArray) -> float:
    folder = OPERATIONS[case.operation].folder
    allowed = plugin_sources.module(f"{folder}.tolerances").allowed(case.element, expected, values)
    error = np.abs(output.astype(np.float64) - expected)
    share = float((error / allowed).max())
    assert share <= 1.0, f"{case.describe()}: {share:.2f} of the tolerance, off by {error.max():.3g}"
    return share
