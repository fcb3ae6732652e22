"""Precision: what each pass changes, and how far the lowered graphs are from fp32 on this CPU."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from small import recipe
from tiny_names import EACH_FAMILY, RECURRENT

import s2s_export
from s2s_export import bundle
from s2s_export.building import samples
from s2s_export.building.gpu import activations, agreement, dimensions, lower, options, precision, quantize, rounding
from s2s_export.building.gpu.running import Runner
from s2s_export.building.graphs import graph as graphs_module
from s2s_export.bundle import GRAPHS
from s2s_export.errors import BuildError

# Relative to the largest logit. A type's own rounding is 2^-11 (fp16) and 2^-8 (bf16); a tiny model has few layers
# and random weights of large spread, which multiply it by about ten.
TOLERANCE = {"fp32": 1e-5, "fp16": 2e-2, "bf16": 1.5e-1}


def lowered(path, folder, precision_name, **changes):
    opened = bundle.read(path)
    wanted = recipe(precision_name, **changes)
    return lower.lower(opened, wanted, dimensions.fit(opened, wanted), options.read(wanted), folder, lambda stage: None)


@pytest.mark.parametrize("name", [*EACH_FAMILY, *RECURRENT])
@pytest.mark.parametrize("kind", TOLERANCE)
def test_lowered_graphs_agree_with_fp32(bundled, tmp_path, name, kind):
    found = lowered(bundled(name), tmp_path, kind).agreement
    assert found["finite"]
    assert found["relative_error"] < TOLERANCE[kind]
    assert kind == "fp32" or found["relative_error"] > 1e-7  # something was rounded


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_quantised_products_carry_scales_and_low_weights(bundled, tmp_path, kind):
    result = lowered(bundled("marian"), tmp_path, kind)
    model = onnx.load(result.paths["decoder_step"], load_external_data=False)
    stored = {"int8": onnx.TensorProto.INT8, "fp8": onnx.TensorProto.FLOAT8E4M3FN}[kind]
    passes = result.report["passes"]["quantize"]
    low = [i for i in model.graph.initializer if i.data_type == stored and len(i.dims) == 2]
    assert len(low) == passes["decoder_step"]["products_quantized"] == 12  # 6 a layer, the head is left
    assert passes["decoder_step"]["left"] == {"kept by the recipe or its range": 1}
    for node in model.graph.node:
        assert node.op_type != "DynamicQuantizeLinear"
    scales = {i.name: i for i in model.graph.initializer}
    axes = [n for n in model.graph.node if n.op_type == "DequantizeLinear" and list(scales[n.input[1]].dims)]
    assert len(axes) == 12  # per output column
    assert result.agreement["finite"]
    assert any(kind in line for line in result.summary)


def test_the_head_is_quantised_on_request(bundled, tmp_path):
    result = lowered(bundled("marian"), tmp_path, "int8", options={"quantize_head": True})
    assert result.report["passes"]["quantize"]["decoder_step"]["left"] == {}


def test_an_int8_scale_clips_rare_large_values():
    rng = np.random.default_rng(0)
    values = np.abs(rng.normal(size=20000)).astype(np.float32)
    plain = quantize.activation_scale(values, float(values.max()), "int8")
    values[0] = 2 * values.max()
    clipped = quantize.activation_scale(values, float(values.max()), "int8")
    assert plain <= clipped < float(values.max()) / 127
    assert quantize.activation_scale(values, 448.0, "fp8") == pytest.approx(1.0)


def test_caches_are_low_and_logits_are_not(bundled, tmp_path):
    described = lowered(bundled("t5"), tmp_path, "fp16").described["decoder_step"]
    kinds = {e["name"].split(".")[0]: e["dtype"] for e in (*described["inputs"], *described["outputs"])}
    assert kinds["self_key"] == kinds["self_value_out"] == kinds["cross_key"] == "float16"
    assert kinds["logits"] == "float32"
    slots = {e["shape"][2] for e in described["inputs"] if e["name"].startswith("self_")}
    assert len(slots) == 1
    assert isinstance(slots.pop(), int)


def test_states_of_a_recurrent_decoder_stay_fp32(bundled, tmp_path):
    described = lowered(bundled("gru"), tmp_path, "fp16").described["decoder_step"]
    assert {e["dtype"] for e in described["inputs"] if "K" in e["shape"] and e["name"].startswith("hidden")} == {
        "float32"
    }


def test_norms_and_sums_stay_fp32_while_products_do_not(bundled):
    opened = bundle.read(bundled("bart"))
    graph = graphs_module.load(opened.graph_path("decoder_step"), "decoder_step")
    report = precision.convert(graph, "fp16")
    casts = {n.output[0]: n for n in graph.nodes if n.op_type == "Cast"}
    for node in graph.nodes:
        if node.op_type in ("LayerNormalization", "LogSoftmax"):
            assert graph.types[node.output[0]] == graphs_module.FLOAT
        if node.op_type == "Gemm":
            assert graph.types[node.output[0]] == graphs_module.FLOAT16
    assert report["nodes"]["fp16"] > 0
    assert len(casts) == report["casts"]


def test_a_tied_weight_is_stored_once(bundled, tmp_path):
    result = lowered(bundled("marian"), tmp_path, "fp16")
    model = onnx.load(result.paths["decoder_step"], load_external_data=False)
    size = bundle.read(bundled("marian")).vocabulary_size
    tables = [i for i in model.graph.initializer if list(i.dims) == [size, 24]]
    places = {next(e.value for e in i.external_data if e.key == "offset") for i in tables}
    assert len(tables) == len(places) == 1


# Overflow


@pytest.fixture(scope="module")
def growing(tmp_path_factory):
    """A T5 whose feed-forward writes numbers that fp16 does not have, as trained ones do."""
    import tiny_models
    import torch

    root = tmp_path_factory.mktemp("growing")
    model = tiny_models.make("t5")
    with torch.no_grad():
        for block in model.encoder.block:
            block.layer[-1].DenseReluDense.wo.weight.mul_(2e4)
    model.save_pretrained(root / "t5")
    s2s_export.export(root / "t5", root / "bundle")
    return root / "bundle"


@pytest.mark.parametrize("remedy", ["fp32", "bf16"])
def test_values_beyond_fp16_are_found_and_kept_elsewhere(growing, tmp_path, remedy):
    result = lowered(growing, tmp_path, "fp16", options={"overflow": remedy})
    overflow = result.report["overflow"]
    assert overflow["nodes"] >= 2
    worst = overflow["largest_first"][0]
    assert worst["graph"] == "encoder"
    assert worst["largest"] > 65504
    assert worst["kept_in"] == remedy
    assert any(f"compute in {remedy}" in line for line in result.summary)
    assert result.agreement["finite"]
    assert result.agreement["relative_error"] < TOLERANCE["bf16" if remedy == "bf16" else "fp16"]


def test_without_that_the_same_model_gives_noise(growing, tmp_path):
    opened = bundle.read(growing)
    graphs = {name: graphs_module.load(opened.graph_path(name), name) for name in GRAPHS}
    seen = activations.measure(opened, graphs, samples.sources(opened, 4)[0], 6)
    boundary = precision.boundaries(graphs, "fp16")
    for name, graph in graphs.items():
        precision.convert(graph, "fp16", boundary=boundary)
        graphs[name] = rounding.rounded(graph)
        graphs[name].save(tmp_path / f"{name}.onnx")
    paths = {name: tmp_path / f"{name}.onnx" for name in graphs}
    runner = Runner(opened, paths, {name: graph.describe() for name, graph in graphs.items()})
    found = agreement.compare(seen.traces, runner.follow(seen.traces))
    assert not found["finite"] or found["relative_error"] > 0.1


def test_a_build_below_the_wanted_agreement_fails(growing, tmp_path):
    with pytest.raises(BuildError, match="min_agreement"):
        lowered(growing, tmp_path, "int8", options={"min_agreement": 1.0, "n_steps": 24})


@pytest.mark.parametrize(("kind", "dtype"), [("fp16", np.float16), ("bf16", ml_dtypes.bfloat16)])
def test_the_copy_for_a_cpu_rounds_every_value(bundled, tmp_path, kind, dtype):
    opened = bundle.read(bundled("bart"))
    graph = graphs_module.load(opened.graph_path("cross_kv_init"), "cross_kv_init")
    precision.convert(graph, kind, boundary={name: precision.TYPES[kind] for name in graph.outputs})
    rounding.rounded(graph).save(tmp_path / "g.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "g.onnx"), providers=["CPUExecutionProvider"])
    states = np.random.default_rng(0).normal(size=(2, 3, 24)).astype(np.float32)
    for array in session.run(None, {"encoder_states": states}):
        assert (array == array.astype(dtype).astype(np.float32)).all()
