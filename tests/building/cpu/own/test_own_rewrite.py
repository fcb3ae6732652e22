"""The passes that rewrite a bundle's graphs into operators of our own: nothing that they could take is left."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_models
from onnx import TensorProto, helper

from s2s_export import bundle as bundles
from s2s_export import recipes
from s2s_export.building.builders import cpu
from s2s_export.building.cpu.own import norms, packing, products
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
    read = {name for node in graphs["encoder"].nodes for name in node.input} | set(graphs["encoder"].outputs)
    assert all(read.intersection(node.output) for node in graphs["encoder"].nodes)  # nothing is left that nobody reads
    left = {node.op_type for graph in graphs.values() for node in graph.nodes}
    assert not left & {"Gemm", "LogSoftmax", "TopK", "BeamSelfAttention"}
    assert not left & {"LayerNormalization", "RMSNormalization", "Gelu"}


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
