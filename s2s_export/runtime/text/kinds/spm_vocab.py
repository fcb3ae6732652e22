"""M2M100: a sentencepiece model gives the pieces, a vocab.json their ids; language tokens come after these.

Files: model, vocab. Options, in addition to those in `pieces.py`: `language_tokens` ({"__en__": id, ..}) and
`unk_token`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from s2s_export.errors import BundleError
from s2s_export.runtime.text import files
from s2s_export.runtime.text.entry import Entry
from s2s_export.runtime.text.pieces import PieceTokenizer
from s2s_export.schema import shown


class SpmVocabTokenizer(PieceTokenizer):
    def __init__(self, entry: Entry, model: Any, vocab: dict[str, int]) -> None:
        super().__init__(entry)
        self._model = model
        self._vocab = vocab
        self._pieces_by_id = {value: piece for piece, value in vocab.items()}
        self._language_tokens: dict[str, int] = dict(entry.options.get("language_tokens", {}))
        self._languages_by_id = {value: token for token, value in self._language_tokens.items()}
        self._unk_token = str(entry.options.get("unk_token", "<unk>"))
        if self._unk_token not in vocab:
            raise BundleError(
                f"the tokenizer's vocabulary lacks its unknown token {shown(self._unk_token)}; export the bundle again"
            )

    def _pieces(self, text: str) -> list[str]:
        return list(self._model.encode(text, out_type=str))

    def _piece_id(self, piece: str) -> int:
        if piece in self._language_tokens:
            return self._language_tokens[piece]
        return self._vocab.get(piece, self._vocab[self._unk_token])

    def _piece_of(self, token: int) -> str:
        return self._languages_by_id.get(token) or self._pieces_by_id.get(token, self._unk_token)

    def _join(self, pieces: list[str]) -> str:
        text = ""
        run: list[str] = []
        for piece in pieces:
            if piece in self._specials:
                text += self._model.decode_pieces(run) + piece
                run = []
            else:
                run.append(piece)
        return str(text + self._model.decode_pieces(run)).strip()


def load(folder: Path, entry: Entry) -> SpmVocabTokenizer:
    model = files.sentencepiece_model(entry.path(folder, "model"))
    return SpmVocabTokenizer(entry, model, files.vocabulary(entry.path(folder, "vocab")))
