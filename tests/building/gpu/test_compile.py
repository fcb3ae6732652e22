"""Engines of every family for every RTX target, compiled ahead of time for all of its compute capabilities.

No GPU runs them here. What is checked: they compile, from the layers that the target expects; and the file that was
compiled gives what the fp32 graphs give, which export compared with PyTorch.
"""

from __future__ import annotations

import dataclasses
import json

import pytest
from small import recipe, shrunk
from tiny_names import FAMILIES, RECURRENT, STRUCTURES, in_the_long_run

import s2s_export
from s2s_export import bundle
from s2s_export.building.build import build
from s2s_export.building.gpu import compile as compiling
from s2s_export.building.gpu import dimensions, lower, options
from s2s_export.recipes import Range
from s2s_export.runtime.backends._tensorrt.library import Library

TARGETS = ["rtx-fp16", "rtx-bf16", "rtx-int8", "rtx-fp16-plugins"]
# Of the largest logit; int8 has 127 steps, and these models are tiny and random.
AGREEMENT = {"fp16": 2e-2, "bf16": 1.5e-1, "int8": 5e-1}
GRAPHS = ("encoder", "cross_kv_init", "decoder_step")


@pytest.fixture
def compiled(trt, bundled, tmp_path):
    """compiled(model, recipe, graphs) -> by graph what the compiler says; the lowering's report."""
    library = Library("tensorrt-rtx", trt)

    def make(name, target, graphs=("decoder_step",)):
        opened = bundle.read(bundled(name))
        fitted, chosen = dimensions.fit(opened, target), options.read(target)
        if target.plugins:
            from s2s_export import plugin_sources

            plugin_sources.module("glue.tensorrt_plugins").register(trt)
        lowered = lower.lower(opened, target, fitted, chosen, tmp_path, lambda stage: None)
        return {
            graph: compiling.compile_graph(
                library, graph, lowered.paths[graph], tmp_path / f"{graph}.engine", fitted.ranges, target, print
            )
            for graph in graphs
        }, lowered

    return make


@pytest.mark.parametrize(
    ("target", "name"),
    [
        pytest.param(target, name, marks=() if target == "rtx-fp16" and name in STRUCTURES else pytest.mark.slow)
        for target in TARGETS
        for name in FAMILIES
    ],
)
def test_a_decoder_step_compiles_from_the_layers_it_should(compiled, bundled, name, target):
    small = shrunk(target)
    assert small.compute_capabilities == ("8.6", "8.9", "12.0")
    results, lowered = compiled(name, small)
    layers = results["decoder_step"].layers
    n = bundle.read(bundled(name)).manifest["sizes"]["decoder_layers"]
    if small.plugins:
        assert layers["PLUGIN_V3"] == 2 * n
        assert "ATTENTION_INPUT" not in layers
        assert "KV_CACHE_UPDATE" not in layers
    else:
        assert layers["ATTENTION_INPUT"] == 2 * n
        assert layers["KV_CACHE_UPDATE"] == 2 * n
        assert "PLUGIN_V3" not in layers
    assert ("QUANTIZE" in layers) == (small.precision == "int8")
    assert results["decoder_step"].n_bytes > 0
    assert lowered.agreement["finite"]
    assert lowered.agreement["relative_error"] < AGREEMENT[small.precision]


@pytest.mark.parametrize("name", in_the_long_run(RECURRENT, ["attention"]))
@pytest.mark.parametrize(
    "target", ["rtx-fp16", *(pytest.param(t, marks=pytest.mark.slow) for t in ("rtx-bf16", "rtx-int8"))]
)
def test_recurrent_models_compile_whole(compiled, name, target):
    results, lowered = compiled(name, shrunk(target), GRAPHS)
    assert all(result.n_bytes > 0 for result in results.values())
    step = results["decoder_step"].layers
    assert "RECURRENCE" not in step  # cells are plain products
    assert step["MATRIX_MULTIPLY"] > 0
    assert lowered.agreement["finite"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["marian", "t5"])
def test_fp8_compiles_where_the_hardware_has_it(compiled, name):
    results, _ = compiled(name, recipe("fp8", compute_capabilities=("8.9", "12.0")), GRAPHS)
    assert all(result.layers["QUANTIZE"] > 0 for result in results.values())


