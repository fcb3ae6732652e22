"""The passes that rewrite a bundle's graphs into operators of our own: nothing that they could take is left."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import tiny_models
from onnx import TensorProto, helper, numpy_helper

from s2s_export import bundle as bundles
from s2s_export import plugin_sources, recipes
from s2s_export.building.builders import cpu
from s2s_export.building.cpu.own import convolutions, declare, norms, packing, products
from s2s_export.building.graphs.graph import Graph

# An expert's rows are chosen at run time, and T5Gemma's attention is of no kind that a kernel computes.
WHOLE = [name for name in tiny_models.CONFIGS if not name.startswith(("switch_transformers", "t5gemma"))]
TRANSFORMED_HEADS = ("bert-bert", "xlmr-roberta")  # a product and an activation before the output projection


@pytest.mark.parametrize("name", WHOLE)
def test_every_family_is_rewritten_whole(exported, name):
    bundle = bundles.read(exported(name)[1])
    graphs, passes, _ = cpu.rewrite(bundle, recipes.load("cpu-int8"), own=True)
    layers = bundle.manifest["sizes"]["decoder_layers"]
    counts = {done.name: done.count for done in passes["decoder_step"]}
    assert counts["attention over the cache"] == counts["attention over the source"] == layers
    assert counts["output projection with candidates"] == counts["packed embeddings"] == 1
    assert counts["a position and a place for each source"] == 1
    more = int(name in TRANSFORMED_HEADS)
    assert counts["packed products"] == 6 * layers + more
    assert counts["fused residuals"] == counts["fused norms"] == 3 * layers
    encoder = {done.name: done.count for done in passes["encoder"]}
    assert encoder["fused residuals"] == encoder["fused norms"] == 2 * bundle.manifest["sizes"]["encoder_layers"]
    # Summed blocks of tokens are keys that are no part of the rows.
    whole = bundle.manifest["sizes"]["encoder_layers"] if "global" not in name else 0
    assert encoder["attention of the encoder"] == whole
    is_gated = "gated" in name or name in ("mt5", "umt5", "umt5-tied")
    assert counts["fused activations"] == (0 if is_gated and name != "umt5-tied" else layers + more)
    is_of_sound = bundle.manifest["source"].get("kind") == "audio_features"
    assert counts.get("keys and values of the source in 16 bits", 0) == (2 * layers if is_of_sound else 0)
    assert encoder.get("convolutions along time", 0) == (2 if is_of_sound else 0)
    assert not is_of_sound or all(node.op_type != "Conv" for node in graphs["encoder"].nodes)
    read = {name for node in graphs["encoder"].nodes for name in node.input} | set(graphs["encoder"].outputs)
    assert all(read.intersection(node.output) for node in graphs["encoder"].nodes)  # nothing is left that nobody reads
    left = {node.op_type for graph in graphs.values() for node in graph.nodes}
    assert not left & {"Gemm", "LogSoftmax", "TopK", "BeamSelfAttention"}
    assert not left & {"LayerNormalization", "RMSNormalization", "Gelu"}


def stem_of_sound(rng):
    """A graph of two convolutions along time, the second every other frame."""
    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["c0"], name="c0", strides=[1], pads=[1, 1]),
        helper.make_node("Gelu", ["c0"], ["g0"]),
        helper.make_node("Conv", ["g0", "w1", "b1"], ["c1"], name="c1", strides=[2], pads=[1, 1]),
        helper.make_node("Gelu", ["c1"], ["g1"]),
        helper.make_node("Transpose", ["g1"], ["y"], perm=[0, 2, 1]),
    ]
    inputs, outputs = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", 0, 0]) for name in ("x", "y"))
    for value in (inputs, outputs):
        value.type.tensor_type.ClearField("shape")
    model = helper.make_model(
        helper.make_graph(nodes, "stem", [inputs], [outputs]),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    shapes = {"w0": (20, 6, 3), "b0": (20,), "w1": (16, 20, 3), "b1": (16,)}
    weights = {name: rng.standard_normal(shape, dtype=np.float32) / 4 for name, shape in shapes.items()}
    return Graph("encoder", model, weights, dict.fromkeys(("x", "c0", "g0", "c1", "g1", "y"), TensorProto.FLOAT))


def outcome(graph, x):
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(plugin_sources.module("cpu.build").library()))
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in graph.weights.items())
    return onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, {"x": x})[0]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_convolutions_along_time_are_products(precision):
    rng = np.random.default_rng(0)
    graph = stem_of_sound(rng)
    x = rng.standard_normal((2, 6, 41), dtype=np.float32)
    expected = outcome(graph, x)
    done = convolutions.apply(graph, packing.Store(precision))
    declare(graph)
    graph.prune(graph.outputs)
    assert done.count == 2
    assert [node.op_type for node in graph.nodes][0::2] == ["Windows", "Windows"]
    # Bytes are wrong by up to 1/254 of the largest of a row of 60, and as much of its weights.
    np.testing.assert_allclose(outcome(graph, x), expected, atol=1e-5 if precision == "fp32" else 0.1)


def test_a_convolution_that_is_read_twice_is_left():
    graph = stem_of_sound(np.random.default_rng(0))
    graph.model.graph.output.append(helper.make_tensor_value_info("g0", TensorProto.FLOAT, None))
    done = convolutions.apply(graph, packing.Store("int8"))
    assert done.count == 1 and sum(done.left.values()) == 1


def norm_after_a_product(n_weights):
    """A graph of a product, a residual and a LayerNormalization with so many weights."""
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["before"], name="before"),
        helper.make_node("Gemm", ["before", "w", "b"], ["product"], name="product"),
        helper.make_node("Add", ["before", "product"], ["sum"]),
        helper.make_node("LayerNormalization", ["sum", "scale", "shift"][: 1 + n_weights], ["y"], axis=-1),
    ]
    rows = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["R", 16]) for name in ("x", "y")]
    model = helper.make_model(helper.make_graph(nodes, "one", rows[:1], rows[1:]))
    weights = {"w": np.eye(16, dtype="f4"), **{name: np.ones(16, "f4") for name in ("b", "scale", "shift")}}
    return Graph("encoder", model, weights, dict.fromkeys(("x", "before", "product", "sum", "y"), TensorProto.FLOAT))


@pytest.mark.parametrize(("n_weights", "left"), [(2, set()), (1, {"LayerNormalization"})])
def test_a_norm_that_would_pass_for_another_kind_is_left(n_weights, left):
    """Without a bias the operator takes it for an RMSNormalization, which takes no mean away."""
    graph = norm_after_a_product(n_weights)
    products.apply(graph, packing.Store("fp32"))
    norms.apply(graph)
    assert {node.op_type for node in graph.nodes if not node.domain} == left
