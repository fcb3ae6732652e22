"""Checkpoints that can't be exported are refused in one sentence, before anything is written."""

from __future__ import annotations

import json
import shutil

import pytest
import safetensors.torch
import tiny_models
import torch

import s2s_export
from s2s_export.errors import CheckpointError, InvalidOption, UnsupportedModel
from s2s_export.exporting import families
from s2s_export.exporting.checkpoint import open_checkpoint


@pytest.fixture
def checkpoint(exported, tmp_path):
    path = tmp_path / "checkpoint"
    shutil.copytree(exported("marian")[0], path)
    return path


def refuse(checkpoint, error, message, **options):
    bundle = checkpoint.parent / "bundle"
    with pytest.raises(error, match=message):
        s2s_export.export(checkpoint, bundle, **options)
    assert not bundle.exists()
    assert [path.name for path in checkpoint.parent.iterdir() if path.name.startswith(".")] == []


def change_config(path, **changes):
    config = json.loads((path / "config.json").read_text())
    config.update(changes)
    (path / "config.json").write_text(json.dumps(config))


def change_weights(path, change):
    weights = safetensors.torch.load_file(path / "model.safetensors")
    change(weights)
    safetensors.torch.save_file(weights, path / "model.safetensors", metadata={"format": "pt"})


def test_a_model_type_without_family_says_where_those_are_that_have_one(checkpoint):
    change_config(checkpoint, model_type="bloom")
    refuse(
        checkpoint,
        UnsupportedModel,
        r"'bloom' has no family; docs/families\.md has the \d\d types that can be",
    )


@pytest.mark.parametrize(
    ("model_type", "message"),
    [
        ("pegasuss", "'pegasuss' has no family, did you mean 'pegasus'?; "),
        ("nllb-moe", "'nllb-moe' can't be exported: transformers sends every token to experts 0 and 1, "),
        (None, "'None' has no family; docs/families.md has the "),
    ],
)
def test_the_nearest_name_or_the_reason_is_given(model_type, message):
    with pytest.raises(UnsupportedModel) as caught:
        families.find(model_type)
    assert message in str(caught.value)


def change_generation(path, **changes):
    file = path / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_a_nested_generation_option_is_refused_by_name_when_decoding(checkpoint):
    """Not by a TypeError at export; and the caller may turn it off, as with generate()."""
    change_generation(checkpoint, watermarking_config={"greenlist_ratio": 0.5}, num_beams={"a": 1})
    bundle = checkpoint.parent / "bundle"
    s2s_export.export(checkpoint, bundle)
    session = s2s_export.load(bundle)
    with pytest.raises(
        InvalidOption, match=r"num_beams is \{'a': 1\} .*expected.*watermarking_config=\{.* not supported"
    ):
        session.generate([[5, 6]])
    assert session.generate([[5, 6]], watermarking_config=None, num_beams=2, max_new_tokens=3)


def test_a_nested_generation_option_that_transformers_fails_for_is_named(checkpoint):
    change_generation(checkpoint, early_stopping={"a": 1})
    refuse(checkpoint, CheckpointError, "generation_config.json gives an object for 'early_stopping', remove it")


def test_weights_of_a_compiled_model_are_those_of_the_model(checkpoint, exported, tmp_path):
    def compiled(weights):
        for name in list(weights):
            weights[f"_orig_mod.{name}"] = weights.pop(name)

    change_weights(checkpoint, compiled)
    report = s2s_export.export(checkpoint, tmp_path / "b")
    assert report.notices == ()
    found, wanted = (
        s2s_export.load(p).generate([[5, 6]], num_beams=3) for p in (tmp_path / "b", exported("marian")[1])
    )
    assert [h.token_ids for h in found[0]] == [h.token_ids for h in wanted[0]]


def test_weights_that_the_model_does_not_use_are_named(checkpoint, tmp_path):
    change_weights(checkpoint, lambda weights: weights.update({"model.extra.weight": torch.zeros(3)}))
    report = s2s_export.export(checkpoint, tmp_path / "b")
    assert report.notices == ("the model does not use 1 of the checkpoint's weights: 'model.extra.weight'",)


