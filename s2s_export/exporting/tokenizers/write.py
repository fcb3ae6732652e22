"""Writes the checkpoint's tokenizer into the bundle, as files and an entry in the manifest.

transformers' `AutoTokenizer` loads the tokenizer, and what is written describes that object and not the checkpoint's
files: transformers 4 and 5 change some tokenizers while they load them. A tokenizer that runs on the `tokenizers`
package is serialized. Of one written in Python, sentencepiece models and vocabularies are copied and its tables
recorded. Every written tokenizer is read back by the runtime's code and compared with the original before the export
goes on. Reference models, which transformers does not know, have one sentencepiece model (see `reference.py`).
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...errors import CheckpointError, UnsupportedModel, shortened
from . import check, reference
from .describe import class_names, common, piece_options

# A checkpoint with none of these files has no tokenizer. One with some of them must have all that its class needs.
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
)
_TOKENIZER_SUFFIXES = (".spm", ".model")
_OF_SETTINGS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)  # UnicodeErrors among them

# Decoders of tokenizer.json that never change earlier text when tokens are added, except within a run of byte tokens.
_STEADY_DECODERS = {"Metaspace", "ByteLevel", "ByteFallback", "Fuse", "WordPiece", "BPEDecoder"}


def write_tokenizer(checkpoint: Path, folder: Path) -> dict[str, Any] | None:
    """Write the tokenizer of `checkpoint` into `folder` and return its manifest entry.

    None if the checkpoint has no tokenizer files. Raises CheckpointError if they are damaged or incomplete, or if the
    written tokenizer differs from transformers' own, and UnsupportedModel for a tokenizer that no kind can express.
    """
    checkpoint, folder = Path(checkpoint), Path(folder)
    if not checkpoint.is_dir():
        raise CheckpointError(f"{checkpoint} is not a folder, expected the folder of a checkpoint; check the path")
    if not has_tokenizer(checkpoint):
        return None
    if reference.is_reference(checkpoint):
        return reference.write(checkpoint, folder)
    original = load_original(checkpoint)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        entry = _writer(original)(original, folder)
        check.compare(original, folder, entry)
    except _OF_SETTINGS as error:  # transformers loads settings of any type, and fails where it uses them
        raise _unloadable(checkpoint, f"{type(error).__name__}: {shortened(error, 200)}") from error
    return entry


def load_original(checkpoint: Path) -> Any:
    """transformers' own tokenizer of a local checkpoint. Raises CheckpointError in one sentence."""
    from transformers import AutoTokenizer

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # transformers recommends packages that would change no ids
            tokenizer = AutoTokenizer.from_pretrained(str(checkpoint), local_files_only=True)
    except Exception as error:  # transformers, tokenizers and sentencepiece raise many types for a damaged file
        raise _unloadable(checkpoint, " ".join(str(error).split())[:200] or type(error).__name__) from error
    if isinstance(tokenizer, bool):  # how transformers 4 reports a damaged sentencepiece model
        raise _unloadable(checkpoint, "transformers gives no reason")
    _require_files(checkpoint, tokenizer)
    return tokenizer


def _unloadable(checkpoint: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"the tokenizer in {checkpoint} can't be loaded ({reason}); restore its files, or remove all of them to export "
        "a model that takes ids only"
    )


def has_tokenizer(checkpoint: Path) -> bool:
    """Whether a checkpoint has files of a tokenizer."""
    return any((checkpoint / name).is_file() for name in _TOKENIZER_FILES) or any(
        path.suffix in _TOKENIZER_SUFFIXES for path in checkpoint.iterdir()
    )


def _require_files(checkpoint: Path, tokenizer: Any) -> None:
    """Raises CheckpointError if files are missing, for which transformers 5 would silently use an empty vocabulary."""
    names = dict(type(tokenizer).vocab_files_names)
    whole = names.pop("tokenizer_file", "tokenizer.json")
    if tokenizer.is_fast and (checkpoint / whole).is_file():
        return
    names.pop("tokenizer_config_file", None)
    if not getattr(tokenizer, "separate_vocabs", False):
        names.pop("target_vocab_file", None)
    missing = sorted(name for name in names.values() if not (checkpoint / name).is_file())
    if missing:
        raise CheckpointError(
            f"the tokenizer in {checkpoint} lacks {', '.join(missing)}, which {type(tokenizer).__name__} needs; "
            "restore the files, or remove all tokenizer files to export a model that takes ids only"
        )


def _writer(tokenizer: Any) -> Callable[[Any, Path], dict[str, Any]]:
    if tokenizer.is_fast:
        return _write_fast
    for name in class_names(tokenizer):
        if name in _WRITERS:
            return _WRITERS[name]
    raise UnsupportedModel(
        f"the checkpoint's tokenizer is a {type(tokenizer).__name__} written in Python, expected one with a "
        f"tokenizer.json or one of {', '.join(sorted(_WRITERS))}; remove the tokenizer files to export for ids only"
    )


# --- one writer for each kind: (transformers' tokenizer, folder) -> manifest entry


