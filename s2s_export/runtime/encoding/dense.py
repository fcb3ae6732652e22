"""Layers that an embedding goes through after its pooling, such as LaBSE's: activation(x W + b), in numpy.

manifest.json has the activation and the width of each in `head.dense`; dense.npz in the bundle has their weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...bundle import DENSE, Bundle
from ...errors import BundleError
from ..decoding.state import Floats


def _gelu(x: Floats) -> Floats:
    from math import erf

    return np.asarray(0.5 * x * (1 + np.vectorize(erf, otypes=[np.float64])(x / np.sqrt(2.0))), np.float32)


ACTIVATIONS: dict[str, Callable[[Floats], Floats]] = {
    "identity": lambda x: x,
    "tanh": lambda x: np.tanh(x),
    "relu": lambda x: np.maximum(x, np.float32(0)),
    "gelu": _gelu,
    "sigmoid": lambda x: np.asarray(1 / (1 + np.exp(-x)), np.float32),
}


@dataclass(frozen=True)
class Dense:
    """weight [in, out], bias [out]"""

    weight: Floats
    bias: Floats
    activation: str

    def __call__(self, x: Floats) -> Floats:
        """[n, in] -> [n, out]"""
        return ACTIVATIONS[self.activation](x @ self.weight + self.bias)


def read(bundle: Bundle, entries: Sequence[dict[str, Any]]) -> tuple[Dense, ...]:
    """The layers of a bundle. Raises BundleError for weights that are not those of the manifest."""
    if not entries:
        return ()
    path, width = bundle.path / DENSE, int(bundle.manifest["sizes"]["width"])
    found = []
    try:
        with np.load(path, allow_pickle=False) as arrays:
            for i, entry in enumerate(entries):
                weight, bias = (np.asarray(arrays[f"{name}_{i}"], np.float32) for name in ("weight", "bias"))
                if weight.shape != (width, entry["width"]) or bias.shape != (entry["width"],):
                    raise BundleError(
                        f"{path}: layer {i} has weights {list(weight.shape)}, expected [{width}, {entry['width']}]; "
                        "export the bundle again"
                    )
                found.append(Dense(weight, bias, entry["activation"]))
                width = entry["width"]
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise BundleError(f"{path}: can't be read ({error}); export the bundle again") from error
    return tuple(found)
