"""The fields of a tokenizer's manifest entry, read from transformers' tokenizer object.

`runtime/text/entry.py` explains the fields.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from s2s_export.errors import CheckpointError, UnsupportedModel
from s2s_export.runtime.text.entry import SOURCE_LANG

# How a model with this tokenizer is told the target language.
_TARGET_LANGUAGE_BY = {
    "MBartTokenizer": "decoder_start_token_id",
    "PLBartTokenizer": "decoder_start_token_id",
    "MBart50Tokenizer": "forced_bos_token_id",
    "M2M100Tokenizer": "forced_bos_token_id",
    "NllbTokenizer": "forced_bos_token_id",
}
_LANGUAGE_TOKEN = re.compile(r"[a-z]{2,3}_([A-Z]{2}|[A-Z][a-z]{3})")  # en_XX, eng_Latn
_NO_LANGUAGES = ("pad", "bos", "eos", "unk", "mask", "cls", "sep")


def class_names(tokenizer: Any) -> list[str]:
    return [base.__name__.removesuffix("Fast") for base in type(tokenizer).__mro__]


def common(tokenizer: Any, kind: str, files: Mapping[str, str]) -> dict[str, Any]:
    """The entry without its options."""
    languages = _languages(tokenizer)
    prefix, suffix = _template(tokenizer, languages)
    longest = tokenizer.model_max_length
    special = {name: getattr(tokenizer, f"{name}_token_id", None) for name in ("pad", "bos", "eos", "unk")}
    target = getattr(tokenizer, "tgt_lang", None)
    return {
        "kind": kind,
        "files": dict(files),
        "special_ids": {name: value for name, value in special.items() if value is not None},
        "template": {"prefix": prefix, "suffix": suffix},
        "languages": languages,
        "source_lang": tokenizer.src_lang if languages else None,
        "target_lang": target if target in languages else None,
        "target_language_by": _target_language_by(tokenizer) if languages else None,
        "model_max_length": int(longest) if longest and longest < 1e9 else None,  # transformers writes 1e30 for none
        "truncation_side": tokenizer.truncation_side,
        "decode": {
            "clean_up_tokenization_spaces": bool(tokenizer.clean_up_tokenization_spaces),
            "skip_ids": sorted({value for value in tokenizer.all_special_ids if value is not None}),
            "spaces_between_special_tokens": _is_version_4() and not tokenizer.is_fast,
        },
        "options": {},
    }


def _languages(tokenizer: Any) -> dict[str, int]:
    """Language code -> id, for a tokenizer whose template names the source's language."""
    if not hasattr(tokenizer, "set_src_lang_special_tokens"):
        return {}
    codes = dict(getattr(tokenizer, "lang_code_to_id", None) or {})
    others = {getattr(tokenizer, f"{name}_token", None) for name in _NO_LANGUAGES}
    for token in dict.fromkeys(map(str, (*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()))):
        is_new = token not in codes and token not in others
        if is_new and (_LANGUAGE_TOKEN.fullmatch(token) or _takes_as_language(tokenizer, token)):
            codes[token] = tokenizer.convert_tokens_to_ids(token)
    return {code: value for code, value in codes.items() if value not in (None, tokenizer.unk_token_id)}


def _takes_as_language(tokenizer: Any, token: str) -> bool:
    """Whether the tokenizer puts this token beside a text whose language it is said to be: a fine-tune may add any."""
    usual = tokenizer.src_lang
    try:
        tokenizer.src_lang = token
        return tokenizer.convert_tokens_to_ids(token) in tokenizer("")["input_ids"]
    except (KeyError, ValueError, TypeError):  # how transformers refuses one
        return False
    finally:
        tokenizer.src_lang = usual


def _template(tokenizer: Any, languages: Mapping[str, int]) -> tuple[list[int | str], list[int | str]]:
    """The ids that the tokenizer puts before and after those of a text, with a placeholder for the source language."""
    if not hasattr(tokenizer, "set_src_lang_special_tokens"):
        return _surroundings(tokenizer)
    usual = tokenizer.src_lang
    if usual not in languages:
        import transformers

        raise CheckpointError(
            f"the tokenizer has no token for its source language '{usual}' as transformers {transformers.__version__} "
            "loads it, expected one for every language; save it again with the version that wrote it, as "
            "AutoTokenizer.from_pretrained(..).save_pretrained(..), which adds tokenizer.json"
        )
    prefix, suffix = _surroundings(tokenizer)

    def marked(side: list[int | str]) -> list[int | str]:
        return [SOURCE_LANG if value == languages[usual] else value for value in side]

    return marked(prefix), marked(suffix)


def _surroundings(tokenizer: Any) -> tuple[list[int | str], list[int | str]]:
    text = "a 1"
    inner, whole = tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer(text)["input_ids"]
    for start in range(len(whole) - len(inner) + 1):
        if inner and whole[start : start + len(inner)] == inner:
            return whole[:start], whole[start + len(inner) :]
    raise UnsupportedModel(
        f"the tokenizer {type(tokenizer).__name__} changes a text's ids where it adds special tokens, expected tokens "
        "before and after; remove the tokenizer files to export for ids only"
    )


def _target_language_by(tokenizer: Any) -> str:
    for name in class_names(tokenizer):
        if name in _TARGET_LANGUAGE_BY:
            return _TARGET_LANGUAGE_BY[name]
    raise UnsupportedModel(
        f"it is not known how a model with a {type(tokenizer).__name__} is asked for a target language, expected one "
        f"of {', '.join(sorted(_TARGET_LANGUAGE_BY))}; remove the tokenizer files to export for ids only"
    )


def piece_options(tokenizer: Any) -> dict[str, Any]:
    """What `text/pieces.py` reads."""
    specials = [str(token) for token in tokenizer.all_special_tokens]
    separate = None
    if _is_version_4():
        extra = {token: tokenizer.convert_tokens_to_ids(token) for token in tokenizer.additional_special_tokens}
        behind = {token for token, value in extra.items() if value >= tokenizer.vocab_size}
        separate = sorted(set(tokenizer._added_tokens_encoder) - set(specials) | behind)
    return {
        "added_tokens": [
            {
                "id": number,
                "content": token.content,
                "lstrip": token.lstrip,
                "rstrip": token.rstrip,
                "single_word": token.single_word,
            }
            for number, token in sorted(tokenizer._added_tokens_decoder.items())
        ],
        "special_tokens": specials,
        "split_special_tokens": bool(tokenizer.split_special_tokens),
        "separate_added_tokens": separate,
    }


def _is_version_4() -> bool:
    import transformers

    return int(transformers.__version__.split(".")[0]) < 5
