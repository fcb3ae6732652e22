"""Packing weights for the backend `cuda`: what is read from the graphs, what is refused, and what a build checks."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")

import own_modules

from s2s_export import ModuleConfig, bundle, export_module, plugin_sources, recipes
from s2s_export.building.build import build
from s2s_export.building.builders import cuda_native
from s2s_export.building.native import pack, parse
from s2s_export.building.native.recurrent import pack as recurrent_pack
from s2s_export.building.native.recurrent import parse as recurrent_parse
from s2s_export.building.native.structure import Linear, Weight
from s2s_export.errors import BuildError, InvalidOption
from s2s_export.runtime.backends._cuda_native.model import Weights

fragments = plugin_sources.module("transformer.fragments")
TARGET = "cuda-native-fp16"


@pytest.fixture
def copy(exported: Any, tmp_path: Path) -> Any:
    def make(name: str) -> Path:
        return shutil.copytree(exported(name)[1], tmp_path / name, ignore=shutil.ignore_patterns("engines"))

    return make


REFUSED = {
    "longt5": "the encoder's scores have a term computed by Greater, Less, Or",
    "switch_transformers": "what is added to the residual stream comes from ScatterND",
    "blenderbot-small": "the first layer's input comes from LayerNormalization, not from Gather",
    "bert-bert": "the last layer's result comes from Gelu, not from Add",
    "t5gemma-plain": "a layer's result is normed before it is added",
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_structures_are_refused_by_name(copy: Any, name: str) -> None:
    path = copy(name)
    with pytest.raises(BuildError) as caught:
        build(path, TARGET)
    said = str(caught.value)
    assert REFUSED[name] in said and "no kernels for this" in said and "onnxruntime-cuda or TensorRT" in said
    assert not (path / "engines" / TARGET).exists()


def test_sources_that_are_no_text(bundled: Any) -> None:
    opened = bundle.read(bundled("gru"))
    manifest = {**opened.manifest, "source": {"kind": "pixels"}}
    with pytest.raises(BuildError, match="it reads pixels, not text or windows of sound"):
        parse.parse(dataclasses.replace(opened, manifest=manifest))
    with pytest.raises(BuildError, match="its decoder is recurrent and it reads pixels, not text"):
        recurrent_parse.parse(dataclasses.replace(opened, manifest=manifest))


def test_recurrent_models(bundled: Any, tmp_path: Path) -> None:
    """Directions are filled up each by itself, and what reads both has gaps between their columns."""
    structure = recurrent_parse.parse(bundle.read(bundled("attention")))
    model = recurrent_pack.write(structure, "fp16", 40, tmp_path)
    (cells,) = model.encoder
    assert (cells.kind, cells.directions, cells.units, cells.width) == ("lstm", 2, 16, 32)  # of 12 each
    weights = Weights(tmp_path, "")
    read = fragments.unpack(weights.array(model.decoder[0].input.weight)).view(np.float16)  # embedding, then context
    used = [read[:, first : first + 16].any(axis=0).sum() for first in range(0, read.shape[1], 16)]
    assert used == [16, 8, 12, 12]
    gates = fragments.of_units(read.T, 4, 24).transpose(0, 2, 1)
    expected = structure.decoder[0].input[:, :, :16].astype(np.float16)
    np.testing.assert_array_equal(gates[:, :, :16], expected)
    assert model.score is not None and model.score.key is not None  # `dot` has none: it closes the gap
    assert recurrent_pack.write(structure, "int8", 40, tmp_path).tensors[cells.hidden.weight].layout == "bytes"


@pytest.mark.slow
def test_recurrent_models_of_other_forms_are_refused(bundled: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """A module of one's own, whose steps may have any operators; a GRU with the paper's reset gate."""
    path = tmp_path / "own.bundle"
    config = ModuleConfig(own_modules.START, own_modules.END, own_modules.PAD)
    export_module(own_modules.Attentive().eval(), config, path)
    with pytest.raises(BuildError, match="its decoder is recurrent, and its steps were traced from a module's own"):
        build(path, TARGET)
    opened, real = bundle.read(bundled("gru")), recurrent_parse.attribute

    def papers(node: Any, name: str, otherwise: Any = None) -> Any:
        return 0 if name == "linear_before_reset" else real(node, name, otherwise)

    monkeypatch.setattr(recurrent_parse, "attribute", papers)
    with pytest.raises(BuildError, match="the reset gate of its GRU multiplies the state and not its product"):
        recurrent_parse.parse(opened)


@pytest.mark.parametrize("change", ["reverse", "gates", "score"])
def test_a_recurrent_structure_that_was_misread_makes_no_engine(
    bundled: Any, tmp_path: Path, monkeypatch: Any, change: str
) -> None:
    real = recurrent_parse.parse

    def misread(opened: Any) -> Any:
        found = real(opened)
        if change == "reverse":
            return dataclasses.replace(found, reverse=not found.reverse)
        if change == "score":
            turned = Linear(Weight(-np.eye(24, dtype=np.float32), ""), None)
            return dataclasses.replace(found, score=dataclasses.replace(found.score, key=turned))
        first = found.decoder[0]
        swapped = dataclasses.replace(first, input=first.input[::-1])
        return dataclasses.replace(found, decoder=(swapped, *found.decoder[1:]))

    monkeypatch.setattr(recurrent_parse, "parse", misread)
    name = "attention" if change == "score" else "lstm"
    path = shutil.copytree(bundled(name), tmp_path / name, ignore=shutil.ignore_patterns("engines"))
    with pytest.raises(BuildError, match=r"the packed weights give logits that differ"):
        build(path, TARGET)
    assert not (path / "engines" / TARGET).exists()


def test_what_an_engine_holds(copy: Any) -> None:
    path = copy("marian")
    engine = build(path, TARGET).engine
    assert (engine["flavour"], engine["layout"], engine["has_run"]) == ("cuda-native", 3, False)
    assert sorted(engine["files"]) == ["model.json", "weights.bin"]
    assert engine["summary"][-1].startswith("not run: the engine is data for a GPU")
    weights = Weights(path / "engines" / TARGET, "")
    model, structure = weights.model, parse.parse(bundle.read(path))
    # One table serves both embeddings and the head, which this model ties.
    assert model.encoder.embedding == model.decoder.embedding == model.head.weight
    table = fragments.unpack(weights.array(model.head.weight)).view(np.float16)
    expected = np.asarray(structure.head.weight.array, np.float32).astype(np.float16)
    np.testing.assert_array_equal(table[: expected.shape[0], : expected.shape[1]], expected)
    assert not table[expected.shape[0] :].any() and not table[:, expected.shape[1] :].any()
    # 24 wide, heads of 6 in the encoder and of 8 in the decoder: each is filled up by itself.
    assert (model.encoder.true_width, model.encoder.width, model.encoder.head_size) == (24, 32, 16)
    query = fragments.unpack(weights.array(model.encoder.layers[0].self_attention.rows.weight)).view(np.float16)
    heads = query.reshape(3, 4, 16, 32)
    assert heads[:, :, :6, :24].all() and not heads[:, :, 6:].any() and not heads[..., 24:].any()
    assert build(path, TARGET).was_cached


def test_weights_that_the_precision_cant_hold(copy: Any, tmp_path: Path) -> None:
    structure = parse.parse(bundle.read(copy("marian")))
    huge = np.array(structure.head.weight.array, np.float32)
    huge[3, 5] = 1e6
    head = dataclasses.replace(structure.head, weight=dataclasses.replace(structure.head.weight, array=huge))
    with pytest.raises(BuildError, match=r"the weight head.weight has a value of 1e\+06, which fp16 can't hold"):
        pack.write(dataclasses.replace(structure, head=head), "fp16", 61, tmp_path)
    assert pack.write(dataclasses.replace(structure, head=head), "bf16", 61, tmp_path).element == "bf16"
    huge[3, 5] = np.inf
    with pytest.raises(BuildError, match=r"the weight head.weight has values that are no numbers; expected finite"):
        pack.write(dataclasses.replace(structure, head=head), "int8", 61, tmp_path)


def test_weights_of_eight_bits(copy: Any, tmp_path: Path) -> None:
    structure = parse.parse(bundle.read(copy("marian")))
    model = pack.write(structure, "int8", 61, tmp_path)
    weights = Weights(tmp_path, "")
    # The table that serves embeddings and head is stored once, and so are its scales.
    assert model.decoder.embedding == model.head.weight and model.decoder.embedding_row_scales == model.head.scale
    numbers = fragments.unpack(weights.array(model.head.weight)).astype(np.float32)
    scale = weights.array(model.head.scale)
    expected = np.asarray(structure.head.weight.array, np.float32)
    found = (numbers * scale[:, None])[: expected.shape[0], : expected.shape[1]]
    assert (np.abs(found - expected) <= 0.5001 * scale[: len(expected), None]).all()
    positions = model.decoder.positions
    assert positions is not None and model.tensors[positions.table].layout == "fragments"


@pytest.mark.parametrize("change", ["activation", "scale", "norm", "offset"])
def test_a_structure_that_was_misread_makes_no_engine(copy: Any, monkeypatch: Any, change: str) -> None:
    """The comparison with the portable graphs finds what the reading of the graphs got wrong."""
    real = parse.parse

    def misread(opened: Any) -> Any:
        found = real(opened)
        parts = list(found.decoder.parts)
        if change == "activation":
            parts[2] = dataclasses.replace(parts[2], layer=dataclasses.replace(parts[2].layer, activation="relu"))
        elif change == "scale":
            parts[0] = dataclasses.replace(parts[0], layer=dataclasses.replace(parts[0].layer, scale=3.0))
        elif change == "norm":
            parts[1] = dataclasses.replace(parts[1], norm=dataclasses.replace(parts[1].norm, bias=None))
        positions = found.decoder.positions
        if change == "offset":
            positions = dataclasses.replace(positions, offset=positions.offset + 1)
        decoder = dataclasses.replace(found.decoder, parts=tuple(parts), positions=positions)
        return dataclasses.replace(found, decoder=decoder)

    monkeypatch.setattr(parse, "parse", misread)
    path = copy("mbart")
    with pytest.raises(BuildError, match=r"the packed weights give logits that differ .* the structure was not under"):
        build(path, TARGET)
    assert not (path / "engines" / TARGET).exists()


def test_recipes_that_are_wrong(copy: Any, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    lines = {
        'precision = "fp32"': "precision is fp32, expected fp16, bf16 or int8",
        'precision = "fp16"\nplugins = true': "plugins is true, but all kernels are ours; remove it",
        'precision = "fp16"\nbuckets = [16]': "has ranges or buckets, but the kernels take any shape",
        'precision = "fp16"\n[options]\nattention = true': "has the option 'attention', expected none; remove it",
    }
    path = copy("marian")
    for text, message in lines.items():
        recipe.write_text(f'flavour = "cuda-native"\n{text}\n')
        with pytest.raises(InvalidOption, match=message):
            build(path, str(recipe))


def test_targets_say_that_they_have_not_run() -> None:
    for name in (name for name in recipes.names() if recipes.load(name).flavour == "cuda-native"):
        assert "not run on a GPU yet" in recipes.load(name).description
        assert recipes.load(name).precision in cuda_native.PRECISIONS


def test_the_record_is_data(copy: Any) -> None:
    """Memory on a GPU follows from what engine.json says of the caches, whose heads are filled up."""
    path = copy("m2m_100")
    build(path, TARGET)
    engine = json.loads((path / "engines" / TARGET / "engine.json").read_text())
    shapes = {entry["name"]: entry for entry in engine["graphs"]["decoder_step"]["inputs"]}
    assert shapes["self_key.0"] == {"name": "self_key.0", "dtype": "float16", "shape": ["B", 3, "N", 16]}
    assert "attention" not in {entry["name"] for entry in engine["graphs"]["decoder_step"]["outputs"]}
