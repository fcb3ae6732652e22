"""What stands beside model.bin: config.json and vocabularies.

Vocabularies are `shared_vocabulary`, or `source_vocabulary` and `target_vocabulary`, as .json (a list) or .txt (a line
each). Before version 6 the special tokens are variables in model.bin.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import CheckpointError
from . import read_json
from ._model_file import Model
from ._transformer import text_of

CONFIG = "config.json"
FIRST_WITH_CONFIG = 6


@dataclass(frozen=True)
class Settings:
    """Special tokens as CTranslate2 has them. start: None where the caller has to begin the target."""

    unk: str
    bos: str
    eos: str
    start: str | None
    add_source_bos: bool
    add_source_eos: bool


def config_of(folder: Path) -> dict[str, Any]:
    file = folder / CONFIG
    found = read_json(file) if file.is_file() else {}
    if not isinstance(found, dict):
        raise CheckpointError(f"{file}: holds no JSON object; restore the folder")
    return found


def settings_of(model: Model, config: Mapping[str, Any]) -> Settings:
    if model.version >= FIRST_WITH_CONFIG:
        found = Settings(
            unk=config.get("unk_token", "<unk>"),
            bos=config.get("bos_token", "<s>"),
            eos=config.get("eos_token", "</s>"),
            start=config.get("decoder_start_token"),
            add_source_bos=config.get("add_source_bos", False),
            add_source_eos=config.get("add_source_eos", False),
        )
    else:
        bos, eos = text_of(model, "bos_token", "<s>"), text_of(model, "eos_token", "</s>")

        def flag(name: str, default: bool) -> bool:
            value = model.variables.get(name)
            return default if value is None or value.size != 1 else bool(value.reshape(-1)[0])

        start = None if flag("user_decoder_start_tokens", False) else bos if flag("with_target_bos", True) else eos
        unk = text_of(model, "unk_token", "<unk>")
        found = Settings(unk, bos, eos, start, flag("with_source_bos", False), flag("with_source_eos", False))
    for name, value in vars(found).items():
        expected: tuple[type, ...] = (
            (bool,) if name.startswith("add") else (str, type(None)) if name == "start" else (str,)
        )
        if not isinstance(value, expected):
            raise CheckpointError(f"{model.path}: config.json gives {value!r} for its {name} token; restore the folder")
    return found


def vocabularies(folder: Path, unk: str, n_source: int, n_target: int) -> tuple[list[str], list[str]]:
    """Raises CheckpointError for files that are missing, or don't have as many tokens as the model."""
    shared = _read(folder, "shared_vocabulary", unk)
    found = []
    for side, size in (("source", n_source), ("target", n_target)):
        tokens = shared or _read(folder, f"{side}_vocabulary", unk)
        if tokens is None:
            raise CheckpointError(
                f"{folder}: has no shared_vocabulary and no {side}_vocabulary (.json or .txt); restore the folder"
            )
        if len(tokens) != size:
            raise CheckpointError(
                f"{folder}: the {side} vocabulary has {len(tokens)} tokens, the model {size}; restore the folder"
            )
        found.append(tokens)
    return found[0], found[1]


def _read(folder: Path, name: str, unk: str) -> list[str] | None:
    if (file := folder / f"{name}.json").is_file():
        tokens = read_json(file)
        if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
            raise CheckpointError(f"{file}: holds no list of tokens; restore the folder")
    elif (file := folder / f"{name}.txt").is_file():
        try:
            text = file.read_bytes().decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{file}: can't be read as UTF-8 ({error}); restore the folder") from error
        tokens = text.removesuffix("\n").split("\n")  # not splitlines: tokens may hold other ends of lines
        if all(token.endswith("\r") for token in tokens):
            tokens = [token[:-1] for token in tokens]
    else:
        return None
    return tokens if unk in tokens else [*tokens, unk]
