"""A GPU and a TensorRT that are neither: host memory, and engines that ONNX Runtime executes on it.

They have the names that `s2s_export.runtime.backends._tensorrt` uses of the real ones (test_contract.py compares them),
so that all of the executor runs here: buffers, addresses, shapes, what is copied when. An "engine" is a file with a
graph's path.
"""

from __future__ import annotations

import ctypes
import enum
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime

from s2s_export import bundle as bundles
from s2s_export.building.gpu import dimensions, lower, options
from s2s_export.bundle import GRAPHS, Bundle
from s2s_export.recipes import Recipe
from s2s_export.runtime.backends._tensorrt.library import Library
from s2s_export.runtime.cuda import faults
from s2s_export.runtime.cuda.emulation import HostDevice

VERSION = "1.2.3"
CAPABILITY = "8.9"


class FakeDevice:
    """See `s2s_export.runtime.cuda.driver.Device`. Copies happen at once; `copied` adds up their bytes by direction."""

    name, capability, cuda_version = "a GPU of host memory", CAPABILITY, "13.0"
    cuda_release = (13, 0)

    def __init__(self, limit: int = 1 << 32) -> None:
        self.memory: dict[int, Any] = {}
        self.limit = limit
        self.copied = {"to_device": 0, "to_host": 0, "moved": 0}
        self.allocations = 0

    def activate(self) -> None:
        pass

    def allocate(self, n_bytes: int, what: str = "a tensor") -> int:
        if n_bytes + sum(len(block) for block in self.memory.values()) > self.limit:
            raise faults.out_of_memory(self.name, what, n_bytes, None)
        block = (ctypes.c_ubyte * max(n_bytes, 1))()
        ctypes.memset(block, 0x7F, len(block))  # what is read before it is written shows
        self.memory[ctypes.addressof(block)] = block
        self.allocations += 1
        return ctypes.addressof(block)

    def free(self, address: int) -> None:
        del self.memory[address]

    def host_array(self, shape: tuple[int, ...], dtype: Any) -> Any:
        return np.zeros(shape, dtype)

    def free_host(self, array: Any) -> None:
        pass

    def create_stream(self) -> int:
        return 7

    def destroy_stream(self, stream: int) -> None:
        assert stream == 7

    def synchronize(self, stream: int) -> None:
        assert stream == 7

    def to_device(self, address: int, array: Any, stream: int) -> None:
        ctypes.memmove(address, array.ctypes.data, array.nbytes)
        self.copied["to_device"] += array.nbytes

    def to_host(self, array: Any, address: int, stream: int) -> None:
        ctypes.memmove(array.ctypes.data, address, array.nbytes)
        self.copied["to_host"] += array.nbytes

    def columns_to_device(self, address: int, array: Any, n_columns: int, stream: int) -> None:
        for i, row in enumerate(array):
            ctypes.memmove(address + i * array.shape[1] * array.itemsize, row.ctypes.data, n_columns * array.itemsize)
            self.copied["to_device"] += n_columns * array.itemsize

    def move(self, target: int, source: int, n_bytes: int, stream: int) -> None:
        ctypes.memmove(target, source, n_bytes)
        self.copied["moved"] += n_bytes

    def move_rows(
        self, target: int, target_pitch: int, source: int, source_pitch: int, n_bytes: int, n_rows: int, stream: int
    ) -> None:
        for row in range(n_rows):
            self.move(target + row * target_pitch, source + row * source_pitch, n_bytes, stream)

    def zero(self, address: int, n_bytes: int, stream: int) -> None:
        ctypes.memset(address, 0, n_bytes)


class EmulatedGpu(HostDevice):
    """A GPU of host memory that has graphs and the search's kernels too."""

    capability, cuda_version = CAPABILITY, "13.0"


Queue = Callable[[Callable[[], object]], None]


def fake_library(loads: bool = True, queue: Queue = lambda function: function() and None) -> Library:
    """loads: whether engines can be deserialised. queue: what a launch is given to, so that a graph can hold it."""

    class ILogger:
        Severity = SimpleNamespace(WARNING=2)

        def __init__(self) -> None:
            pass

    class Runtime:
        engine_header_size = 8

        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def get_engine_validity(self, header: bytes) -> tuple[str, int]:
            return ("VALID", 0) if header.startswith(b"/") else ("INVALID", 2)

        def deserialize_cuda_engine(self, data: bytes) -> Any:
            return FakeEngine(Path(data.decode()), queue) if loads else None

    trt = SimpleNamespace(
        __version__=VERSION,
        __name__="fake",
        ILogger=ILogger,
        Runtime=Runtime,
        ComputeCapability=object,
        EngineValidity=SimpleNamespace(INVALID="INVALID"),
        EngineInvalidityDiagnostics=SimpleNamespace(__members__={"VERSION_MISMATCH": 1, "UNSUPPORTED_CC": 2}),
    )
    return Library("tensorrt-rtx", trt)  # type: ignore[arg-type]


