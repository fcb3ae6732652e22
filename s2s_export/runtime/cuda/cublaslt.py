"""The binding to cuBLASLt, NVIDIA's library of matrix products, where this machine has it: JetPack, CUDA and PyPI's
nvidia-cublas bring it. Through ctypes, and no package is imported.

    library = cublaslt.found()         # or None; `cublaslt.report()` says why, or which
    matmul = library.matmul(product, addresses, workspace, workspace_bytes)  # the library's heuristics choose how
    matmul.run(stream)

`S2S_CUBLASLT=0` leaves the library alone. Constants and structures are those of cublasLt.h; a test compares them where
that header is.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import BackendError, BackendUnavailable
from . import driver

SWITCH = "S2S_CUBLASLT"
NAME = "libcublasLt.so"
# Of NVIDIA's wheels below a folder of packages, and of a toolkit below its own, by the library's major version.
WHEELS = {13: ("nvidia/cu13/lib", "nvidia/cublas/lib"), 12: ("nvidia/cublas/lib",)}
TOOLKITS = ("lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib", "targets/aarch64-linux/lib")

HANDLE = ctypes.c_void_p
_INT, _SIZE, _OUT = ctypes.c_int, ctypes.c_size_t, ctypes.POINTER(ctypes.c_void_p)

NOT_SUPPORTED = 15  # CUBLAS_STATUS_NOT_SUPPORTED
COMPUTE_FP32 = 68  # CUBLAS_COMPUTE_32F: products of 16 bits are added up in fp32
TYPES = {"fp32": 0, "fp16": 2, "bf16": 14}  # CUDA_R_32F, CUDA_R_16F, CUDA_R_16BF
TRANSPOSED = 1  # CUBLAS_OP_T
TRANSPOSE_A, EPILOGUE, BIAS_POINTER = 3, 7, 8  # CUBLASLT_MATMUL_DESC_*
MOST_WORKSPACE = 1  # CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES
ALIGNMENTS = (5, 6, 7, 8)  # CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_*_BYTES of A, B, C and D
MOST_ALIGNMENT = 256  # bytes: what the library assumes of addresses unless it is told
# CUBLASLT_EPILOGUE_*. Its GELU is the one by tanh.
EPILOGUES = {"linear": 1, "relu": 2, "gelu_tanh": 32}
WITH_BIAS = 4  # CUBLASLT_EPILOGUE_BIAS; a bit in the others' numbers


class Algorithm(ctypes.Structure):
    """cublasLtMatmulAlgo_t."""

    _fields_ = (("data", ctypes.c_uint64 * 8),)


class Proposal(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t."""

    _fields_ = (
        *(("algorithm", Algorithm), ("workspace_bytes", _SIZE), ("state", _INT), ("waves", ctypes.c_float)),
        ("reserved", _INT * 4),
    )


FUNCTIONS: Mapping[str, tuple[Any, ...]] = {
    "cublasLtCreate": (_OUT,),
    "cublasLtDestroy": (HANDLE,),
    "cublasLtMatmulDescCreate": (_OUT, _INT, _INT),
    "cublasLtMatmulDescDestroy": (HANDLE,),
    "cublasLtMatmulDescSetAttribute": (HANDLE, _INT, HANDLE, _SIZE),
    "cublasLtMatrixLayoutCreate": (_OUT, _INT, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int64),
    "cublasLtMatrixLayoutDestroy": (HANDLE,),
    "cublasLtMatmulPreferenceCreate": (_OUT,),
    "cublasLtMatmulPreferenceDestroy": (HANDLE,),
    "cublasLtMatmulPreferenceSetAttribute": (HANDLE, _INT, HANDLE, _SIZE),
    "cublasLtMatmulAlgoGetHeuristic": (*(HANDLE,) * 7, _INT, ctypes.POINTER(Proposal), ctypes.POINTER(_INT)),
    "cublasLtMatmul": (*(HANDLE,) * 12, ctypes.POINTER(Algorithm), HANDLE, _SIZE, HANDLE),
}


@dataclass(frozen=True)
class Product:
    """output [R, O] = activation(scale * input [R, I] weight [O, I]^T + bias [O]) + residual [R, O], all row by row.

    element: of input and weight. result: of output, bias and residual, the same or fp32. A residual has no activation.
    """

    rows: int
    inputs: int
    outputs: int
    element: str
    result: str
    activation: str = "linear"
    has_bias: bool = False
    has_residual: bool = False
    scale: float = 1.0


