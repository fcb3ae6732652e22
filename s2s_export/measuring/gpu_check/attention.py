"""The attention kernels of plugins/: compares them with their numpy references, and times them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import plugin_sources
from ...runtime.cuda.interface import Device
from .times import launch_us

Tensors = dict[str, NDArray[Any]]
DeviceOf = Callable[[str], Device]  # a device that has the kernels of a folder
DTYPES = {"fp32": np.float32, "fp16": np.float16}  # numpy has no bf16
FOLDERS = ("beam_self_attention", "cross_attention")
OPERATIONS = {"beam_self_attention": "BeamSelfAttention", "cross_attention": "CrossAttention"}
# As in OPUS-MT: heads, head size, tokens of a source, positions of a cache.
HEADS, HEAD_SIZE, SOURCE_LENGTH, CAPACITY = 8, 64, 32, 64
LAUNCHES = 100  # launches in one graph, to time them


def on_gpu(folder: str) -> Device:
    from ...runtime.cuda.device import CudaDevice

    device = CudaDevice()
    binary = plugin_sources.module("build").binary_for(folder, device.capability, device.cuda_release)
    return CudaDevice(binary=binary)


def tensors(
    rng: np.random.Generator, folder: str, element: str, sources: int, heads: int, beams: int, size: int, length: int
) -> Tensors:
    """A node's inputs. length: positions of a half-filled cache, or tokens of a source, some of them masked."""

    def normal(*shape: int) -> NDArray[Any]:
        return rng.standard_normal(shape, np.float32).astype(DTYPES[element])

    found = {"query": normal(sources, heads, beams, size)}
    if folder == "cross_attention":
        mask = np.where(np.arange(length) < rng.integers(1, length + 1, (sources, 1)), 0.0, -np.inf)
        found |= {"key": normal(sources, heads, length, size), "value": normal(sources, heads, length, size)}
        return found | {"mask": mask.astype(DTYPES[element])[:, None, None, :]}
    found |= {"key": normal(sources, heads, beams, size), "value": normal(sources, heads, beams, size)}
    slots, position = length * beams, length // 2
    found |= {"key_cache": normal(sources, heads, slots, size), "value_cache": normal(sources, heads, slots, size)}
    ancestors = rng.integers(0, beams, (sources, beams, length))
    ancestors[:, :, position] = np.arange(beams)
    mask = np.zeros((sources, 1, beams, slots), DTYPES[element])
    return found | {"mask": mask, "ancestors": ancestors, "position": np.array([position])}


class Node:
    """A node's tensors on a device, and its launch."""

    def __init__(self, device: Device, folder: str, element: str, given: Tensors) -> None:
        operation = plugin_sources.module().operations()[OPERATIONS[folder]]
        sizes = operation.sizes([given[tensor.name].shape for tensor in operation.inputs])
        self.device = device
        self.stream = device.create_stream()
        self.output = np.zeros([sizes[letter] for letter in operation.outputs[0].shape], DTYPES[element])
        arrays = {**{name: np.ascontiguousarray(array) for name, array in given.items()}, "output": self.output}
        self.addresses = {name: device.allocate(array.nbytes, name) for name, array in arrays.items()}
        for name, array in arrays.items():
            device.to_device(self.addresses[name], array, self.stream)
        device.synchronize(self.stream)
        self._launch = operation.plan(element, sizes)
        self._given = operation.arguments(sizes, self.addresses, sizes["D"] ** -0.5)

    def queue(self, times: int = 1) -> None:
        for _ in range(times):
            self.device.run(self._launch, self._given, self.stream)

    def result(self) -> NDArray[Any]:
        self.device.to_host(self.output, self.addresses["output"], self.stream)
        self.device.synchronize(self.stream)
        return self.output

    def close(self) -> None:
        for address in self.addresses.values():
            self.device.free(address)
        self.device.destroy_stream(self.stream)


def error(folder: str, element: str, given: Tensors, found: NDArray[Any]) -> float:
    """The largest difference from the reference, divided by the tolerance. NaN if something is not finite."""
    reference = getattr(plugin_sources.module(f"{folder}.reference"), folder)
    scale = given["query"].shape[-1] ** -0.5
    if folder == "cross_attention":
        expected, values = reference(**given, scale=scale), given["value"]
    else:
        read = {name: array for name, array in given.items() if name not in ("mask", "position")}
        expected, _, values = reference(**read, position=int(given["position"][0]), scale=scale)
    allowed = plugin_sources.module(f"{folder}.tolerances").allowed(element, expected, values)
    return float((np.abs(found.astype(np.float64) - expected) / allowed).max())


def agree(device_of: DeviceOf, n_cases: int) -> dict[str, Any]:
    """Random cases of all head sizes and types: their number, the worst error / tolerance, and those above 1."""
    rng, worst, wrong = np.random.default_rng(5), 0.0, []
    for folder in FOLDERS:
        device = device_of(folder)
        for i in range(n_cases):
            element = list(DTYPES)[i % len(DTYPES)]
            sizes = {
                "sources": int(rng.integers(1, 4)), "heads": int(rng.integers(1, 4)), "beams": int(rng.integers(1, 17)),
                "size": 8 * int(rng.integers(1, 17)), "length": int(rng.integers(1, 300)),
            }  # fmt: skip
            given = tensors(rng, folder, element, **sizes)
            node = Node(device, folder, element, given)
            node.queue()
            share = error(folder, element, given, node.result())
            node.close()
            worst = max(worst, share)
            if not share <= 1.0:
                wrong.append({"kernel": folder, "element": element, **sizes, "share": share})
    return {"cases": n_cases * len(FOLDERS), "worst": worst if math.isfinite(worst) else str(worst), "wrong": wrong}


def times(device_of: DeviceOf, batches: Sequence[int], beams: Sequence[int]) -> list[dict[str, Any]]:
    """Microseconds of a launch at OPUS-MT's sizes in fp16, measured in graphs, and the bytes that it reads."""
    found = []
    for folder in FOLDERS:
        device, length = device_of(folder), CAPACITY if folder == "beam_self_attention" else SOURCE_LENGTH
        for batch in batches:
            for k in beams:
                given = tensors(np.random.default_rng(6), folder, "fp16", batch, HEADS, k, HEAD_SIZE, length)
                node = Node(device, folder, "fp16", given)
                us = launch_us(device, node.stream, node.queue, LAUNCHES)
                node.close()
                states = batch * HEADS * HEAD_SIZE * 2 * 2  # keys and values of one position, in bytes
                read = states * (k * length // 2 if folder == "beam_self_attention" else length)
                found.append({"kernel": folder, "batch": batch, "beams": k, "us": us, "bytes": read})
    return found