def test_heads_that_have_a_kernel_are_not_taken_apart(compiled, tmp_path, trt):
    """And those that have none are, which the result says: here 8 numbers a head, there 64."""
    results, _ = compiled("t5", recipe("fp16"))
    assert results["decoder_step"].decomposed == results["decoder_step"].layers["ATTENTION_INPUT"]
    path = _wide(tmp_path)
    opened, target = bundle.read(path), recipe("fp16")
    fitted = dimensions.fit(opened, target)
    (tmp_path / "w").mkdir()
    lowered = lower.lower(opened, target, fitted, options.read(target), tmp_path / "w", lambda stage: None)
    result = compiling.compile_graph(
        Library("tensorrt-rtx", trt), "decoder_step", lowered.paths["decoder_step"], tmp_path / "w.engine",
        fitted.ranges, target, print, decompose=False,
    )  # fmt: skip
    assert result.decomposed == 0
    assert result.layers["KV_CACHE_UPDATE"] == 2


def _wide(folder):
    import transformers

    sizes = {"d_kv": 64, "d_model": 128, "num_heads": 2, "num_layers": 1, "num_decoder_layers": 1, "d_ff": 64}
    config = transformers.T5Config(vocab_size=61, decoder_start_token_id=0, **sizes)
    transformers.AutoModelForSeq2SeqLM.from_config(config).save_pretrained(folder / "wide")
    s2s_export.export(folder / "wide", folder / "wide.bundle")
    return folder / "wide.bundle"


def test_build_writes_engines_a_record_and_a_summary(copied, tmp_path, trt):
    target = tmp_path / "mine.toml"
    target.write_text(
        'flavour = "tensorrt-rtx"\nprecision = "fp16"\ncompute_capabilities = ["8.9"]\n'
        "[ranges]\nT = { min = 1, opt = 8, max = 500 }\nK = { min = 1, opt = 2, max = 4 }\n"
        "[options]\nn_samples = 4\nn_steps = 6\n"
    )
    stages = []
    report = build(copied("marian"), str(target), progress=stages.append)
    record = json.loads((report.path / "engine.json").read_text())
    assert sorted(record["files"]) == ["cross_kv_init.engine", "decoder_step.engine", "encoder.engine"]
    for name, graph in record["graphs"].items():
        assert graph["bytes"] == (report.path / f"{name}.engine").stat().st_size
        assert graph["seconds"] > 0
        assert graph["layers"]["CONSTANT"] > 0
    assert record["built_with"]["library"] == f"tensorrt-rtx {trt.__version__}"
    assert record["device"]["compute_capabilities"] == ["8.9"]
    assert record["has_run"] is False
    assert record["agreement"]["best_token"] > 0.9
    assert any("ranges.T ends at 48 instead of 500" in line for line in record["summary"])
    assert any("4 ATTENTION_INPUT, 4 KV_CACHE_UPDATE" in line for line in record["summary"])
    assert "compile decoder_step" in stages
    assert any(stage.startswith("decoder_step: ") for stage in stages)  # from inside the library
    again = build(copied("marian"), str(target))
    assert again.was_cached


@pytest.mark.slow
@pytest.mark.parametrize("target", ["rtx-fp16", "rtx-int8"])
def test_an_opus_mt_size_model_builds_at_the_real_ranges(tmp_path, trt, target):
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.MarianConfig(
        vocab_size=58101, d_model=512, encoder_layers=6, decoder_layers=6, encoder_attention_heads=8,
        decoder_attention_heads=8, encoder_ffn_dim=2048, decoder_ffn_dim=2048, max_position_embeddings=512,
        pad_token_id=58100, eos_token_id=0, decoder_start_token_id=58100, scale_embedding=True,
    )  # fmt: skip
    transformers.AutoModelForSeq2SeqLM.from_config(config).save_pretrained(tmp_path / "opus")
    s2s_export.export(tmp_path / "opus", tmp_path / "bundle", precision="fp16")
    engine = build(tmp_path / "bundle", target).engine
    step = engine["graphs"]["decoder_step"]
    assert step["decomposed_attentions"] == 0
    assert step["layers"]["ATTENTION_INPUT"] == step["layers"]["KV_CACHE_UPDATE"] == 12
    assert engine["agreement"]["among_clear"] > 0.95
    # 41 MiB of layers in fp16; embedding and output projection, 57 MiB each, are one weight, but laid out twice.
    assert step["bytes"] < (175 if target == "rtx-fp16" else 155) * 2**20


def test_ranges_may_be_one_size(compiled):
    """Every letter fixed: what a captured graph wants."""
    fixed = {letter: Range(n, n, n) for letter, n in {"B": 1, "K": 4, "S": 16, "T": 16}.items()}
    results, _ = compiled("t5", dataclasses.replace(recipe("fp16"), ranges=fixed), GRAPHS)
    assert results["decoder_step"].n_bytes > 0
