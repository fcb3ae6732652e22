"""The tokenizer's entry in a bundle's manifest: data that exporting/tokenizers writes and that is read here.

kind                  the file in kinds/ that implements this tokenizer
files                 role -> file name inside the tokenizer folder ("tokenizer", "source", "target", "vocab", ...)
special_ids           pad, bos, eos, unk -> id, if the tokenizer has them
template              {"prefix": [..], "suffix": [..]}: what is put before and after the ids of every text. An element
                      is an id, or "source_lang", which stands for the id of the source's language
languages             language code -> id of its token; empty for a tokenizer without languages
source_lang           the source language if none is given, or null
target_lang           the checkpoint's own target language, or null
target_language_by    how the model is told the target language: "forced_bos_token_id", "decoder_start_token_id" (both
                      are generation options), "source_prefix" (a token before the source's text), or null
model_max_length      in tokens, or null
truncation_side       "right" (the default) or "left": which end of a text is cut where it is too long
decode                {"clean_up_tokenization_spaces": bool, "skip_ids": [..],
                      "spaces_between_special_tokens": bool}
options               read by this kind only; the file of each kind explains its options
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from s2s_export.errors import BundleError
from s2s_export.schema import below, is_file_name, shown

SOURCE_LANG = "source_lang"  # the template's placeholder
TARGET_LANGUAGE_BY = ("forced_bos_token_id", "decoder_start_token_id", "source_prefix")


@dataclass(frozen=True)
class Entry:
    """A manifest entry whose types and ranges have been checked."""

    kind: str
    files: Mapping[str, str]
    special_ids: Mapping[str, int] = field(default_factory=dict)
    prefix: tuple[int | str, ...] = ()
    suffix: tuple[int | str, ...] = ()
    languages: Mapping[str, int] = field(default_factory=dict)
    source_lang: str | None = None
    target_lang: str | None = None
    target_language_by: str | None = None
    model_max_length: int | None = None
    truncation_side: str = "right"
    clean_up: bool = False
    skip_ids: frozenset[int] = frozenset()
    spaces_between_special_tokens: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Entry:
        """Check the types and values of `data`. Raises BundleError, which names the field that is wrong."""
        template = _mapping(data, "template")
        decode = _mapping(data, "decode")
        languages = {code: _id(value, f"languages.{code}") for code, value in _mapping(data, "languages").items()}
        entry = cls(
            kind=_text(data, "kind") or "",
            files={role: _name(name, role) for role, name in _mapping(data, "files").items()},
            special_ids={name: _id(value, name) for name, value in _mapping(data, "special_ids").items()},
            prefix=_template(template, "prefix"),
            suffix=_template(template, "suffix"),
            languages=languages,
            source_lang=_text(data, "source_lang"),
            target_lang=_text(data, "target_lang"),
            target_language_by=_text(data, "target_language_by"),
            model_max_length=None if (n := data.get("model_max_length")) is None else _id(n, "model_max_length"),
            truncation_side=_text(data, "truncation_side") or "right",
            clean_up=_flag(decode, "clean_up_tokenization_spaces"),
            skip_ids=frozenset(_id(value, "decode.skip_ids") for value in _list(decode, "skip_ids")),
            spaces_between_special_tokens=_flag(decode, "spaces_between_special_tokens"),
            options=_mapping(data, "options"),
        )
        entry._check()
        return entry

    def _check(self) -> None:
        if self.target_language_by is not None and self.target_language_by not in TARGET_LANGUAGE_BY:
            raise _damaged(
                f"target_language_by is {shown(self.target_language_by)}", "one of " + ", ".join(TARGET_LANGUAGE_BY)
            )
        if self.truncation_side not in ("left", "right"):
            raise _damaged(f"truncation_side is {shown(self.truncation_side)}", "left or right")
        if SOURCE_LANG in self.prefix + self.suffix and self.source_lang not in self.languages:
            raise _damaged(
                f"the default source language {shown(self.source_lang)} is not in its languages", "one of its codes"
            )

    def path(self, folder: Path, role: str) -> Path:
        """The file for `role`. Raises BundleError if it is missing or outside `folder`."""
        name = self.files.get(role)
        if name is None:
            raise _damaged(f"it has no file for '{role}'", f"one for a tokenizer of kind '{self.kind}'")
        path = folder / name
        if not path.is_file():
            raise BundleError(
                f"the tokenizer file {shown(name)} is missing from {folder}; copy or export the bundle again"
            )
        if not path.resolve().is_relative_to(folder.resolve()):
            raise _outside(name)
        return path


def _name(name: Any, role: str) -> str:
    if not is_file_name(name):
        raise _damaged(f"{below('files', role)} is {shown(name)}", "a file name")
    windows = PureWindowsPath(name)
    if PurePosixPath(name).is_absolute() or windows.drive or windows.root or ".." in windows.parts:
        raise _outside(name)
    return name


def _template(template: Mapping[str, Any], side: str) -> tuple[int | str, ...]:
    return tuple(
        SOURCE_LANG if value == SOURCE_LANG else _id(value, f"template.{side}") for value in _list(template, side)
    )


def _mapping(data: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = data.get(name)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise _damaged(f"{name} is {shown(value)}", "an object")
    return value


def _list(data: Mapping[str, Any], name: str) -> Sequence[Any]:
    value = data.get(name)
    if value is None:
        return ()
    if not isinstance(value, (list, tuple)):
        raise _damaged(f"{name} is {shown(value)}", "a list")
    return value


def _text(data: Mapping[str, Any], name: str) -> str | None:
    value = data.get(name)
    if value is not None and not isinstance(value, str):
        raise _damaged(f"{name} is {shown(value)}", "a string")
    return value


def _flag(data: Mapping[str, Any], name: str) -> bool:
    value = data.get(name, False)
    if not isinstance(value, bool):
        raise _damaged(f"{name} is {shown(value)}", "true or false")
    return value


def _id(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise _damaged(f"{name} is {shown(value)}", "a whole number, zero or more")
    return value


def _damaged(found: str, expected: str) -> BundleError:
    return BundleError(
        f"the manifest's tokenizer entry is damaged: {found}, expected {expected}; export the bundle again"
    )


def _outside(name: str) -> BundleError:
    return BundleError(
        f"the tokenizer file {shown(name)} leads out of the bundle, expected a name inside it; export the bundle again"
    )