class FakeEngine:
    device_memory_size_v2 = 0

    def __init__(self, path: Path, queue: Queue) -> None:
        self.queue = queue
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def create_runtime_config(self) -> FakeRuntimeConfig:
        return FakeRuntimeConfig()

    def create_execution_context(self, config: FakeRuntimeConfig) -> FakeContext:
        assert config.cache is not None
        assert config.dynamic_shapes_kernel_specialization_strategy == Specialization.EAGER
        assert config.get_execution_context_allocation_strategy() == Allocation.USER_MANAGED
        return FakeContext(self.session, self.queue)


class FakeRuntimeCache:
    blob = b"nothing yet"

    def serialize(self) -> bytes:
        return self.blob + b", finished"

    def deserialize(self, blob: bytes) -> bool:
        self.blob = blob
        return True


Specialization = enum.Enum("Specialization", "LAZY EAGER NONE")
Allocation = enum.Enum("Allocation", "STATIC ON_PROFILE_CHANGE USER_MANAGED")


class FakeRuntimeConfig:
    cache: object = None
    dynamic_shapes_kernel_specialization_strategy = Specialization.LAZY
    _allocation = Allocation.STATIC

    def get_execution_context_allocation_strategy(self) -> Allocation:
        return self._allocation

    def set_execution_context_allocation_strategy(self, strategy: Allocation) -> None:
        self._allocation = strategy

    def create_runtime_cache(self) -> FakeRuntimeCache:
        return FakeRuntimeCache()

    def set_runtime_cache(self, cache: object) -> bool:
        self.cache = cache
        return True


class FakeContext:
    def __init__(self, session: Any, queue: Queue) -> None:
        self.session = session
        self.queue = queue
        self.inputs = {value.name: value for value in session.get_inputs()}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.memory = (0, 0)

    def set_device_memory(self, memory: int, size: int) -> None:
        self.memory = memory, size

    def is_stream_capturable(self, stream: int) -> bool:
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return name in self.inputs

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        """Shapes and addresses are taken now, as a launch's arguments are, and read when it runs."""
        shapes, addresses = dict(self.shapes), dict(self.addresses)
        self.queue(lambda: self._run(shapes, addresses))
        return True

    def _run(self, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]) -> None:
        feed = {}
        for name, value in self.inputs.items():
            shape = shapes.get(name) or tuple(value.shape)
            feed[name] = _view(addresses[name], shape, _dtype(value.type)).copy()
        names = [value.name for value in self.session.get_outputs()]
        for name, array in zip(names, self.session.run(names, feed), strict=True):
            _view(addresses[name], array.shape, array.dtype)[...] = array


def _dtype(name: str) -> Any:
    table = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(bfloat16)": ml_dtypes.bfloat16}
    return table.get(name, np.int64)


def _view(address: int, shape: tuple[int, ...], dtype: Any) -> Any:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_ubyte * size).from_address(address), dtype).reshape(shape)


def build(opened: Bundle, recipe: Recipe, folder: Path) -> Path:
    """What `s2s build` would leave for the fake library: engines/<target>/ in the bundle."""
    fitted = dimensions.fit(opened, recipe)
    lowered = lower.lower(opened, recipe, fitted, options.read(recipe), folder, lambda stage: None)
    engines = opened.path / "engines" / recipe.name
    engines.mkdir(parents=True)
    for name in GRAPHS:
        onnx.checker.check_model(str(lowered.paths[name]))
        (engines / f"{name}.engine").write_text(str(lowered.paths[name]))
    record = {
        "target": recipe.name,
        "flavour": "tensorrt-rtx",
        "built_with": {"library": f"tensorrt-rtx {VERSION}"},
        "key": "0123456789abcdef01234567",
        "made_from": opened.hashes(),
        "device": {"compute_capabilities": [CAPABILITY]},
        "recipe": asdict(recipe),
        "files": bundles.describe_files(engines),
        "graphs": {name: {"file": f"{name}.engine", **lowered.described[name]} for name in GRAPHS},
        "slots": fitted.slots,
        "target_length": fitted.target_length,
        "ranges": {letter: asdict(limits) for letter, limits in fitted.ranges.items()},
    }
    (engines / "engine.json").write_text(json.dumps(record, default=list))
    return engines
