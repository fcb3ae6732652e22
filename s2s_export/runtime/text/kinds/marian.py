"""OPUS-MT and other Marian models: two sentencepiece models give the pieces, and a vocab.json their ids.

The ids of the sentencepiece models themselves are not used. Files: source, target, vocab, and target_vocab if the
target has a vocabulary of its own. transformers creates a Moses punctuation normalizer for these models but does not
use it when it tokenizes, so there is none here.

Options, in addition to those in `pieces.py`: `decode_with` ("source" or "target": the model that joins pieces;
transformers 5 uses that of the source if there is one vocabulary for both), `unlisted_ids` (the text of an id that is
not in vocab.json: "piece", what the sentencepiece model has for it, or "unk", the unknown token) and `language_codes`
("first": a `>>fra<<` at the beginning is a token; "none": it is text; "anywhere", as in older versions of transformers
4: everything from the first `>>` to the last `<<` is removed, and is a token if it begins the text).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from s2s_export.errors import BundleError
from s2s_export.runtime.text import files
from s2s_export.runtime.text.entry import Entry
from s2s_export.runtime.text.pieces import PieceTokenizer
from s2s_export.runtime.text.tokenizer import check_ids
from s2s_export.schema import shown

_CODES = re.compile(">>.+<<")


class MarianTokenizer(PieceTokenizer):
    def __init__(self, entry: Entry, source: Any, target: Any, vocab: dict[str, int], decoder: dict[str, int]) -> None:
        super().__init__(entry)
        self._source = source
        self._target = target
        self._joiner = source if entry.options.get("decode_with", "target") == "source" else target
        self._vocab = vocab
        self._pieces_by_id = {value: piece for piece, value in decoder.items()}
        self._target_vocab = decoder
        self._source_pieces = {value: piece for piece, value in vocab.items()}
        self._unlisted = entry.options.get("unlisted_ids", "unk")
        self._codes = str(entry.options.get("language_codes", "first"))
        self._unk_token = str(entry.options.get("unk_token", "<unk>"))
        if self._unk_token not in vocab:
            raise BundleError(
                f"the tokenizer's vocabulary lacks its unknown token {shown(self._unk_token)}; export the bundle again"
            )

    def _pieces(self, text: str) -> list[str]:
        if self._codes == "anywhere":
            match = _CODES.match(text)
            return [*([match.group()] if match else []), *self._source.encode(_CODES.sub("", text), out_type=str)]
        if self._codes != "none" and text.startswith(">>") and (end := text.find("<<")) != -1:
            return [text[: end + 2], *self._source.encode(text[end + 2 :], out_type=str)]
        return list(self._source.encode(text, out_type=str))

    def _encode_target(self, text: str) -> list[int]:
        unknown = self._target_vocab.get(self._unk_token, self._vocab[self._unk_token])
        return [self._target_vocab.get(piece, unknown) for piece in self._target.encode(text, out_type=str)]

    def source_tokens(self, ids: Iterable[int]) -> list[str]:
        return [self._source_pieces.get(value, "") for value in check_ids(ids)]

    def _piece_id(self, piece: str) -> int:
        return self._vocab.get(piece, self._vocab[self._unk_token])

    def _piece_of(self, token: int) -> str | None:
        piece = self._pieces_by_id.get(token)
        if piece is not None:
            return piece
        if self._unlisted == "unk":
            return self._unk_token
        if token >= self._joiner.get_piece_size():
            return None
        return str(self._joiner.id_to_piece(token) or self._unk_token)

    def _join(self, pieces: list[str]) -> str:
        text = ""
        run: list[str] = []
        for piece in pieces:
            if piece in self._specials:
                text += self._joiner.decode_pieces(run) + piece + " "
                run = []
            else:
                run.append(piece)
        text += self._joiner.decode_pieces(run)
        return str(text).replace("▁", " ").strip()


def load(folder: Path, entry: Entry) -> MarianTokenizer:
    source, target = (files.sentencepiece_model(entry.path(folder, role)) for role in ("source", "target"))
    vocab = files.vocabulary(entry.path(folder, "vocab"))
    decoder = files.vocabulary(entry.path(folder, "target_vocab")) if "target_vocab" in entry.files else vocab
    return MarianTokenizer(entry, source, target, vocab, decoder)
