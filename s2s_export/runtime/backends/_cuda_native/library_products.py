"""Products of many rows by cuBLASLt, where this machine has it: the encoder, keys and values for the decoder, and a
decoder's step of many rows.

The library reads weights row by row. So a weight has a second copy beside its fragments, which the products of few rows
and those without the library go on reading. Bias and ReLU or GELU by tanh are the library's epilogue, a residual is its
matrix C; other activations, gates and positions are a launch of ours that follows (`finish_rows`). Weights of 8 bits
stay with our own product: the library takes none beside activations of 16 bits.
"""

from __future__ import annotations

import ctypes
from copy import copy
from typing import Any

from ...cuda.cublaslt import EPILOGUES, Addresses, Library, Product
from .loaded import Buffer, Loaded, Program, launches, structures
from .model import Linear
from .plain_weights import PlainWeights

# The workspace that NVIDIA advises: 32 MiB for Hopper and newer, 4 MiB before.
HOPPER, WORKSPACE_BYTES, OLDER_WORKSPACE_BYTES = 9.0, 32 << 20, 4 << 20
ELEMENTS = ("fp16", "bf16")


def products_of(loaded: Loaded, buffer: Buffer) -> LibraryProducts | None:
    """For the programs of a batch; None where there is no library, or the weights are none that it takes."""
    element, library = loaded.model.element, loaded.device.matrix_library()
    if library is None or element not in ELEMENTS:
        return None
    is_new = float(getattr(loaded.device, "capability", "0.0")) >= HOPPER
    size = WORKSPACE_BYTES if is_new else OLDER_WORKSPACE_BYTES
    return LibraryProducts(library, loaded.plain, element, size, buffer)


class LibraryProducts:
    """The library's products of one batch's programs. buffer: gives memory by name."""

    def __init__(
        self, library: Library, plain: PlainWeights, element: str, workspace_bytes: int, buffer: Buffer
    ) -> None:
        self._library, self._plain, self._element = library, plain, element
        self._workspace_bytes = workspace_bytes
        self._workspace = buffer("cublaslt workspace", (workspace_bytes // 4,), "float32")
        self._buffer = buffer

    def beside(self, buffer: Buffer) -> LibraryProducts:
        """For a program that runs before or after this one's, in the same workspace. buffer: for what else it takes."""
        found = copy(self)
        found._buffer = buffer
        return found

    def add(self, program: Program, linear: Linear, given: Any) -> bool:
        """Adds a product with the arguments of ours to a program. False where the library does not serve it."""
        activation = structures.ACTIVATIONS[given.activation]
        if launches.is_skinny(given.rows) or given.norm_weight or given.parts or given.weight_scale:
            return False
        if given.residual and given.output:
            return False  # a result in fp32 and its copy in the element
        is_linear = activation == "linear" and not given.gated
        if is_linear and given.output_float and not given.output and given.stride == given.limit:
            return self._add(program, linear, given, "fp32", activation, given.output_float, given.residual)
        if not given.stride == given.limit == (given.outputs // 2 if given.gated else given.outputs):
            return False
        is_whole = activation in EPILOGUES and not given.gated
        if is_whole and given.output and not given.output_float and not given.residual:
            return self._add(program, linear, given, self._element, activation, given.output)
        sums = given.output
        if given.gated or not sums:
            sums = self._buffer("cublaslt sums", (given.rows, given.outputs), "float16")
        if not self._add(program, linear, given, self._element, "linear", sums):
            return False
        self._finish(program, given, sums)
        return True

    def _add(
        self, program: Program, linear: Linear, given: Any, result: str, activation: str, output: int,
        residual: int | None = None,
    ) -> bool:  # fmt: skip
        bias = given.bias if result == "fp32" else self._plain.bias(linear)
        outputs = given.outputs if given.gated else given.limit  # a head's last ones are no tokens
        product = Product(
            given.rows, given.inputs, outputs, self._element, result, activation, bias is not None,
            residual is not None, given.scale,
        )  # fmt: skip
        addresses = Addresses(given.input, self._plain.weight(linear), output, bias, residual)
        matmul = self._library.matmul(product, addresses, self._workspace, self._workspace_bytes)
        if matmul is not None:
            program.add_call(matmul.run)
        return matmul is not None

    def _finish(self, program: Program, given: Any, sums: int) -> None:
        finish: ctypes.Structure = structures.ProductParameters.from_buffer_copy(given)
        finish.input = sums
        program.add(launches.finish_rows(self._element, finish), finish)
