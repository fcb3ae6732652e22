"""The external-data file that the three graphs share, with every distinct tensor once.

Tensors are compared by their bytes, so that a tied weight (embedding and output projection) is stored once, whatever
its names and however many graphs use it. Tensors begin at multiples of 64 bytes, which suits memory-mapped reads.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

ALIGNMENT = 64  # bytes; one cache line
TORCH_TO_ONNX = {
    torch.float32: onnx.TensorProto.FLOAT,
    torch.float16: onnx.TensorProto.FLOAT16,
    torch.bfloat16: onnx.TensorProto.BFLOAT16,
}
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class WeightStore:
    """Writes tensors to one file and returns initializers that refer to it.

    precision: the type in which floating-point weights are stored. Vectors (norms, biases) stay in fp32: they are a
    thousandth of the bytes, and rounding them would cost accuracy and save nothing.
    """

    def __init__(self, path: Path, precision: str = "fp32") -> None:
        self.path = path
        self.dtype = PRECISIONS[precision]
        self.n_bytes = 0
        self._file = path.open("wb")
        self._places: dict[bytes, tuple[int, int]] = {}

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> WeightStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def initializer(self, name: str, tensor: torch.Tensor) -> onnx.TensorProto:
        """Store `tensor`, unless equal bytes are stored already. Returns an initializer with external data."""
        tensor = tensor.detach()
        if tensor.is_floating_point():
            tensor = tensor.to(self.dtype if tensor.dim() >= 2 else torch.float32)
        tensor = tensor.contiguous()
        flat: Any = tensor.view(torch.uint8) if tensor.dim() else tensor.reshape(1).view(torch.uint8)
        raw = memoryview(flat.numpy())
        offset, length = self._place(raw)
        proto = onnx.TensorProto(name=name, data_type=TORCH_TO_ONNX[tensor.dtype], dims=list(tensor.shape))
        proto.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", self.path.name), ("offset", str(offset)), ("length", str(length))):
            proto.external_data.add(key=key, value=value)
        return proto

    def _place(self, raw: memoryview) -> tuple[int, int]:
        key = hashlib.sha256(raw).digest()
        if key not in self._places:
            padding = -self.n_bytes % ALIGNMENT
            self._file.write(bytes(padding))
            self._file.write(raw)
            self._places[key] = (self.n_bytes + padding, raw.nbytes)
            self.n_bytes += padding + raw.nbytes
        return self._places[key]


def small_constant(name: str, value: Any, dtype: Any) -> onnx.TensorProto:
    """An initializer inside the graph file, for scalars, shapes and tables of a few kilobytes."""
    return onnx.numpy_helper.from_array(np.asarray(value, dtype=dtype), name)