@dataclass(frozen=True)
class Addresses:
    """Of a product's arrays; None for those that it has not. output may be the residual."""

    input: int
    weight: int
    output: int
    bias: int | None = None
    residual: int | None = None


class Library:
    """cuBLASLt at `path`, with a handle for the current context. Safe to use from several threads.

    Raises BackendUnavailable where it can't be opened, or can't start with this driver.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self.functions: Any = ctypes.CDLL(path)
        except OSError as error:
            raise BackendUnavailable(f"{path} can't be opened ({error})") from error
        for name, arguments in FUNCTIONS.items():
            function = getattr(self.functions, name, None)
            if function is None:
                raise BackendUnavailable(f"{path} has no {name}")
            function.argtypes, function.restype = list(arguments), _INT
        self.functions.cublasLtGetVersion.restype = _SIZE
        self.functions.cublasLtGetStatusString.restype = ctypes.c_char_p
        self.functions.cublasLtGetStatusString.argtypes = [_INT]
        self._handle = HANDLE()
        self._lock = threading.Lock()
        self._chosen: dict[tuple[Product, tuple[int, ...], int], Proposal | None] = {}
        if status := self.functions.cublasLtCreate(ctypes.byref(self._handle)):
            raise BackendUnavailable(f"{path} can't start (status {status}, {self._text(status)})")

    @property
    def version(self) -> str:
        """Such as "13.1.0"."""
        number = int(self.functions.cublasLtGetVersion())
        return f"{number // 10000}.{number // 100 % 100}.{number % 100}"

    def matmul(self, product: Product, addresses: Addresses, workspace: int, workspace_bytes: int) -> Matmul | None:
        """A product of arrays at these addresses, to be run any number of times; None where the library has no
        algorithm for it. workspace: memory that no other product uses at the same time."""
        made = Matmul(self, product, addresses, workspace, workspace_bytes)
        key = (product, made.alignments, workspace_bytes)
        with self._lock:
            if key not in self._chosen:
                self._chosen[key] = made.proposal(workspace_bytes)
            chosen = self._chosen[key]
        if chosen is None:
            return None
        made.algorithm, made.workspace_bytes = chosen.algorithm, chosen.workspace_bytes
        return made

    def call(self, name: str, *arguments: Any) -> None:
        """Raises BackendError with the library's text where a function fails."""
        if status := getattr(self.functions, name)(*arguments):
            raise BackendError(
                f"cuBLASLt's {name} failed with status {status} ({self._text(status)}); expected success; report it, "
                f"and set {SWITCH}=0 meanwhile"
            )

    def _text(self, status: int) -> str:
        found = self.functions.cublasLtGetStatusString(status)
        return found.decode() if found else "no text"

    @property
    def handle(self) -> Any:
        return self._handle


