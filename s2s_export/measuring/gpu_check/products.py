"""Products of many rows on a GPU, by our own kernel and by cuBLASLt: both against numpy, and timed in graphs.

The shapes are those of encoders (OPUS-MT, Whisper base and large), and of a decoder's step with 64 and 256 rows, which
is our own kernel's today. Letters: R rows, I inputs, O outputs.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import plugin_sources
from ...errors import BackendUnavailable
from ...runtime.backends._cuda_native.library_products import WORKSPACE_BYTES
from ...runtime.cuda import cublaslt
from ...runtime.cuda.cublaslt import Addresses, Library, Product
from ...runtime.cuda.interface import Device
from .times import launch_us

structures = plugin_sources.module("transformer.structures")
launches = plugin_sources.module("transformer.launches")
fragments = plugin_sources.module("transformer.fragments")
reference = plugin_sources.module("transformer.reference")
tolerances = plugin_sources.module("transformer.tolerances")

Save = Callable[[dict[str, Any]], None]
Shape = tuple[int, int, int]  # R, I, O
SHAPES: Sequence[Shape] = (
    (2048, 512, 1536), (2048, 512, 2048), (2048, 2048, 512), (256, 512, 2048), (64, 512, 2048),
    (1500, 512, 2048), (1500, 1280, 5120), (1500, 5120, 1280), (12000, 512, 512),
)  # fmt: skip
FEW_SHAPES = SHAPES[:2]
KINDS = ("linear", "relu", "gelu_tanh", "residual")  # each with a bias; the last in fp32, added to what is there
CHECKED_ROWS = 32  # of a product, against numpy
LAUNCHES = 20


class Arrays:
    """Device memory by name, filled from arrays."""

    def __init__(self, device: Device, stream: int, arrays: dict[str, NDArray[Any]]) -> None:
        self._device, self._stream = device, stream
        self.at = {name: device.allocate(array.nbytes, name) for name, array in arrays.items()}
        for name, array in arrays.items():
            device.to_device(self.at[name], np.ascontiguousarray(array), stream)
        device.synchronize(stream)

    def read(self, name: str, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        found = np.empty(shape, dtype)
        self._device.to_host(found, self.at[name], self._stream)
        self._device.synchronize(self._stream)
        return found

    def close(self) -> None:
        for address in self.at.values():
            self._device.free(address)


def compare(
    device: Device, library: Library | None, shape: Shape, element: str, kind: str, n: int = 0
) -> dict[str, Any]:
    """Microseconds of one product each way, and its largest error as a share of what is allowed."""
    (R, I, O), rng = shape, np.random.default_rng(sum(shape))
    dtype, is_residual = fragments.dtype(element), kind == "residual"
    result = "fp32" if is_residual else element
    x, weight = rng.standard_normal((R, I)).astype(dtype), (rng.standard_normal((O, I)) / np.sqrt(I)).astype(dtype)
    bias = rng.standard_normal(O).astype(dtype)  # exact in both types
    output = np.zeros((R, O), np.float32 if is_residual else dtype)
    before = rng.standard_normal((R, O)).astype(np.float32) if is_residual else np.zeros((1, 1), np.float32)
    stream = device.create_stream()
    arrays = Arrays(device, stream, {
        "input": x, "packed": fragments.pack(weight, element), "weight": weight, "bias": bias.astype(np.float32),
        "library bias": bias.astype(np.float32) if is_residual else bias, "residual": before, "output": output,
        "workspace": np.zeros(WORKSPACE_BYTES, np.uint8),
    })  # fmt: skip
    at, activation = arrays.at, "linear" if is_residual else kind
    few = slice(0, CHECKED_ROWS)
    exact = reference.product(
        x[few].astype(np.float64), weight.astype(np.float64), bias.astype(np.float64), activation
    ) + (before[few] if is_residual else 0.0)
    size = 1.2 * (np.abs(x[few].astype(np.float64)) @ np.abs(weight.astype(np.float64)).T + 1 + np.abs(before[few]))
    limits = tolerances.allowed(result, exact, size)
    found: dict[str, Any] = {"rows": R, "inputs": I, "outputs": O, "element": element, "kind": kind}
    try:
        ways = {"own": _own(device, at, shape, element, activation, is_residual, stream)}
        if library is not None:
            product = Product(R, I, O, element, result, activation, True, is_residual)
            addresses = Addresses(
                at["input"], at["weight"], at["output"], at["library bias"], at["residual"] if is_residual else None
            )
            matmul = library.matmul(product, addresses, at["workspace"], WORKSPACE_BYTES)
            if matmul is not None:
                ways["library"] = partial(device.run_call, matmul.run, stream)
        for name, queue in ways.items():
            queue()
            values = arrays.read("output", (R, O), output.dtype)[few].astype(np.float64)
            found[f"{name}_error"] = float((np.abs(values - exact) / limits).max())
            found[f"{name}_us"] = launch_us(device, stream, queue, n or LAUNCHES)
    finally:
        arrays.close()
        device.destroy_stream(stream)
    return found


def _own(
    device: Device, at: dict[str, int], shape: Shape, element: str, activation: str, is_residual: bool, stream: int
) -> Callable[[], None]:
    R, I, O = shape
    given = structures.ProductParameters(
        input=at["input"], weight=at["packed"], bias=at["bias"], rows=R, inputs=I, outputs=O, stride=O, limit=O,
        true_width=I, activation=structures.ACTIVATIONS.index(activation), scale=1.0,
        residual=at["residual"] if is_residual else None, output=None if is_residual else at["output"],
        output_float=at["output"] if is_residual else None,
    )  # fmt: skip
    kernels = device.kernels(launches.folder(element), launches.any_kernel(element))
    return partial(kernels.run, launches.product(element, given), given, stream)


def products(save: Save, quick: bool) -> str | None:
    """The part: every shape and kind in fp16, then in bf16 where numpy has it."""
    from ...runtime.cuda import device as cuda

    device = cuda.shared()
    library = device.matrix_library()
    save({"library": cublaslt.report()})
    elements = ["fp16", *(["bf16"] if importlib.util.find_spec("ml_dtypes") is not None else [])]
    entries: list[dict[str, Any]] = []
    for element in elements[:1] if quick else elements:
        for shape in FEW_SHAPES if quick else SHAPES:
            for kind in KINDS:
                entries.append(compare(device, library, shape, element, kind))
                save({"times": entries})
    wrong = [
        f"{name} {one['kind']} {one['element']} {one['rows']}x{one['inputs']}x{one['outputs']}"
        for one in entries
        for name in ("own", "library")
        if not one.get(f"{name}_error", 0.0) <= 1.0
    ]
    if wrong:
        return f"outside their tolerance: {', '.join(wrong)}"
    if library is None:
        raise BackendUnavailable(f"our own products alone were measured: {cublaslt.report()}")
    return None


def table(found: dict[str, Any]) -> Iterator[str]:
    """The part's result as text."""
    yield f"{found['library']}. Errors are shares of what is allowed."
    yield ""
    yield "| R x I x O | | | ours us | TFLOP/s | error | cuBLASLt us | TFLOP/s | error |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for one in found.get("times", ()):
        work = 2e-6 * one["rows"] * one["inputs"] * one["outputs"]  # of a microsecond's TFLOP
        cells = []
        for name in ("own", "library"):
            if f"{name}_us" in one:
                us = one[f"{name}_us"]
                cells.append(f"{us:.1f} | {work / us:.0f} | {one[f'{name}_error']:.2f}")
            else:
                cells.append("- | - | -")
        shape = f"{one['rows']} x {one['inputs']} x {one['outputs']}"
        yield f"| {shape} | {one['kind']} | {one['element']} | {' | '.join(cells)} |"
