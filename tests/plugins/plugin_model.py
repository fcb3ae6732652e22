"""A decoder step's attention as ONNX: our nodes with portable bodies, small enough to compile in a second.

Two layers; the second has biases. E = H * D. The bodies are the plainest that agree with the references.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

DOMAIN = "s2s.plugins"
OPSETS = (("", 18), (DOMAIN, 1))
TYPES = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
H, D, E, LAYERS = 2, 64, 128, 2
NUMPY = {"fp32": np.float32, "fp16": np.float16}


def node(kind: str, inputs: str, outputs: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), outputs.split(), **attributes)


def function(name: str, inputs: str, outputs: str, nodes: list[onnx.NodeProto]) -> onnx.FunctionProto:
    opsets = [helper.make_opsetid(*opset) for opset in OPSETS]
    return helper.make_function(
        DOMAIN, name, inputs.split(), outputs.split(), nodes, opsets, ["scale", "plugin_namespace", "plugin_version"]
    )


def attention_nodes(keys: str, values: str, bias: str | None) -> list[onnx.NodeProto]:
    """output = softmax(query keys^T * scale + mask (+ bias)) values."""
    scale = helper.make_node("Constant", [], ["scale32"])
    scale.attribute.add(name="value_float", ref_attr_name="scale", type=onnx.AttributeProto.FLOAT)
    nodes = [
        scale,
        node("CastLike", "scale32 query", "scale_"),
        node("Transpose", keys, "keys_t", perm=[0, 1, 3, 2]),
        node("MatMul", "query keys_t", "raw"),
        node("Mul", "raw scale_", "scaled"),
        node("Add", "scaled mask", "masked"),
    ]
    if bias:
        nodes.append(node("Add", f"masked {bias}", "biased"))
    return [
        *nodes,
        node("Softmax", "biased" if bias else "masked", "weights", axis=-1),
        node("MatMul", f"weights {values}", "output"),
    ]


def self_function(bias: bool) -> onnx.FunctionProto:
    """Writes K neighbouring slots at position * K with ScatterND over axis 2, then attends over all N by the mask."""

    def constant(name: str, value: list[int]) -> onnx.NodeProto:
        return node("Constant", "", name, value_ints=value)

    nodes = [
        constant("zero", [0]),
        constant("one", [1]),
        node("Shape", "query", "n_beams", start=2, end=3),
        node("Squeeze", "n_beams zero", "n_beams_"),
        node("Constant", "", "zero_", value_int=0),
        node("Constant", "", "one_", value_int=1),
        node("Range", "zero_ n_beams_ one_", "beam_numbers"),
        node("Mul", "position n_beams", "first_slot"),
        node("Add", "beam_numbers first_slot", "slots"),
        node("Unsqueeze", "slots one", "slot_indices"),
    ]
    for name in ("key", "value"):
        nodes += [
            node("Transpose", f"{name}_cache", f"{name}_cache_t", perm=[2, 0, 1, 3]),
            node("Transpose", name, f"{name}_t", perm=[2, 0, 1, 3]),
            node("ScatterND", f"{name}_cache_t slot_indices {name}_t", f"{name}_new_t"),
            node("Transpose", f"{name}_new_t", f"{name}_cache_out", perm=[1, 2, 0, 3]),
        ]
    if bias:  # [1,H,1,C] -> [1,H,1,C*K], each position's number for the slots of all its beams
        nodes += [
            constant("three", [3]),
            constant("four", [4]),
            constant("last", [-1]),
            node("Transpose", "bias", "bias_t", perm=[0, 1, 3, 2]),
            node("Concat", "one one one n_beams", "repeats", axis=0),
            node("Tile", "bias_t repeats", "bias_tiled"),
            node("Shape", "bias", "bias_start", start=0, end=3),
            node("Concat", "bias_start last", "bias_shape", axis=0),
            node("Reshape", "bias_tiled bias_shape", "bias_slots"),
        ]
    nodes += attention_nodes("key_cache_out", "value_cache_out", "bias_slots" if bias else None)
    inputs = "query key value key_cache value_cache mask ancestors position" + (" bias" if bias else "")
    name = "BeamSelfAttentionBias" if bias else "BeamSelfAttention"
    return function(name, inputs, "output key_cache_out value_cache_out", nodes)


def cross_function(bias: bool) -> onnx.FunctionProto:
    inputs = "query key value mask" + (" bias" if bias else "")
    name = "CrossAttentionBias" if bias else "CrossAttention"
    return function(name, inputs, "output", attention_nodes("key", "value", "bias" if bias else None))


def step(element: str, head_size: int = D) -> onnx.ModelProto:
    """states [B,K,E] and caches in; states and caches out. K, B, S and C are free, N and the rest are fixed at 64."""
    kind = TYPES[element]
    width = H * head_size
    rng = np.random.default_rng(0)
    plugin = {"domain": DOMAIN, "plugin_namespace": DOMAIN, "plugin_version": "1", "scale": head_size**-0.5}

    def value(name: str, shape: list[str | int], dtype: int = kind) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, dtype, shape)

    weights = []
    nodes = [node("Constant", "", "rows", value_ints=[0, 0, H, head_size]), node("Identity", "states", "hidden0")]
    inputs = [
        value("states", ["B", "K", width]),
        value("mask", ["B", 1, "K", 64]),
        value("ancestors", ["B", "K", "C"], TensorProto.INT64),
        value("position", [1], TensorProto.INT64),
        value("source_mask", ["B", 1, 1, "S"]),
        value("self_bias", [1, H, 1, "C"]),
        value("cross_bias", [1, H, 1, "S"]),
    ]
    outputs = [value("states_out", ["B", "K", width])]
    nodes.append(node("Constant", "", "flat", value_ints=[0, 0, width]))
    for layer in range(LAYERS):
        bias = bool(layer % 2)
        for name in ("query", "key", "value"):
            weight = rng.standard_normal((width, width)).astype(np.float32) * width**-0.5
            tensor = helper.make_tensor(f"{name}_weight{layer}", TensorProto.FLOAT, weight.shape, weight.reshape(-1))
            weights.append(tensor)
            nodes += [
                node("Cast", tensor.name, f"{name}_weight_{layer}", to=kind),
                node("MatMul", f"hidden{layer} {name}_weight_{layer}", f"{name}_flat{layer}"),
                node("Reshape", f"{name}_flat{layer} rows", f"{name}_rows{layer}"),
                node("Transpose", f"{name}_rows{layer}", f"{name}{layer}", perm=[0, 2, 1, 3]),
            ]
        caches = [f"self_key.{layer}", f"self_value.{layer}"]
        inputs += [value(name, ["B", H, 64, head_size]) for name in caches]
        outputs += [value(f"{name}_out", ["B", H, 64, head_size]) for name in caches]
        cross = [f"cross_key.{layer}", f"cross_value.{layer}"]
        inputs += [value(name, ["B", H, "S", head_size]) for name in cross]
        suffix = "Bias" if bias else ""
        nodes += [
            node(
                f"BeamSelfAttention{suffix}",
                f"query{layer} key{layer} value{layer} {caches[0]} {caches[1]} mask ancestors position"
                + (" self_bias" if bias else ""),
                f"attended{layer} {caches[0]}_out {caches[1]}_out",
                name=f"self_attention_{layer}",
                **plugin,
            ),
            node(
                f"CrossAttention{suffix}",
                f"attended{layer} {cross[0]} {cross[1]} source_mask" + (" cross_bias" if bias else ""),
                f"crossed{layer}",
                name=f"cross_attention_{layer}",
                **plugin,
            ),
            node("Transpose", f"crossed{layer}", f"crossed_rows{layer}", perm=[0, 2, 1, 3]),
            node("Reshape", f"crossed_rows{layer} flat", f"crossed_flat{layer}"),
            node("Add", f"crossed_flat{layer} hidden{layer}", f"hidden{layer + 1}"),
        ]
    nodes.append(node("Identity", f"hidden{LAYERS}", "states_out"))
    graph = helper.make_graph(nodes, "step", inputs, outputs, weights)
    opsets = [helper.make_opsetid(*opset) for opset in OPSETS]
    functions = [self_function(False), self_function(True), cross_function(False), cross_function(True)]
    model = helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=9)
    onnx.checker.check_model(model)
    return model
