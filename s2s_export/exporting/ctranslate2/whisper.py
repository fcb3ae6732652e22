"""Whisper as faster-whisper keeps it: model.bin, config.json, tokenizer.json -> a checkpoint of transformers.

The weights are those of the original, in fp16 or fp32. Quantised ones are refused: what they were rounded from is gone.
CTranslate2 stacks the projections of query, key and value by rows, with a bias of zero for the key, which has none.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import CheckpointError, UnsupportedModel
from . import read_json, write_json
from ._model_file import Model

SPEC = "WhisperSpec"
SECONDS_PER_TIMESTAMP = 0.02
SIDES = ("encoder", "decoder")


def convert(model: Model, folder: Path, target: Path) -> None:
    """Raises CheckpointError, UnsupportedModel."""
    if any(value.dtype.kind == "i" and value.ndim == 2 for value in model.variables.values()):
        raise UnsupportedModel(
            f"{folder}: its weights are quantised; expected float16 or float32; take the float16 folder of this model"
        )
    settings, tokenizer = read_json(folder / "config.json"), read_json(folder / "tokenizer.json")
    size = model["decoder/embeddings/weight"].shape[0]
    try:
        ids = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
        generation = _generation(settings, ids, size >= 51865)
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{folder}: config.json or tokenizer.json lacks {error}; restore the folder") from error
    write_json(target / "config.json", _config(model, generation))
    write_json(target / "generation_config.json", generation)
    _write_tokenizer(tokenizer, generation["no_timestamps_token_id"], size, target)
    _write_weights(dict(_weights(model)), target)


def _generation(settings: Any, ids: dict[str, int], is_multilingual: bool) -> dict[str, Any]:
    end, start, no_times = ids["<|endoftext|>"], ids["<|startoftranscript|>"], ids["<|notimestamps|>"]
    translate, transcribe = ids["<|translate|>"], ids["<|transcribe|>"]
    several: dict[str, Any] = {}
    if is_multilingual:
        several["lang_to_id"] = {name: value for name, value in ids.items() if start < value < translate}
        several["task_to_id"] = {"transcribe": transcribe, "translate": translate}
    return {
        "alignment_heads": settings["alignment_heads"],
        "begin_suppress_tokens": settings["suppress_ids_begin"],
        "bos_token_id": end,
        "decoder_start_token_id": start,
        "eos_token_id": end,
        "forced_decoder_ids": [[1, None], [2, transcribe]] if is_multilingual else [[1, no_times]],
        "is_multilingual": is_multilingual,
        "max_initial_timestamp_index": 50,
        "max_length": 448,
        "no_timestamps_token_id": no_times,
        "pad_token_id": end,
        "prev_sot_token_id": ids["<|startofprev|>"],
        "return_timestamps": False,
        "suppress_tokens": settings["suppress_ids"],
        **several,
    }


def _config(model: Model, generation: dict[str, Any]) -> dict[str, Any]:
    sizes: dict[str, Any] = {}
    for side in SIDES:
        sizes[f"{side}_layers"] = model.count(f"{side}/layer_")
        sizes[f"{side}_attention_heads"] = int(model[f"{side}/num_heads"])
        sizes[f"{side}_ffn_dim"] = int(model[f"{side}/layer_0/ffn/linear_0/weight"].shape[0])
    names = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "begin_suppress_tokens")
    return {
        "model_type": "whisper",
        "architectures": ["WhisperForConditionalGeneration"],
        "vocab_size": int(model["decoder/embeddings/weight"].shape[0]),
        "d_model": int(model["decoder/embeddings/weight"].shape[1]),
        "num_mel_bins": int(model["encoder/conv1/weight"].shape[1]),
        "max_source_positions": int(model["encoder/position_encodings/encodings"].shape[0]),
        "max_target_positions": int(model["decoder/position_encodings/encodings"].shape[0]),
        "scale_embedding": False,
        **sizes,
        **{name: generation[name] for name in names},
    }


def _write_tokenizer(tokenizer: Any, no_times: int, size: int, target: Path) -> None:
    """With the tokens of times, which older files lack."""
    there = {token["id"] for token in tokenizer["added_tokens"]}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    for i, token in enumerate(range(no_times + 1, size)):
        if token not in there:
            spelled = f"<|{i * SECONDS_PER_TIMESTAMP:.2f}|>"
            tokenizer["added_tokens"].append({"id": token, "content": spelled, **plain})
    end = "<|endoftext|>"
    write_json(target / "tokenizer.json", tokenizer)
    write_json(
        target / "tokenizer_config.json",
        {
            "tokenizer_class": "WhisperTokenizer",
            "added_tokens_decoder": {
                str(token["id"]): {key: token[key] for key in ("content", *plain)}
                for token in tokenizer["added_tokens"]
            },
            "additional_special_tokens": [t["content"] for t in tokenizer["added_tokens"] if t["special"]],
            **dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), end),
            "clean_up_tokenization_spaces": False,
            "model_max_length": 1024,
        },
    )
    vocabulary, merges = tokenizer["model"]["vocab"], tokenizer["model"]["merges"]
    write_json(target / "vocab.json", vocabulary)
    lines = [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
    (target / "merges.txt").write_text("#version: 0.2\n" + "\n".join(lines) + "\n", encoding="utf-8")


def _weights(model: Model) -> Iterator[tuple[str, Any]]:
    """Tensors by their names in transformers."""
    for i in (1, 2):
        yield from _linear(model, f"encoder/conv{i}", f"model.encoder.conv{i}")
    yield "model.decoder.embed_tokens.weight", model["decoder/embeddings/weight"]
    head = model["decoder/projection/weight"]
    if not np.array_equal(head, model["decoder/embeddings/weight"]):
        yield "proj_out.weight", head
    for side in SIDES:
        yield f"model.{side}.embed_positions.weight", model[f"{side}/position_encodings/encodings"]
        yield from _norm(model, f"{side}/layer_norm", f"model.{side}.layer_norm")
        for i in range(model.count(f"{side}/layer_")):
            yield from _layer(model, f"{side}/layer_{i}", f"model.{side}.layers.{i}", is_crossed=side == "decoder")


def _layer(model: Model, theirs: str, name: str, *, is_crossed: bool) -> Iterator[tuple[str, Any]]:
    own = f"{theirs}/self_attention"
    yield from _norm(model, f"{own}/layer_norm", f"{name}.self_attn_layer_norm")
    yield from _stacked(model, f"{own}/linear_0", f"{name}.self_attn", ("q_proj", "k_proj", "v_proj"))
    yield from _linear(model, f"{own}/linear_1", f"{name}.self_attn.out_proj")
    if is_crossed:
        cross = f"{theirs}/attention"
        yield from _norm(model, f"{cross}/layer_norm", f"{name}.encoder_attn_layer_norm")
        yield from _linear(model, f"{cross}/linear_0", f"{name}.encoder_attn.q_proj")
        yield from _stacked(model, f"{cross}/linear_1", f"{name}.encoder_attn", ("k_proj", "v_proj"))
        yield from _linear(model, f"{cross}/linear_2", f"{name}.encoder_attn.out_proj")
    yield from _norm(model, f"{theirs}/ffn/layer_norm", f"{name}.final_layer_norm")
    yield from _linear(model, f"{theirs}/ffn/linear_0", f"{name}.fc1")
    yield from _linear(model, f"{theirs}/ffn/linear_1", f"{name}.fc2")


def _norm(model: Model, theirs: str, name: str) -> Iterator[tuple[str, Any]]:
    yield f"{name}.weight", model[f"{theirs}/gamma"]
    yield f"{name}.bias", model[f"{theirs}/beta"]


def _linear(model: Model, theirs: str, name: str) -> Iterator[tuple[str, Any]]:
    yield f"{name}.weight", model[f"{theirs}/weight"]
    yield f"{name}.bias", model[f"{theirs}/bias"]


def _stacked(model: Model, theirs: str, name: str, projections: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    weights = np.split(model[f"{theirs}/weight"], len(projections))
    biases = np.split(model[f"{theirs}/bias"], len(projections))
    for projection, weight, bias in zip(projections, weights, biases, strict=True):
        yield f"{name}.{projection}.weight", weight
        if projection != "k_proj":
            yield f"{name}.{projection}.bias", bias
        elif bias.any():
            raise UnsupportedModel(f"{model.path}: {theirs} has a bias for the key, which Whisper has not")


def _write_weights(tensors: dict[str, Any], target: Path) -> None:
    from safetensors.numpy import save_file

    arrays = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    save_file(arrays, target / "model.safetensors", metadata={"format": "pt"})
