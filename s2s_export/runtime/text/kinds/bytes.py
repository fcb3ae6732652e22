"""ByT5: the tokens are the UTF-8 bytes of a text, whose ids come after a few special ids. There are no files.

Options, in addition to those in `pieces.py`: `offset`, the id of byte 0.
"""

from __future__ import annotations

from pathlib import Path

from s2s_export.runtime.text.entry import Entry
from s2s_export.runtime.text.pieces import PieceTokenizer


class ByteTokenizer(PieceTokenizer):
    def __init__(self, entry: Entry) -> None:
        super().__init__(entry)
        self._offset = int(entry.options.get("offset", 3))

    def _pieces(self, text: str) -> list[str]:
        return [chr(byte) for byte in text.encode("utf-8")]

    def _piece_id(self, piece: str) -> int:
        return ord(piece) + self._offset

    def _piece_of(self, token: int) -> str | None:
        byte = token - self._offset
        return chr(byte) if 0 <= byte < 256 else None

    def _join(self, pieces: list[str]) -> str:
        raw = b"".join(
            piece.encode("utf-8") if piece in self._added.by_content else bytes([ord(piece)]) for piece in pieces
        )
        return raw.decode("utf-8", errors="ignore")

    def _surround(self, ids: list[int], source_lang: str | None) -> list[int]:
        """As `Tokenizer._surround`, but adds no end token to a text that already ends with one, written out."""
        if ids and self.entry.suffix == (ids[-1],):
            return [int(value) for value in self.entry.prefix] + ids
        return super()._surround(ids, source_lang)


def load(folder: Path, entry: Entry) -> ByteTokenizer:
    return ByteTokenizer(entry)
