"""What each pass changes, by its count and by its numbers."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnxruntime
import pytest
import tiny_models
from onnx import TensorProto, helper, numpy_helper, save_model

import s2s_export
from s2s_export import bundle as bundles
from s2s_export import recipes
from s2s_export.building.build import build
from s2s_export.building.builders import cpu
from s2s_export.building.cpu.onnxruntime import candidates, embedding, ondemand, products
from s2s_export.building.graphs import graph as graphs
from s2s_export.reference import build as build_reference
from s2s_export.reference.checkpoint import Checkpoint, save_checkpoint, weights_of
from s2s_export.reference.config import ReferenceConfig


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A Marian of width 32 and 64 tokens: blocks fit its rows, groups its vocabulary."""
    from transformers import MarianConfig, MarianMTModel

    folder = tmp_path_factory.mktemp("wide")
    sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 64}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 4}
    tokens = {"vocab_size": 64, "pad_token_id": 63, "eos_token_id": 0, "decoder_start_token_id": 63}
    MarianMTModel(MarianConfig(**sizes, **heads, **tokens)).save_pretrained(folder / "checkpoint")
    s2s_export.export(folder / "checkpoint", folder / "bundle")
    return bundles.read(folder / "bundle")


def library(target):
    """The target's recipe, for ONNX Runtime's kernels."""
    return dataclasses.replace(recipes.load(target), options={"kernels": "onnxruntime"})


def test_counts(wide):
    _, passes, _ = cpu.rewrite(wide, library("cpu-int8"))
    counts = {graph: {done.name: done.count for done in found} for graph, found in passes.items()}
    assert counts["encoder"] == {"int8 products by channel": 4, "int8 embedding": 1}
    assert counts["cross_kv_init"] == {"int8 products by channel": 2, "int8 embedding": 0}
    step = {"cache slots chosen by the runtime": 2, "outputs on demand": 2, "two-step top-k": 1, "int8 embedding": 1}
    products_of_a_step = 2 * 6 + 1
    assert counts["decoder_step"] == {**step, "int8 products by channel": products_of_a_step}
    assert counts["decoder_step_narrow"] == {**step, "int8 products by block": products_of_a_step}


@pytest.mark.parametrize("name", tiny_models.CONFIGS)
def test_every_family_is_served_by_every_pass_or_says_why(exported, name):
    bundle = bundles.read(exported(name)[1])
    _, passes, _ = cpu.rewrite(bundle, library("cpu-int8"))
    for done in (done for found in passes.values() for done in found):
        if done.count == 0 and done.name != "int8 embedding":
            assert done.left, f"{done.name} did nothing to {name} and gave no reason"
    by_name = {done.name: done for done in passes["decoder_step"]}
    sizes = bundle.manifest["sizes"]
    has_grouped_queries = name.startswith("t5gemma")  # whose attention is no BeamSelfAttention
    assert by_name["cache slots chosen by the runtime"].count == (0 if has_grouped_queries else sizes["decoder_layers"])
    assert f"{sizes['width']} values are not a multiple of 16" in by_name["int8 embedding"].line()
    assert "61 tokens" in by_name["two-step top-k"].line() or "53 tokens" in by_name["two-step top-k"].line()


@pytest.mark.parametrize("kind", ["gru", "attention"])
def test_recurrent_models(tmp_path, kind):
    config = ReferenceConfig(model=kind, vocab_size=40, d_model=32, max_source_length=30, max_target_length=30)
    save_checkpoint(tmp_path / "checkpoint", Checkpoint(config, weights_of(build_reference(config))))
    path = tmp_path / "bundle"
    s2s_export.export(tmp_path / "checkpoint", path)
    _, passes, _ = cpu.rewrite(bundles.read(path), library("cpu-int8"))
    by_name = {done.name: done for done in passes["decoder_step"]}
    assert by_name["cache slots chosen by the runtime"].left == {"there is no self-attention over a cache of beams": 1}
    assert by_name["int8 products by channel"].count > 0
    for target in ("cpu-fp32", "cpu-int8"):
        build(path, target)
    tokens = {}
    for target in ("portable", "cpu-fp32", "cpu-int8"):
        session = s2s_export.load(path, "onnxruntime", target, threads=1)
        found = session.generate([[5, 6, 7], [8, 9]], num_beams=3, repetition_penalty=1.2, max_new_tokens=12)
        tokens[target] = [h[0].token_ids for h in found]
    assert tokens["portable"] == tokens["cpu-fp32"]
    assert all(tokens["cpu-int8"])


