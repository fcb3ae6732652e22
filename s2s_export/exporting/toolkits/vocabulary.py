"""Vocabularies of toolkits: a list of pieces whose place is their id, and the tokenizer of a bundle from it.

A sentencepiece model splits a text, and the vocabulary gives the pieces' ids (kinds `spm_vocab` and, with two
vocabularies or OPUS-MT's language codes, `marian`). Without one, a text is
pieces with spaces between them, as the toolkits' own commands read it (kind `words`).
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import BundleError, CheckpointError
from ...runtime.text.bpe_codes import BpeCodes

CODES = ("bpecodes", "bpe.codes", "codes", "code", "bpe.code")  # in fairseq's archives, and as people name them
LANGUAGE = re.compile(r"__([a-z]{2,3}(?:_[A-Za-z]+)?)__|([a-z]{3}_[A-Z][a-z]{3})")  # of M2M100, and of NLLB
CODE = re.compile(r">>(\S+)<<")  # of OPUS-MT


@dataclass(frozen=True)
class Vocabularies:
    """source, target: pieces in the order of their ids; the same list where both sides share one.

    prefix, suffix: ids around every source. skip_ids: of the target, which add nothing to a text.
    """

    source: Sequence[str]
    target: Sequence[str]
    unk_token: str
    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()
    skip_ids: tuple[int, ...] = ()


def models_beside(path: Path, known: Sequence[tuple[str, str | None]]) -> tuple[Path | None, Path | None]:
    """The sentencepiece models of a folder: the first pair of names of which both are there; None for the second
    where it is the first's.
    """
    for own, other in known:
        if (path / own).is_file() and (other is None or (path / other).is_file()):
            return path / own, None if other is None else path / other
    return None, None


def ids_of(pieces: Sequence[str]) -> dict[str, int]:
    """Of pieces that are there twice, the first counts."""
    found: dict[str, int] = {}
    for i, piece in enumerate(pieces):
        found.setdefault(piece, i)
    return found


def codes_beside(path: Path) -> Path | None:
    """The merges of subword-nmt or fastBPE in a folder, by one of their usual names, or None."""
    return next((path / name for name in CODES if (path / name).is_file()), None)


def write(
    vocabularies: Vocabularies,
    folder: Path,
    model: Path | None = None,
    target_model: Path | None = None,
    codes: Path | None = None,
) -> dict[str, Any]:
    """Write the tokenizer's files and return its entry in the manifest. model: a sentencepiece model, if there is one.

    codes: merges that split words where there is no such model. Raises CheckpointError for files that can't be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    source, target = ids_of(vocabularies.source), ids_of(vocabularies.target)
    languages, by = _languages(source, target) if model is not None else ({}, None)
    is_shared = source == target and target_model is None and by != "source_prefix"
    kind = "words" if model is None else "spm_vocab" if is_shared else "marian"
    copies: dict[str, Path] = {}
    if model is not None:
        copies = {"model": model} if is_shared else {"source": model, "target": target_model or model}
    files = {"vocab": "vocab.json"} | {role: f"{role}.model" for role in copies}
    _write_json(source, folder / files["vocab"])
    if source != target:
        files["target_vocab"] = "target_vocab.json"
        _write_json(target, folder / files["target_vocab"])
    if model is None and codes is not None:
        _check_codes(codes)
        files["codes"] = "bpe.codes"
        shutil.copyfile(codes, folder / files["codes"])
    for role, path in copies.items():
        _check(path)
        shutil.copyfile(path, folder / files[role])
    unk = vocabularies.unk_token
    options: dict[str, Any] = {"unk_token": unk}
    prefix: list[Any] = list(vocabularies.prefix)
    skipped = set(vocabularies.skip_ids)
    if kind != "words":
        options |= {"added_tokens": [], "special_tokens": [unk]}
    if kind == "marian":
        options["language_codes"] = "first" if languages else "none"
    if by == "forced_bos_token_id":
        options["language_tokens"] = {piece: i for piece, i in target.items() if LANGUAGE.fullmatch(piece)}
        skipped |= set(languages.values())
        prefix.append("source_lang")
    default = next((code for code in ("en", "eng_Latn") if code in languages), next(iter(languages), None))
    return {
        "kind": kind,
        "files": files,
        "special_ids": {"unk": source[unk]} if unk in source else {},
        "template": {"prefix": prefix, "suffix": list(vocabularies.suffix)},
        "languages": languages,
        "source_lang": default if by == "forced_bos_token_id" else None,
        "target_lang": None,
        "target_language_by": by,
        "model_max_length": None,
        "decode": {
            "clean_up_tokenization_spaces": False,
            "skip_ids": sorted(skipped),
            "spaces_between_special_tokens": False,
        },
        "options": options,
    }


def _languages(source: dict[str, int], target: dict[str, int]) -> tuple[dict[str, int], str | None]:
    """Ids by language code, and how the model is told the target's (`runtime/text/entry.py`)."""
    codes = {match[1]: source[piece] for piece in source if (match := CODE.fullmatch(piece))}
    if codes:
        return codes, "source_prefix"
    named = {match[1] or match[2]: value for piece, value in target.items() if (match := LANGUAGE.fullmatch(piece))}
    return (named, "forced_bos_token_id") if len(named) > 1 and source == target else ({}, None)


def _check_codes(path: Path) -> None:
    try:
        BpeCodes.read(path)
    except BundleError as error:
        raise CheckpointError(str(error)) from error


def _check(path: Path) -> None:
    from sentencepiece import SentencePieceProcessor

    try:
        SentencePieceProcessor(model_proto=path.read_bytes())
    except (OSError, RuntimeError, TypeError) as error:
        raise CheckpointError(
            f"{path} can't be read, expected a sentencepiece model; restore it, or remove it to export for pieces only"
        ) from error


def _write_json(ids: dict[str, int], path: Path) -> None:
    try:
        path.write_text(json.dumps(ids, ensure_ascii=False), encoding="utf-8")
    except UnicodeEncodeError:
        raise CheckpointError("the vocabulary has a token with a lone surrogate, expected text; restore it") from None
