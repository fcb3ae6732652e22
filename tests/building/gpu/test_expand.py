"""What an older parser lacks, written out, computes the same; and compiles with our kernels as the only way."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper
from small import recipe

from s2s_export import bundle
from s2s_export.building.gpu import dimensions, expand, lower, options
from s2s_export.building.graphs import graph as graphs_module
from s2s_export.runtime.backends._tensorrt.library import Library
from s2s_export.runtime.backends._tensorrt.messages import Messages

CASES = {
    "RMSNormalization": {"axis": -1, "epsilon": 1e-6},
    "Gelu": {},
    "Gelu by tanh": {"approximate": "tanh"},
}


@pytest.mark.parametrize("case", CASES)
def test_the_long_form_computes_the_same(tmp_path, case):
    op_type = case.split()[0]
    inputs = ["x", "w"] if op_type == "RMSNormalization" else ["x"]
    graph = helper.make_graph(
        [helper.make_node(op_type, inputs, ["y"], name="it", **CASES[case])],
        "g",
        [helper.make_tensor_value_info("x", 1, ["R", 24])],
        [helper.make_tensor_value_info("y", 1, ["R", 24])],
        [onnx.numpy_helper.from_array(np.linspace(0.5, 2, 24).astype(np.float32), "w")] if "w" in inputs else [],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11)
    onnx.save_model(model, tmp_path / "short.onnx")
    long = graphs_module.load(tmp_path / "short.onnx", "g")
    assert expand.expand(long, ["Softmax"]) == {}
    assert expand.expand(long, [op_type]) == {op_type: 1}
    assert op_type not in {node.op_type for node in long.nodes}
    long.save(tmp_path / "long.onnx")
    x = np.random.default_rng(0).normal(size=(5, 24)).astype(np.float32) * 3
    found, expected = (
        onnxruntime.InferenceSession(str(tmp_path / f"{name}.onnx"), providers=["CPUExecutionProvider"]).run(
            None, {"x": x}
        )[0]
        for name in ("long", "short")
    )
    np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize("name", ["t5-gated", "bart"])
def test_a_whole_model_without_them_agrees_and_keeps_no_plugin_bodies(bundled, tmp_path, name):
    opened, target = bundle.read(bundled(name)), recipe("fp16", plugins=True)
    fitted = dimensions.fit(opened, target)
    result = lower.lower(
        opened, target, fitted, options.read(target), tmp_path, lambda s: None, ["RMSNormalization", "Gelu"]
    )
    assert sum(result.report["passes"]["expand"]["decoder_step"].values()) > 0
    assert result.agreement["relative_error"] < 2e-2
    step = onnx.load(result.paths["decoder_step"], load_external_data=False)
    assert not {"RMSNormalization", "Gelu"} & {node.op_type for node in step.graph.node}
    assert {f.domain for f in step.functions} <= {"s2s.native"}
    assert any(n.op_type.startswith("BeamSelfAttention") for n in step.graph.node)


def test_what_a_parser_lacks_is_asked_of_it(trt):
    library = Library("tensorrt-rtx", trt)
    assert library.lacking([*expand.EXPANSIONS, "NoSuchOperator"], Messages(library).logger) == ["NoSuchOperator"]
