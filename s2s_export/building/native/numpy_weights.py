"""An engine's weights in numpy, rounded as they are stored."""

from __future__ import annotations

from typing import Generic, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from ... import plugin_sources
from ...runtime.backends._cuda_native.model import Linear, Model, RecurrentModel, Weights

fragments = plugin_sources.module("transformer.fragments")
reference = plugin_sources.module("transformer.reference")
Floats = NDArray[np.float32]
M = TypeVar("M", Model, RecurrentModel)


class Unpacked(Generic[M]):
    """An open engine. Weights are unpacked when they are first used, and kept."""

    def __init__(self, weights: Weights) -> None:
        self.model: M = cast("M", weights.model)
        self._weights = weights
        self._unpacked: dict[str, Floats] = {}

    def array(self, name: str) -> Floats:
        if name not in self._unpacked:
            found = self._weights.array(name)
            if self.model.tensors[name].layout == "fragments":
                element = fragments.activations(self.model.element)
                found = fragments.unpack(found).view(fragments.dtype(element)).astype(np.float32)
            elif self.model.tensors[name].layout == "bytes":
                found = fragments.unpack(found).astype(np.float32)
            self._unpacked[name] = found
        return self._unpacked[name]

    def weight(self, name: str, scale: str | None) -> Floats:
        """[O, I], with the scale of each output where it has one."""
        found = self.array(name)
        return found if scale is None else np.asarray(found * self.array(scale)[:, None])

    def product(self, rows: Floats, linear: Linear) -> Floats:
        bias = None if linear.bias is None else self.array(linear.bias)
        return np.asarray(reference.product(rows, self.weight(linear.weight, linear.scale), bias), np.float32)
