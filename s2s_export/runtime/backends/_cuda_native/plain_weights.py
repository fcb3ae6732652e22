"""Weights row by row, beside their fragments, for a library that reads them so."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .... import plugin_sources
from ...cuda.cublaslt import SWITCH
from ...cuda.interface import Device
from .model import Linear, Weights

fragments = plugin_sources.module("transformer.fragments")


class PlainWeights:
    """Weights row by row, and biases in the element, in a GPU's memory. Each is copied when it is first asked for."""

    def __init__(self, weights: Weights, device: Device) -> None:
        self._weights, self._device = weights, device
        self._at: dict[str, int] = {}
        self._lock = threading.Lock()

    def weight(self, linear: Linear) -> int:
        """The address of [O, I]. Raises OutOfMemory."""
        return self._copy(linear.weight, fragments.unpack)

    def bias(self, linear: Linear) -> int | None:
        """The address of [O] in the element."""
        if linear.bias is None:
            return None
        return self._copy(linear.bias, _bf16 if self._weights.model.element == "bf16" else _fp16)

    def _copy(self, name: str, convert: Callable[[NDArray[Any]], NDArray[Any]]) -> int:
        with self._lock:
            if name not in self._at:
                array: NDArray[Any] = np.ascontiguousarray(convert(self._weights.array(name)))
                address = self._device.allocate(array.nbytes, f"a copy of {name} for cuBLASLt, which {SWITCH}=0 saves")
                stream = self._device.create_stream()
                self._device.to_device(address, array, stream)
                self._device.synchronize(stream)
                self._device.destroy_stream(stream)
                self._at[name] = address
            return self._at[name]


def _fp16(array: NDArray[Any]) -> NDArray[Any]:
    return array.astype(np.float16)


def _bf16(array: NDArray[Any]) -> NDArray[Any]:
    """As the upper halves of float32, rounded to the nearest: numpy has no bf16."""
    bits = array.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
