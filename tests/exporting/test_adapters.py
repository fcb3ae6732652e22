"""LoRA adapters are merged at export, and never left out in silence."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
import torch

import s2s_export
from s2s_export.errors import CheckpointError, MissingExtra, UnsupportedModel
from s2s_export.exporting.checkpoint import load_transformers_model


def write_config(folder, base):
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": base}))


@pytest.mark.parametrize("inside", [True, False])
def test_without_peft_an_adapter_is_one_sentence(exported, tmp_path, monkeypatch, inside):
    monkeypatch.setitem(sys.modules, "peft", None)
    folder = tmp_path / "adapter"
    if inside:
        shutil.copytree(exported("marian")[0], folder)
    write_config(folder, str(exported("marian")[0]))
    with pytest.raises(MissingExtra, match=r"needs the package 'peft', .*pip install 's2s-export\[lora\]'") as caught:
        s2s_export.export(folder, tmp_path / "b")
    assert "\n" not in str(caught.value) and not (tmp_path / "b").exists()


@pytest.mark.parametrize("base", [None, "", 3])
def test_an_adapter_without_its_base_model_is_refused(tmp_path, base):
    write_config(tmp_path / "adapter", base)
    with pytest.raises(CheckpointError, match=r"base_model_name_or_path is .* expected a folder or a hub id"):
        s2s_export.export(tmp_path / "adapter", tmp_path / "b")


@pytest.fixture
def tuned(exported, tmp_path):
    """An adapter folder whose weights change the model a lot, and the model with it."""
    peft = pytest.importorskip("peft", reason="peft is not installed: pip install 's2s-export[lora]'")
    model = load_transformers_model(exported("marian")[0], {})
    torch.manual_seed(1)
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj", "fc1"], init_lora_weights=False)
    with_adapter = peft.get_peft_model(model, config)
    with torch.no_grad():
        for name, weight in with_adapter.named_parameters():
            if "lora_" in name:
                weight.mul_(3.0)
    folder = tmp_path / "adapter"
    with_adapter.save_pretrained(str(folder))
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(
        json.dumps({**config, "base_model_name_or_path": str(exported("marian")[0])})
    )
    return folder, with_adapter.eval()


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.filterwarnings("ignore")
def test_an_adapter_is_merged(tuned, exported, tmp_path, inside):
    folder, model = tuned
    if inside:
        shutil.copytree(exported("marian")[0], folder, dirs_exist_ok=True)
    s2s_export.export(folder, tmp_path / "b")
    source = [5, 6, 7, 0]
    with torch.no_grad():
        wanted = model.generate(input_ids=torch.tensor([source]), num_beams=3, max_new_tokens=9)[0].tolist()
    found, plain = (
        s2s_export.load(path).generate([source], num_beams=3, max_new_tokens=9)[0][0].token_ids
        for path in (tmp_path / "b", exported("marian")[1])
    )
    assert list(found) == wanted[: len(found)] and found != plain


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_of_another_model_and_of_another_kind(tuned, exported, tmp_path):
    folder, _ = tuned
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(
        json.dumps({**config, "base_model_name_or_path": str(exported("t5")[0])})
    )
    with pytest.raises(CheckpointError, match="peft can't load the adapter"):
        s2s_export.export(folder, tmp_path / "b")
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 2, "base_model_name_or_path": str(
            exported("marian")[0])})
    )  # fmt: skip
    with pytest.raises(UnsupportedModel, match="expected LORA, to be merged"):
        s2s_export.export(folder, tmp_path / "b")
