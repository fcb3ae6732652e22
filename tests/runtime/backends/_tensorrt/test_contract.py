"""What the code calls exists: on TensorRT-RTX's real classes, and alike on the fakes that tests run on."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys

import fake_tensorrt
import pytest

from s2s_export.runtime.backends._tensorrt.library import Library
from s2s_export.runtime.cuda import driver as memory

USED = {
    "Builder": ["create_network", "create_builder_config", "create_optimization_profile", "build_serialized_network"],
    "INetworkDefinition": ["num_layers", "get_layer"],
    "IAttentionInputLayer": ["attention"],
    "IAttention": ["decomposable"],
    "IBuilderConfig": [
        *("set_memory_pool_limit", "set_compute_capability", "num_compute_capabilities", "set_preview_feature"),
        *("add_optimization_profile", "progress_monitor", "profiling_verbosity", "set_flag"),
    ],
    "IOptimizationProfile": ["set_shape"],
    "IProgressMonitor": ["phase_start", "step_complete", "phase_finish"],
    "OnnxParser": ["parse_from_file", "num_errors", "get_error", "supports_operator"],
    "ParserError": ["desc", "node_name", "node_operator"],
    "Runtime": ["deserialize_cuda_engine", "get_engine_validity", "engine_header_size"],
    "ICudaEngine": ["create_execution_context", "create_runtime_config", "device_memory_size_v2"],
    "IRuntimeConfig": [
        *("create_runtime_cache", "set_runtime_cache", "dynamic_shapes_kernel_specialization_strategy"),
        *("get_execution_context_allocation_strategy", "set_execution_context_allocation_strategy"),
    ],
    "IRuntimeCache": ["serialize", "deserialize"],
    "IExecutionContext": [
        *("set_input_shape", "set_tensor_address", "execute_async_v3", "set_device_memory", "is_stream_capturable"),
    ],
    "BuilderFlag": ["REQUIRE_USER_ALLOCATION"],
    "DynamicShapesKernelSpecializationStrategy": ["EAGER"],
    "ExecutionContextAllocationStrategy": ["USER_MANAGED"],
    "MemoryPoolType": ["WORKSPACE"],
    "PreviewFeature": ["ALIASED_PLUGIN_IO_10_03"],
    "ProfilingVerbosity": ["DETAILED"],
    "ComputeCapability": ["SM86", "SM89", "SM120"],
    "EngineValidity": ["INVALID"],
    "EngineInvalidityDiagnostics": ["VERSION_MISMATCH", "UNSUPPORTED_CC"],
    "LayerType": ["ATTENTION_INPUT", "KV_CACHE_UPDATE", "PLUGIN_V3", "QUANTIZE", "DEQUANTIZE"],
}


@pytest.mark.parametrize("name", USED)
def test_the_real_classes_have_what_is_used(trt, name):
    missing = [attribute for attribute in USED[name] if not hasattr(getattr(trt, name), attribute)]
    assert not missing


@pytest.mark.parametrize(
    ("fake", "real"),
    [
        ("FakeContext", "IExecutionContext"),
        ("FakeEngine", "ICudaEngine"),
        ("FakeRuntimeConfig", "IRuntimeConfig"),
        ("FakeRuntimeCache", "IRuntimeCache"),
    ],
)
def test_the_fakes_have_nothing_that_the_real_ones_lack(trt, fake, real):
    for name, function in inspect.getmembers(getattr(fake_tensorrt, fake), inspect.isfunction):
        if name.startswith("_"):
            continue
        assert name in USED[real]
        text = getattr(getattr(trt, real), name).__doc__
        n_arguments = len(inspect.signature(function).parameters) - 1
        counts = {len(re.findall(r"(?<=, )\w+:", line)) for line in text.splitlines() if f"{name}(self" in line}
        assert n_arguments in counts, f"{real}.{name} takes {counts} arguments, the fake {n_arguments}"


def test_the_fake_device_is_called_like_the_real_one():
    for name, function in inspect.getmembers(memory.Device, inspect.isfunction):
        if not name.startswith("_"):
            fake = getattr(fake_tensorrt.FakeDevice, name)
            assert list(inspect.signature(function).parameters) == list(inspect.signature(fake).parameters), name


def test_features_are_asked_for_and_not_versions(trt):
    library = Library("tensorrt-rtx", trt)
    assert library.compiles_ahead_of_time
    assert library.tells_validity
    assert library.has_cache_layer
    assert library.reports_progress
    source = inspect.getsource(sys.modules["s2s_export.runtime.backends._tensorrt.library"])
    assert "version_info" not in source
    assert not re.search(r"version\s*[<>=]=?\s*", source)


@pytest.mark.parametrize("module", ["tensorrt", "tensorrt_rtx", "onnxruntime_cuda"])
def test_importing_a_backend_imports_no_library(module):
    code = (
        f"import sys, s2s_export.runtime.backends.{module}, s2s_export.runtime.backends._tensorrt.backend; "
        "print([m for m in ('tensorrt', 'tensorrt_rtx', 'onnx', 'torch', 'onnxruntime') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
