"""The checkpoint folder: what goes in comes out, damage is named, a folder is whole or absent."""

from __future__ import annotations

import json
import os

import pytest
import safetensors.torch
import torch

from s2s_export.errors import CheckpointError
from s2s_export.reference import ReferenceConfig, build
from s2s_export.reference.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, weights_of


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(1)
    config = ReferenceConfig("gru", 23, d_model=8, decoder_layers=1)
    save_checkpoint(tmp_path / "model", Checkpoint(config, weights_of(build(config)), b"tokens", training={"step": 3}))
    return tmp_path / "model"


@torch.no_grad()
def test_round_trip(model, batch, tmp_path):
    save_checkpoint(tmp_path / "a", Checkpoint(model.config, weights_of(model), generation={"num_beams": 4}))
    loaded = load_checkpoint(tmp_path / "a", expected=model.config.model)
    assert loaded.config == model.config
    torch.testing.assert_close(loaded.model()(*batch), model(*batch), atol=0, rtol=0)
    assert json.loads((tmp_path / "a/config.json").read_text())["model_type"] == f"s2s-{model.config.model}"
    generation = json.loads((tmp_path / "a/generation_config.json").read_text())
    assert (generation["decoder_start_token_id"], generation["num_beams"], generation["max_length"]) == (1, 4, 18)


def test_a_tied_weight_is_stored_once(tmp_path):
    config = ReferenceConfig("attention", 23, d_model=8, tie_embeddings=True)
    model = build(config)
    save_checkpoint(tmp_path / "a", Checkpoint(config, weights_of(model)))
    stored = safetensors.torch.load_file(tmp_path / "a/model.safetensors")
    assert sum(value.numel() for value in stored.values()) == sum(p.numel() for p in model.parameters())
    again = load_checkpoint(tmp_path / "a").model()
    assert again.output.weight is again.source_embedding.weight


def test_replacing_leaves_nothing_behind(folder):
    checkpoint = load_checkpoint(folder, resume=True)
    checkpoint.training["step"] = 4
    save_checkpoint(folder, checkpoint)
    assert load_checkpoint(folder, resume=True).training["step"] == 4
    assert os.listdir(folder.parent) == ["model"]


def test_a_failed_save_keeps_the_old_folder(folder, monkeypatch):
    checkpoint = load_checkpoint(folder)
    monkeypatch.setattr(
        "safetensors.torch.save_file", lambda *a, **k: (_ for _ in ()).throw(OSError(28, "No space left"))
    )
    with pytest.raises(CheckpointError, match="No space left"):
        save_checkpoint(folder, checkpoint)
    monkeypatch.undo()
    load_checkpoint(folder)
    assert os.listdir(folder.parent) == ["model"]


def test_death_between_the_two_renames(folder):
    os.rename(folder, folder.with_name(".model.s2s-previous"))
    assert load_checkpoint(folder).config.model == "gru"
    assert os.listdir(folder.parent) == ["model"]


def test_another_model_type(folder):
    with pytest.raises(CheckpointError, match="holds a model of type 'gru', expected 'lstm'"):
        load_checkpoint(folder, expected="lstm")


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


DAMAGE = {
    "not a folder": lambda f: f.rename(f.with_name("elsewhere")),
    "config.json is missing": lambda f: (f / "config.json").unlink(),
    "can't be read as JSON": lambda f: (f / "config.json").write_text("{"),
    "does not hold a JSON object": lambda f: (f / "config.json").write_text("[]"),
    "model_type 't5'": lambda f: edit_config(f, model_type="t5"),
    "unknown field 'd_modle'": lambda f: edit_config(f, d_modle=3),
    "d_model is 'wide'": lambda f: edit_config(f, d_model="wide"),
    "has shape": lambda f: edit_config(f, d_model=16),
    "is missing": lambda f: edit_config(f, decoder_layers=2),
    "is damaged": lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-5]),
    "model.safetensors is missing": lambda f: (f / "model.safetensors").unlink(),
    "not finite": lambda f: safetensors.torch.save_file(
        {k: v * float("nan") for k, v in safetensors.torch.load_file(f / "model.safetensors").items()},
        f / "model.safetensors",
    ),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_damage_is_named(folder, message):
    DAMAGE[message](folder)
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(folder)
    assert message in str(error.value)
