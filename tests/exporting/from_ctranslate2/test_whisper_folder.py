"""A folder of faster-whisper is exported as it stands: here one that is written from a tiny checkpoint."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_whisper
from safetensors.numpy import load_file

import s2s_export
from s2s_export.errors import CheckpointError, UnsupportedModel
from s2s_export.exporting import ctranslate2
from s2s_export.exporting.ctranslate2 import _model_file

TYPES = {np.dtype("f4"): 0, np.dtype("i1"): 1, np.dtype("i2"): 2, np.dtype("f2"): 4}


def write_model(path: Path, variables: dict[str, Any], spec: str = "WhisperSpec", version: int = 6) -> None:
    """model.bin, as CTranslate2's converters write it."""

    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    out = struct.pack("<I", version) + text(spec) + struct.pack("<II", 3, len(variables))
    for name, array in variables.items():
        out += text(name) + struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
        out += struct.pack("<BI", TYPES[array.dtype], array.nbytes) + array.tobytes()
    path.write_bytes(out + struct.pack("<I", 1) + text("decoder/projection/weight") + text("decoder/embeddings/weight"))


def variables_of(checkpoint: Path) -> dict[str, Any]:
    weights = load_file(checkpoint / "model.safetensors")
    found: dict[str, Any] = {}

    def linear(theirs: str, *names: str) -> None:
        found[f"{theirs}/weight"] = np.concatenate([weights[f"{name}.weight"] for name in names])
        biases = [weights.get(f"{name}.bias", np.zeros(len(weights[f"{name}.weight"]), "f4")) for name in names]
        found[f"{theirs}/bias"] = np.concatenate(biases)

    def norm(theirs: str, name: str) -> None:
        found[f"{theirs}/gamma"], found[f"{theirs}/beta"] = weights[f"{name}.weight"], weights[f"{name}.bias"]

    linear("encoder/conv1", "model.encoder.conv1")
    linear("encoder/conv2", "model.encoder.conv2")
    found["decoder/embeddings/weight"] = weights["model.decoder.embed_tokens.weight"]
    for side in ("encoder", "decoder"):
        found[f"{side}/num_heads"] = np.array(tiny_whisper.HEADS, np.int16)
        found[f"{side}/position_encodings/encodings"] = weights[f"model.{side}.embed_positions.weight"]
        norm(f"{side}/layer_norm", f"model.{side}.layer_norm")
        for i in range(tiny_whisper.LAYERS):
            theirs, name = f"{side}/layer_{i}", f"model.{side}.layers.{i}"
            norm(f"{theirs}/self_attention/layer_norm", f"{name}.self_attn_layer_norm")
            linear(f"{theirs}/self_attention/linear_0", *(f"{name}.self_attn.{p}_proj" for p in "qkv"))
            linear(f"{theirs}/self_attention/linear_1", f"{name}.self_attn.out_proj")
            if side == "decoder":
                norm(f"{theirs}/attention/layer_norm", f"{name}.encoder_attn_layer_norm")
                linear(f"{theirs}/attention/linear_0", f"{name}.encoder_attn.q_proj")
                linear(f"{theirs}/attention/linear_1", *(f"{name}.encoder_attn.{p}_proj" for p in "kv"))
                linear(f"{theirs}/attention/linear_2", f"{name}.encoder_attn.out_proj")
            norm(f"{theirs}/ffn/layer_norm", f"{name}.final_layer_norm")
            linear(f"{theirs}/ffn/linear_0", f"{name}.fc1")
            linear(f"{theirs}/ffn/linear_1", f"{name}.fc2")
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    checkpoint = tiny_whisper.save(tmp_path / "checkpoint", is_multilingual=False)
    path = tmp_path / "faster"
    path.mkdir()
    write_model(path / "model.bin", variables_of(checkpoint))
    options = tiny_whisper.generation(False)
    settings = {
        "suppress_ids": options["suppress_tokens"], "suppress_ids_begin": options["begin_suppress_tokens"],
        "alignment_heads": options["alignment_heads"], "lang_ids": [],
    }  # fmt: skip
    (path / "config.json").write_text(json.dumps(settings))
    (path / "tokenizer.json").write_text(json.dumps(tiny_whisper.tokenizer()))
    return path


def test_it_gives_what_the_checkpoint_gives(folder: Path, tmp_path: Path) -> None:
    s2s_export.export(tmp_path / "checkpoint", tmp_path / "a")
    report = s2s_export.export(folder, tmp_path / "b")
    assert report.manifest["provenance"]["checkpoint"] == "faster"
    assert (tmp_path / "a" / "weights.bin").read_bytes() == (tmp_path / "b" / "weights.bin").read_bytes()
    sound = [tiny_whisper.clip(1, 0.7)]
    first, second = (s2s_export.load(tmp_path / name).generate(sound, max_new_tokens=20) for name in "ab")
    assert first[0][0].token_ids == second[0][0].token_ids and first[0][0].text == second[0][0].text


def test_half_precision_and_parts_are_read(folder: Path, tmp_path: Path) -> None:
    variables = {n: v.astype("f2") if v.dtype == "f4" else v for n, v in variables_of(tmp_path / "checkpoint").items()}
    write_model(folder / "model.bin", variables)
    raw = (folder / "model.bin").read_bytes()
    (folder / "model.bin").unlink()
    (folder / "model.bin.part1").write_bytes(raw[:1000])
    (folder / "model.bin.part2").write_bytes(raw[1000:])
    assert ctranslate2.is_converted(folder)
    found = _model_file.read(ctranslate2.parts(folder))
    assert found.variables.keys() - variables.keys() == {"decoder/projection/weight"}
    assert all((found[name] == value).all() for name, value in variables.items())


def test_what_can_not_be_read_is_named(folder: Path, tmp_path: Path) -> None:
    variables = variables_of(tmp_path / "checkpoint")
    target = tmp_path / "target"
    target.mkdir()
    path = folder / "model.bin"
    whole = path.read_bytes()

    def message(error: type[Exception]) -> str:
        with pytest.raises(error) as caught:
            ctranslate2.convert(folder, target)
        return str(caught.value)

    for n in (10, 100, len(whole) - 7):
        path.write_bytes(whole[:n])
        assert "ends early or is damaged" in message(CheckpointError)
    write_model(path, variables, spec="Wav2Vec2Spec")
    assert "holds a Wav2Vec2Spec; expected one of TransformerSpec, WhisperSpec" in message(UnsupportedModel)
    write_model(path, variables, version=7)
    assert "binary version 7" in message(UnsupportedModel)
    write_model(path, {**variables, "decoder/embeddings/weight": np.zeros((4, 4), np.int8)})
    assert "quantised" in message(UnsupportedModel)
    del variables["decoder/layer_1/attention/linear_2/bias"]
    write_model(path, variables)
    assert "no variable 'decoder/layer_1/attention/linear_2/bias'" in message(CheckpointError)
    path.write_bytes(whole)
    (folder / "config.json").write_text("{}")
    assert "lacks 'alignment_heads'" in message(CheckpointError)
