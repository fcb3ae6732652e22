"""The tokenizer of a reference model: one sentencepiece model, whose ids are the model's ids.

A source ends with eos. A piece such as `>>deu<<` at the beginning of a source names the target language.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from s2s_export.errors import CheckpointError

MODEL_TYPE_PREFIX = "s2s-"
MODEL_FILE = "tokenizer.model"
_LANGUAGE = re.compile(r">>(\w+)<<")


def is_reference(checkpoint: Path) -> bool:
    """Whether config.json says that this project trained the checkpoint."""
    return str(_config(checkpoint).get("model_type", "")).startswith(MODEL_TYPE_PREFIX)


def write(checkpoint: Path, folder: Path) -> dict[str, Any]:
    """Copy the tokenizer of a reference model and return its manifest entry."""
    config = _config(checkpoint)
    pad, bos, eos = (config.get(f"{name}_token_id") for name in ("pad", "bos", "eos"))
    return write_sentencepiece(checkpoint / MODEL_FILE, folder, pad_id=pad, bos_id=bos, eos_id=eos)


def write_sentencepiece(
    model: Path,
    folder: Path,
    *,
    eos_id: int | None,
    bos_id: int | None = None,
    pad_id: int | None = None,
    target_model: Path | None = None,
    prepend_bos: bool = False,
) -> dict[str, Any]:
    """Copy a sentencepiece model, and one for the target if it has its own. Returns the manifest entry.

    A text's ids get `eos_id` at the end, and with `prepend_bos` also `bos_id` at the beginning. Raises CheckpointError.
    """
    processor = _processor(model)
    files = {"model": "source.model"}
    copies = {model: files["model"]}
    if target_model is not None:
        _processor(target_model)
        copies[target_model] = files["target_model"] = "target.model"
    if eos_id is None or (prepend_bos and bos_id is None):
        name = "bos" if eos_id is not None else "eos"
        raise CheckpointError(f"the tokenizer has no {name} id, expected one in config.json; add {name}_token_id")
    folder.mkdir(parents=True, exist_ok=True)
    for source, name in copies.items():
        shutil.copyfile(source, folder / name)
    pieces = [processor.id_to_piece(i) for i in range(processor.get_piece_size())]
    languages = {match[1]: i for i, piece in enumerate(pieces) if (match := _LANGUAGE.fullmatch(piece))}
    special = {"pad": pad_id, "bos": bos_id, "eos": eos_id, "unk": processor.unk_id()}
    return {
        "kind": "sentencepiece",
        "files": files,
        "special_ids": {name: value for name, value in special.items() if value is not None and value >= 0},
        "template": {"prefix": [bos_id] if prepend_bos else [], "suffix": [eos_id]},
        "languages": languages,
        "source_lang": None,
        "target_lang": None,
        "target_language_by": "source_prefix" if languages else None,
        "model_max_length": None,
        "decode": {
            "clean_up_tokenization_spaces": False,
            "skip_ids": sorted({value for value in (pad_id, bos_id, eos_id) if value is not None}),
            "spaces_between_special_tokens": False,
        },
        "options": {"offset": 0},
    }


def unknown_of(model: Path) -> int | None:
    """The id of a sentencepiece model's unknown piece, if it has one. Raises CheckpointError."""
    unknown = int(_processor(model).unk_id())
    return unknown if unknown >= 0 else None


def _processor(model: Path) -> Any:
    from sentencepiece import SentencePieceProcessor

    try:
        return SentencePieceProcessor(model_proto=model.read_bytes())
    except (OSError, RuntimeError, TypeError) as error:
        raise CheckpointError(
            f"{model} can't be read, expected a sentencepiece model; restore it, or remove it to export for ids only"
        ) from error


def _config(checkpoint: Path) -> dict[str, Any]:
    try:
        config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}