def test_a_classifier_is_refused(exported, tmp_path):
    path = tmp_path / "checkpoint"
    shutil.copytree(exported("bart")[0], path)
    change_config(path, architectures=["BartForSequenceClassification"])
    refuse(path, UnsupportedModel, "is a BartForSequenceClassification, which generates no text; expected a model with")


def test_missing_and_truncated_weights(checkpoint):
    raw = (checkpoint / "model.safetensors").read_bytes()
    (checkpoint / "model.safetensors").write_bytes(raw[: len(raw) // 2])
    refuse(checkpoint, CheckpointError, "can't load it")
    (checkpoint / "model.safetensors").write_bytes(b"")
    refuse(checkpoint, CheckpointError, "is empty")
    (checkpoint / "model.safetensors").unlink()
    refuse(checkpoint, CheckpointError, "no weights in it")


def test_a_missing_tensor_is_named(checkpoint):
    name = "model.encoder.layers.0.fc1.weight"
    change_weights(checkpoint, lambda weights: weights.pop(name))
    refuse(checkpoint, CheckpointError, name)


def test_a_config_that_contradicts_its_weights(checkpoint):
    change_config(checkpoint, decoder_ffn_dim=44)
    refuse(checkpoint, CheckpointError, "shape|size mismatch")


def test_a_layer_too_many_in_the_config(checkpoint):
    change_config(checkpoint, encoder_layers=3, num_hidden_layers=3)
    refuse(checkpoint, CheckpointError, "encoder.layers.2")


def test_a_weight_that_is_no_number(checkpoint):
    def poison(weights):
        weights["model.encoder.layers.0.fc1.weight"][0, 0] = float("nan")

    change_weights(checkpoint, poison)
    refuse(checkpoint, CheckpointError, "fc1.weight' holds NaN")


def test_an_activation_that_no_graph_has(checkpoint):
    change_config(checkpoint, activation_function="mish")
    refuse(checkpoint, UnsupportedModel, "'mish' is not supported; known: gelu")


def test_no_config_and_no_folder(checkpoint):
    (checkpoint / "config.json").write_text("{")
    refuse(checkpoint, CheckpointError, "not readable as JSON")
    (checkpoint / "config.json").unlink()
    refuse(checkpoint, CheckpointError, "no config.json")
    refuse(checkpoint.parent / "nothing here", CheckpointError, "no such folder")


def test_limits_outside_the_models_own(checkpoint):
    refuse(checkpoint, InvalidOption, "max_source_length is 49; expected 1 to 48", max_source_length=49)
    refuse(checkpoint, InvalidOption, "precision is 'int3'", precision="int3")


def test_a_half_precision_checkpoint_exports_in_full_precision(tmp_path):
    tiny_models.make("t5").to(torch.float16).save_pretrained(tmp_path / "c")
    report = s2s_export.export(tmp_path / "c", tmp_path / "b")
    assert report.manifest["precision"] == "fp32" and all(error.is_close for error in report.parity)


def test_pickled_weights_are_read(tmp_path):
    model = tiny_models.make("bart")
    model.save_pretrained(tmp_path / "c")
    (tmp_path / "c" / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "c" / "pytorch_model.bin")
    assert s2s_export.export(tmp_path / "c", tmp_path / "b").path.is_dir()


def test_sharded_weights_are_read(tmp_path):
    tiny_models.make("m2m_100").save_pretrained(tmp_path / "c", max_shard_size="20KB")
    assert len(list((tmp_path / "c").glob("*.safetensors"))) > 1
    assert s2s_export.export(tmp_path / "c", tmp_path / "b").path.is_dir()


@pytest.mark.parametrize("content", ["{", "[1]", "[" * 100_000, '"text"'])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_settings_that_can_not_be_read_are_never_left_aside(checkpoint, name, content):
    """transformers would export with defaults of its own."""
    (checkpoint / name).write_text(content)
    with pytest.raises(CheckpointError, match=rf"{name}: (not readable as JSON|holds no JSON object)"):
        open_checkpoint(checkpoint)


def test_countless_layers_are_refused_and_not_made(checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "encoder_layers": 2**62}))
    with pytest.raises(CheckpointError, match="encoder_layers is 4611686018427387904, expected at most 1000"):
        open_checkpoint(checkpoint)
