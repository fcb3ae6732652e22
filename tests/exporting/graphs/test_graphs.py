"""Each graph of every family against PyTorch, and what a bundle's weights weigh."""

from __future__ import annotations

import collections

import onnx
import pytest
import tiny_models

import s2s_export
from s2s_export import bundle
from s2s_export.errors import ParityError
from s2s_export.exporting.families import m2m100
from s2s_export.exporting.graphs.functions import NATIVE, PLUGINS

# A correct graph of these models is off by a few 1e-6; the product's tolerance leaves room for deep and saturated ones.
TIGHT = 2e-5


@pytest.mark.parametrize("name", tiny_models.CONFIGS)
def test_every_output_equals_pytorchs(exported, name):
    opened = bundle.read(exported(name)[1])
    outputs = opened.manifest["parity"]["outputs"]
    assert {o["output"] for o in outputs} >= {"encoder_states", "cross_key", "log_probs", "log_normalizer", "attention"}
    assert all(o["is_close"] and o["relative"] < TIGHT for o in outputs)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("name", ["marian", "t5"])
def test_rounded_weights_stay_within_their_tolerance(exported, tmp_path, name, precision):
    checkpoint, full = exported(name)
    report = s2s_export.export(checkpoint, tmp_path / "b", precision=precision)
    assert all(error.is_close for error in report.parity)
    sizes = [(path / "weights.bin").stat().st_size for path in (tmp_path / "b", full)]
    assert sizes[0] < 0.7 * sizes[1]
    assert s2s_export.load(tmp_path / "b").generate([[5, 6, 7]], max_new_tokens=4)


@pytest.mark.parametrize("name", tiny_models.CONFIGS)
def test_weights_are_stored_once(exported, name):
    """No more bytes than the model's distinct parameters, alignment and computed position tables apart."""
    path = exported(name)[1]
    distinct = {}
    for tensor in tiny_models.make(name).state_dict().values():
        distinct[tensor.data_ptr()] = tensor.nbytes
    padding = 64 * len(distinct)
    positions = 2 * 64 * 24 * 4  # sinusoids, which a checkpoint does not hold
    if name in ("m2m_100", "fsmt"):  # one long table for both sides
        positions = (m2m100.MIN_POSITIONS + 64) * 24 * 4
    assert (path / "weights.bin").stat().st_size <= sum(distinct.values()) + padding + positions


@pytest.mark.parametrize("name", ["marian", "t5", "m2m_100"])
def test_files_are_valid_onnx_with_our_functions(exported, name):
    path = exported(name)[1]
    for graph in bundle.GRAPHS:
        onnx.checker.check_model(str(path / f"{graph}.onnx"), full_check=True)
    step = onnx.load(path / "decoder_step.onnx", load_external_data=False)
    assert {entry.domain: entry.version for entry in step.opset_import} == {"": 24, PLUGINS: 1, NATIVE: 1}
    counts = collections.Counter(node.op_type for node in step.graph.node if node.domain == PLUGINS)
    layers = bundle.read(path).manifest["sizes"]["decoder_layers"]
    self_attention = "BeamSelfAttentionBias" if name == "t5" else "BeamSelfAttention"
    assert counts == {self_attention: layers, "CrossAttention": layers}


def test_no_shape_of_a_step_depends_on_the_position(exported):
    manifest = bundle.read(exported("marian")[1]).manifest
    letters = {s for v in manifest["graphs"]["decoder_step"]["inputs"] for s in v["shape"] if isinstance(s, str)}
    assert letters == {"B", "K", "C", "N", "S", "Q"}


def test_a_wrong_graph_fails_the_export(tmp_path, monkeypatch):
    """An emitter that forgets the embedding's scale must not get past the comparison."""
    from s2s_export.exporting.graphs import transformer

    checkpoint = tiny_models.save("marian", tmp_path / "c")
    right = transformer.embed

    def wrong(g, stack, ids):
        import dataclasses

        return right(g, dataclasses.replace(stack, embedding_scale=1.0), ids)

    monkeypatch.setattr(transformer, "embed", wrong)
    with pytest.raises(ParityError, match="encoder_states"):
        s2s_export.export(checkpoint, tmp_path / "b")
    assert not (tmp_path / "b").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