def test_two_step_top_k_keeps_order_and_ties(tmp_path):
    group, size = candidates.group_size(96), 96
    assert size % group == 0
    nodes = [
        helper.make_node("LogSoftmax", ["x"], ["lp"], axis=-1),
        helper.make_node("TopK", ["lp", "k"], ["best", "ids"], name="top", axis=-1),
        helper.make_node("Identity", ["lp"], ["log_probs"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["R", size])
    k = helper.make_tensor_value_info("k", TensorProto.INT64, [1])
    outputs = [
        helper.make_tensor_value_info("best", TensorProto.FLOAT, ["R", "M"]),
        helper.make_tensor_value_info("ids", TensorProto.INT64, ["R", "M"]),
        helper.make_tensor_value_info("log_probs", TensorProto.FLOAT, ["R", size]),
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "g", [x, k], outputs), opset_imports=[helper.make_opsetid("", 21)], ir_version=10
    )
    save_model(model, tmp_path / "plain.onnx")
    graph = graphs.load(tmp_path / "plain.onnx", "g")
    assert candidates.apply(graph).count == 1
    graph.save(tmp_path / "fast.onnx")
    plain, fast = (onnxruntime.InferenceSession(tmp_path / f"{name}.onnx") for name in ("plain", "fast"))
    rng = np.random.default_rng(0)
    for m in (1, 2, 7, 50, size):
        values = rng.integers(0, 6, (5, size)).astype(np.float32)  # many ties
        feed = {"x": values, "k": np.array([m])}
        expected, found = plain.run(["best", "ids"], feed), fast.run(["best", "ids"], feed)
        assert (expected[0] == found[0]).all()
        assert (expected[1] == found[1]).all()


def test_a_prime_vocabulary_is_left_as_it_is():
    assert candidates.group_size(58109) is None
    assert 58101 % candidates.group_size(58101) == 0


@pytest.mark.parametrize("block", [16, 64])
def test_quantised_weights_are_near(block):
    weight = np.random.default_rng(1).standard_normal((40, 96)).astype(np.float32)
    weight[3] = 0
    values, scale = products.by_channel(weight)
    assert np.abs(values.T * scale[:, None] - weight).max() <= scale.max() / 2 + 1e-6
    blocks, scales = products.by_block(weight, block)
    padded = ((blocks.astype(np.float32) - 128) * scales[:, :, None]).reshape(40, -1)[:, :96]
    assert np.abs(padded - weight).max() <= scales.max() / 2 + 1e-6
    nibbles, scales = products.by_block(weight, block, bits=4)
    values = np.stack([nibbles & 15, nibbles >> 4], axis=-1).reshape(40, -1, block).astype(np.float32) - 8
    assert np.abs((values * scales[:, :, None]).reshape(40, -1)[:, :96] - weight).max() <= scales.max() / 2 + 1e-6


def test_products_by_channel_lose_no_sums_on_this_processor(tmp_path):
    """Rows and weights at their ends, where sums of two products in 16 bits would saturate."""
    n_in, n_out = 256, 32
    weight = np.where(np.arange(n_in * n_out).reshape(n_in, n_out) % n_in < n_in - 1, 1.0, -1.0).astype(np.float32)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, n_in])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, n_out])
    node = helper.make_node("MatMul", ["x", "weight"], ["y"])
    made = helper.make_graph([node], "g", [x], [y], [numpy_helper.from_array(weight, "weight")])
    save_model(helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), tmp_path / "a.onnx")
    graph = graphs.load(tmp_path / "a.onnx", "g")
    assert products.apply(graph, "channel", products.Quantised()).count == 1
    graph.save(tmp_path / "int8.onnx")
    rows = np.full((5, n_in), 2.0, np.float32)
    found = onnxruntime.InferenceSession(tmp_path / "int8.onnx").run(None, {"x": rows})[0]
    np.testing.assert_allclose(found, rows @ weight, rtol=0.02)


def test_which_processors_saturate():
    assert products.saturates("x86_64", frozenset({"avx2", "fma"}))
    assert not products.saturates("x86_64", frozenset({"avx2", "avx_vnni"}))
    assert not products.saturates("x86_64", frozenset({"avx512f", "avx512_vnni"}))
    assert not products.saturates("aarch64", frozenset())


def test_tied_tables_are_one_tensor(wide):
    from s2s_export.building.cpu.onnxruntime import save

    found, _, _ = cpu.rewrite(wide, library("cpu-int8"))
    narrow = found["decoder_step_narrow"]
    rows = [a for n, a in narrow.weights.items() if n.endswith("/rows")]
    head = [a for n, a in narrow.weights.items() if "head" in n and n.endswith("/8bit")]
    assert np.array_equal(rows[0].ravel(), head[0].ravel())
    assert save.NAME == "weights.bin"
    assert ondemand.ON_DEMAND == ("log_probs", "attention")
    assert embedding.TOKENS


def test_unasked_outputs_are_not_computed(wide):
    found, _, _ = cpu.rewrite(wide, library("cpu-fp32"))
    step = found["decoder_step"]
    assert {"want_log_probs", "want_attention"} <= set(step.inputs)
    assert "logits" not in step.outputs
    outside = [node.op_type for node in step.nodes]
    assert outside.count("If") == 2 and "AttentionWeights" not in outside
