"""A plugin and the function body that it stands for agree: ONNX Runtime runs the body, the host build the kernel.

The bodies here are the plainest there are; whoever emits nodes with other bodies can run `compare` on theirs.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import plugin_model
import pytest
from onnx import helper
from plugin_helpers import OPERATIONS, Case, cross_case, run, self_case

from s2s_export.errors import BuildError

BODIES = {
    "BeamSelfAttention": plugin_model.self_function(False),
    "BeamSelfAttentionBias": plugin_model.self_function(True),
    "CrossAttention": plugin_model.cross_function(False),
    "CrossAttentionBias": plugin_model.cross_function(True),
}


def with_mask(case: Case) -> Case:
    """Fills self-attention's additive mask, which only the body reads, from the ancestor table."""
    if "ancestors" in case.tensors:
        ancestors, position = case.tensors["ancestors"], int(case.tensors["position"][0])
        K, C = ancestors.shape[1:]
        seen = ancestors[..., None] == np.arange(K)  # [B,K,C,K]
        seen &= (np.arange(C) <= position)[:, None]
        mask = case.tensors["mask"]
        mask[...] = np.where(seen.reshape(mask.shape), 0.0, -1e4).astype(mask.dtype)
        for name in ("key_cache", "value_cache"):
            case.tensors[name] = np.nan_to_num(case.tensors[name])
    return case


def run_body(case: Case, body: onnx.FunctionProto) -> list[np.ndarray]:
    def values(tensors: list[str], arrays: list[np.ndarray | None]) -> list[onnx.ValueInfoProto]:
        kinds = [helper.np_dtype_to_tensor_dtype((case.tensors["query"] if a is None else a).dtype) for a in arrays]
        return [
            helper.make_tensor_value_info(name, kind, None if array is None else array.shape)
            for name, kind, array in zip(tensors, kinds, arrays, strict=True)
        ]

    inputs = list(body.input)
    attributes = {"plugin_namespace": "s2s.plugins", "plugin_version": "1", "scale": case.scale}
    node = helper.make_node(body.name, inputs, list(body.output), domain=body.domain, **attributes)
    outputs = values(list(body.output), [None] * len(body.output))
    graph = helper.make_graph([node], "one", values(inputs, [case.tensors[name] for name in inputs]), outputs)
    opsets = [helper.make_opsetid(*opset) for opset in plugin_model.OPSETS]
    model = helper.make_model(graph, opset_imports=opsets, functions=[body], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {name: case.tensors[name] for name in inputs})


def compare(case: Case, body: onnx.FunctionProto) -> None:
    expected = run_body(with_mask(case), body)
    outputs = list(run(case).values())
    tolerance = 2e-6 if case.element == "fp32" else 4e-3  # a body in fp16 rounds scores and weights as well
    for name, mine, theirs in zip(body.output, outputs, expected, strict=True):
        np.testing.assert_allclose(
            mine.astype(np.float64), theirs.astype(np.float64), rtol=tolerance, atol=tolerance, err_msg=name
        )


@pytest.mark.parametrize("element", ["fp32", "fp16"])
@pytest.mark.parametrize("name", sorted(OPERATIONS))
@pytest.mark.parametrize("seed", range(4))
def test_body_and_kernel_agree(name: str, element: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    bias = name.endswith("Bias")
    beams, length = int(rng.integers(1, 9)), int(rng.integers(2, 40))
    if OPERATIONS[name].folder == "beam_self_attention":
        position = int(rng.integers(0, length))
        case = self_case(rng, element, 64, beams, length, position, bias, sources=2, heads=3, hidden=0.2 * (seed == 3))
    else:
        mask = ["none", "prefix", "scattered", "soft"][seed]
        case = cross_case(rng, element, 64, beams, length, bias, sources=2, heads=3, mask=mask)
        finite = np.maximum(case.tensors["mask"], np.array(-1e4, case.tensors["mask"].dtype))
        case.tensors["mask"] = finite  # a body makes NaN of a row of infinities
    compare(case, BODIES[name])


def test_source_without_a_real_position() -> None:
    """The mean of the values, in both: scores far below zero lose their differences, or nearly."""
    case = cross_case(np.random.default_rng(0), "fp32", 64, 4, 9, bias=False, mask="all")
    case.tensors["mask"] = np.full_like(case.tensors["mask"], np.finfo(np.float32).min)
    compare(case, BODIES["CrossAttention"])


def test_inputs_and_outputs_are_the_nodes() -> None:
    for name, body in BODIES.items():
        assert list(body.input) == [tensor.name for tensor in OPERATIONS[name].inputs]
        assert list(body.output) == [tensor.name for tensor in OPERATIONS[name].outputs]


def test_caches_of_the_wrong_size_are_named() -> None:
    case = self_case(np.random.default_rng(0), "fp32", 64, 4, 8, 0, bias=False)
    shapes = [case.tensors[tensor.name].shape for tensor in OPERATIONS["BeamSelfAttention"].inputs]
    shapes[3:6] = [(1, 1, 33, 64), (1, 1, 33, 64), (1, 1, 4, 33)]
    with pytest.raises(BuildError, match="33 cache slots for 8 positions of 4 beams; expected 32"):
        OPERATIONS["BeamSelfAttention"].sizes(shapes)