def _write_fast(tokenizer: Any, folder: Path) -> dict[str, Any]:
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    if backend["model"].get("dropout"):
        raise UnsupportedModel(
            f"the tokenizer's BPE model has dropout {backend['model']['dropout']}, so that its ids are random; "
            "set dropout to null in tokenizer.json"
        )
    backend["truncation"] = backend["padding"] = None
    (folder / "tokenizer.json").write_text(json.dumps(backend, ensure_ascii=False), encoding="utf-8")
    entry = common(tokenizer, "fast", {"tokenizer": "tokenizer.json"})
    entry["decode"]["skip_ids"] = sorted(token["id"] for token in backend["added_tokens"] if token["special"])
    decoders = _decoders(backend["decoder"])
    entry["options"] = {
        "split_special_tokens": bool(getattr(tokenizer, "split_special_tokens", False)),
        "steady_decoder": all(_is_steady(decoder) for decoder in decoders),
        "byte_fallback": any(decoder["type"] == "ByteFallback" for decoder in decoders),
    }
    entry["options"]["drop_timestamps"] = "WhisperTokenizer" in class_names(tokenizer)
    forced = getattr(tokenizer, "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", None)
    if forced is False and backend["model"].get("type") == "BPE":  # transformers 5
        entry["decode"]["clean_up_tokenization_spaces"] = False
    return entry


def _write_marian(tokenizer: Any, folder: Path) -> dict[str, Any]:
    _refuse_sampling(tokenizer)
    files = {"source": "source.spm", "target": "target.spm", "vocab": "vocab.json"}
    for role, path in zip(("source", "target"), tokenizer.spm_files, strict=True):
        shutil.copyfile(path, folder / files[role])
    _write_json(tokenizer.encoder, folder / files["vocab"])
    if tokenizer.separate_vocabs:
        files["target_vocab"] = "target_vocab.json"
        _write_json(tokenizer.target_encoder, folder / files["target_vocab"])
    entry = common(tokenizer, "marian", files)
    tokenizer.decode([tokenizer.eos_token_id])
    entry["options"] = {
        **piece_options(tokenizer),
        "unk_token": str(tokenizer.unk_token),
        "decode_with": "source" if tokenizer._decode_use_source_tokenizer else "target",
        "unlisted_ids": "piece" if _refuses_unlisted_ids(tokenizer) else "unk",
        "language_codes": "anywhere" if hasattr(tokenizer, "language_code_re") else "first",
    }
    added = tokenizer.get_added_vocab()
    codes = [*tokenizer.supported_language_codes, *(t for t in added if t.startswith(">>") and t.endswith("<<"))]
    entry["languages"] = {code[2:-2]: tokenizer.convert_tokens_to_ids(code) for code in codes}
    if codes:
        entry["target_language_by"] = "source_prefix"
        target = str(tokenizer.target_lang).removeprefix(">>").removesuffix("<<")
        entry["target_lang"] = target if target in entry["languages"] else None
    return entry


def _write_m2m100(tokenizer: Any, folder: Path) -> dict[str, Any]:
    _refuse_sampling(tokenizer)
    files = {"model": "sentencepiece.bpe.model", "vocab": "vocab.json"}
    shutil.copyfile(tokenizer.spm_file, folder / files["model"])
    _write_json(tokenizer.encoder, folder / files["vocab"])
    entry = common(tokenizer, "spm_vocab", files)
    entry["options"] = {
        **piece_options(tokenizer),
        "unk_token": str(tokenizer.unk_token),
        "language_tokens": dict(tokenizer.lang_token_to_id),
    }
    return entry


def _write_byt5(tokenizer: Any, folder: Path) -> dict[str, Any]:
    entry = common(tokenizer, "bytes", {})
    entry["options"] = {**piece_options(tokenizer), "offset": tokenizer.offset}
    return entry


_WRITERS: dict[str, Callable[[Any, Path], dict[str, Any]]] = {
    "MarianTokenizer": _write_marian,
    "M2M100Tokenizer": _write_m2m100,
    "ByT5Tokenizer": _write_byt5,
}


def _decoders(decoder: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """The steps of a tokenizer.json's decoder, in order."""
    if decoder is None:
        return []
    if decoder["type"] == "Sequence":
        return [step for inner in decoder["decoders"] for step in _decoders(inner)]
    return [decoder]


def _is_steady(decoder: Mapping[str, Any]) -> bool:
    if decoder["type"] == "Strip":
        return decoder["stop"] == 0
    if decoder["type"] == "Replace":
        return len(decoder["pattern"].get("String", "")) == 1
    return decoder["type"] in _STEADY_DECODERS


def _refuse_sampling(tokenizer: Any) -> None:
    if (tokenizer.sp_model_kwargs or {}).get("enable_sampling"):
        raise UnsupportedModel(
            "the tokenizer samples its pieces (sp_model_kwargs.enable_sampling), so that its ids are random; remove "
            "sp_model_kwargs from tokenizer_config.json"
        )


def _refuses_unlisted_ids(tokenizer: Any) -> bool:
    try:
        tokenizer.convert_ids_to_tokens(2**31 - 1)
    except Exception:  # sentencepiece raises no type of its own
        return True
    return False


def _write_json(data: Any, path: Path) -> None:
    path.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
