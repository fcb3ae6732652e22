"""A tokenizer.json, run by the `tokenizers` package: T5, mT5, BART, mBART, mBART-50, NLLB, Pegasus.

The template in tokenizer.json is not used but that of the manifest entry, so that calls can have different source
languages. Options: `split_special_tokens` (true: special tokens written in a text are ordinary text), `steady_decoder`
(true: more tokens never change the text of earlier ones, except within a run of byte tokens; if false, a stream gets
its whole text at the end), `byte_fallback` (true: there are byte tokens) and `drop_timestamps` (true: what is spelled
as a time, `<|0.02|>`, is left out of every text, as Whisper's tokenizer does).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from s2s_export.runtime.text import files, panics
from s2s_export.runtime.text.entry import Entry
from s2s_export.runtime.text.tokenizer import Tokenizer, check_ids, check_text

_TIMESTAMP = re.compile(r"<\|\d+\.\d+\|>")
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class FastTokenizer(Tokenizer):
    def __init__(self, entry: Entry, tokenizer: Any) -> None:
        super().__init__(entry)
        self._tokenizer = tokenizer
        self._tokenizer.encode_special_tokens = bool(entry.options.get("split_special_tokens", False))
        self._steady = bool(entry.options.get("steady_decoder", False))
        self._drops_timestamps = bool(entry.options.get("drop_timestamps", False))
        self._byte_fallback = bool(entry.options.get("byte_fallback", True))

    def tokens(self, ids: Iterable[int]) -> list[str]:
        return [self._tokenizer.id_to_token(value) or "" for value in check_ids(ids)]

    def spans(self, text: str) -> list[tuple[int, int]]:
        check_text(text)
        with panics.as_input_error("encode this text"):
            return list(self._tokenizer.encode(text, add_special_tokens=False).offsets)

    def _encode(self, text: str) -> list[int]:
        with panics.as_input_error("encode this text"):
            return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def _decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        with panics.as_input_error("spell these ids"):
            text = str(self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens))
        return _TIMESTAMP.sub("", text) if self._drops_timestamps else text

    def _finished(self, ids: list[int], skip_special_tokens: bool) -> list[int]:
        if not self._steady:
            return []
        end = len(ids)
        while self._byte_fallback and end > 0 and self._is_byte(ids[end - 1], skip_special_tokens):
            end -= 1
        return ids[:end]

    def _is_byte(self, token: int, skip_special_tokens: bool) -> bool:
        """Whether the token's text depends on the tokens after it: a run of bytes is decoded as a whole."""
        spelling = self._tokenizer.id_to_token(token)
        if spelling is None or (skip_special_tokens and token in self.entry.skip_ids):
            return True  # not in the text, so that it does not end a run
        return _BYTE.fullmatch(spelling) is not None


def load(folder: Path, entry: Entry) -> FastTokenizer:
    return FastTokenizer(entry, files.tokenizers_model(entry.path(folder, "tokenizer")))