class Matmul:
    """A product with its descriptors. cuBLASLt's matrices lie column by column, so the rows of ours are its columns:
    output^T [O, R] = (weight^T)^T input^T, with the weight as the first operand, transposed."""

    def __init__(
        self, library: Library, product: Product, addresses: Addresses, workspace: int, workspace_bytes: int
    ) -> None:
        self.product = product
        self.algorithm, self.workspace_bytes = Algorithm(), workspace_bytes
        self._library, self._addresses, self._workspace = library, addresses, workspace
        self._alpha, self._beta = ctypes.c_float(product.scale), ctypes.c_float(float(product.has_residual))
        made: list[tuple[str, Any]] = []
        weakref.finalize(self, _destroy, library, made)
        self._description = _create(library, made, "cublasLtMatmulDesc", COMPUTE_FP32, TYPES["fp32"])
        self._set(TRANSPOSE_A, ctypes.c_int32(TRANSPOSED))
        epilogue = EPILOGUES[product.activation]
        if product.has_bias:
            epilogue = (0 if product.activation == "linear" else epilogue) | WITH_BIAS
            self._set(BIAS_POINTER, HANDLE(addresses.bias))
        self._set(EPILOGUE, ctypes.c_uint32(epilogue))
        R, I, O = product.rows, product.inputs, product.outputs
        sizes = ((product.element, I, O), (product.element, I, R), (product.result, O, R))
        self._layouts = [
            _create(library, made, "cublasLtMatrixLayout", TYPES[element], rows, columns, rows)
            for element, rows, columns in sizes
        ]

    @property
    def _operands(self) -> tuple[int, int, int, int]:
        """The addresses of A, B, C and D."""
        at = self._addresses
        return at.weight, at.input, at.output if at.residual is None else at.residual, at.output

    @property
    def alignments(self) -> tuple[int, ...]:
        """Bytes, the largest power of two that divides each address."""
        return tuple(min(address & -address, MOST_ALIGNMENT) for address in self._operands)

    def proposal(self, workspace_bytes: int) -> Proposal | None:
        """The algorithm that the library's heuristics put first."""
        library, made = self._library, list[tuple[str, Any]]()
        preference, found, count = _create(library, made, "cublasLtMatmulPreference"), Proposal(), _INT()
        wanted: list[tuple[int, Any]] = [(MOST_WORKSPACE, ctypes.c_uint64(workspace_bytes))]
        wanted += [(name, ctypes.c_uint32(n)) for name, n in zip(ALIGNMENTS, self.alignments, strict=True)]
        try:
            for name, value in wanted:
                size = ctypes.sizeof(value)
                library.call("cublasLtMatmulPreferenceSetAttribute", preference, name, ctypes.byref(value), size)
            status = library.functions.cublasLtMatmulAlgoGetHeuristic(
                library.handle, self._description, *self._layouts, self._layouts[2], preference, 1,
                ctypes.byref(found), ctypes.byref(count),
            )  # fmt: skip
        finally:
            _destroy(library, made)
        return None if status or not count.value or found.state else found

    def run(self, stream: int) -> None:
        """Queues it. Allocates nothing and waits for nothing, so that a graph can hold it."""
        weight, rows, before, output = self._operands
        self._library.call(
            "cublasLtMatmul", self._library.handle, self._description, ctypes.addressof(self._alpha),
            weight, self._layouts[0], rows, self._layouts[1], ctypes.addressof(self._beta),
            before, self._layouts[2], output, self._layouts[2],
            ctypes.byref(self.algorithm), self._workspace, self.workspace_bytes, stream,
        )  # fmt: skip

    def _set(self, attribute: int, value: Any) -> None:
        self._library.call(
            "cublasLtMatmulDescSetAttribute", self._description, attribute, ctypes.byref(value), ctypes.sizeof(value)
        )


def _create(library: Library, made: list[tuple[str, Any]], kind: str, *arguments: Any) -> Any:
    """A descriptor, which is noted in `made`."""
    found = HANDLE()
    library.call(f"{kind}Create", ctypes.byref(found), *arguments)
    made.append((kind, found))
    return found


def _destroy(library: Library, made: Sequence[tuple[str, Any]]) -> None:
    for kind, one in made:
        getattr(library.functions, f"{kind}Destroy")(one)


def places(release: tuple[int, int]) -> Iterator[str]:
    """Where a library may be that runs with a driver of a CUDA release: names for the loader first, then files. The
    newest that the driver can run comes first; one for a later CUDA than the driver's is not tried."""
    for major in (major for major in WHEELS if major <= release[0]):
        yield f"{NAME}.{major}"
        folders = [Path(entry) / wheel for entry in sys.path if entry for wheel in WHEELS[major]]
        homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
        folders += [Path(home) / folder for home in homes if home for folder in TOOLKITS]
        yield from (str(folder / f"{NAME}.{major}") for folder in folders if (folder / f"{NAME}.{major}").is_file())


def open_first(candidates: Iterator[str]) -> Library:
    """The first library that opens and starts. Raises BackendUnavailable, which says why none did."""
    reasons = []
    for path in candidates:
        try:
            return Library(path)
        except BackendUnavailable as error:
            if Path(path).is_absolute():  # that the loader knows none by its name is no news
                reasons.append(str(error))
    raise BackendUnavailable("; ".join(reasons) or "none is here; pip install nvidia-cublas brings it")


@functools.cache
def _opened() -> Library | str:
    """The process's library, or why there is none."""
    if os.environ.get(SWITCH, "").strip().lower() in ("0", "off", "no", "false"):
        return f"{SWITCH} says so"
    try:
        driver.device().activate()
        return open_first(places(driver.device().cuda_release))
    except BackendUnavailable as error:
        return str(error)


def found() -> Library | None:
    """The process's library, opened at the first call, when the GPU's context has to be current."""
    opened = _opened()
    return opened if isinstance(opened, Library) else None


def report() -> str:
    """In one sentence, what computes the products of many rows of the backend `cuda`."""
    if (reason := driver.unavailable()) is not None:
        return f"cuBLASLt is not looked for: {reason}"
    opened = _opened()
    if isinstance(opened, Library):
        return (
            f"cuBLASLt {opened.version} ({opened.path}) computes the products of many rows of the backend cuda; "
            f"{SWITCH}=0 turns it off"
        )
    return f"the backend cuda's own products, without cuBLASLt: {opened}"
