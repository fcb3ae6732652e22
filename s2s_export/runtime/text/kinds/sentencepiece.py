"""One sentencepiece model, whose ids plus an offset are the ids; or two, if source and target differ.

Files: model, and target_model if the target has one of its own. Options: `offset` (by default 0). Special tokens
written in a text are ordinary text. Ids outside the model's range, and those to skip, add nothing to a text.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from s2s_export.runtime.text import files
from s2s_export.runtime.text.entry import Entry
from s2s_export.runtime.text.tokenizer import Tokenizer, check_ids


class SentencePieceTokenizer(Tokenizer):
    def __init__(self, entry: Entry, model: Any, target_model: Any) -> None:
        super().__init__(entry)
        self._model = model
        self._target = target_model
        self._offset = int(entry.options.get("offset", 0))

    def tokens(self, ids: Iterable[int]) -> list[str]:
        """The pieces in the target's model."""
        shifted = [value - self._offset for value in check_ids(ids)]
        return [self._target.id_to_piece(value) if self._in_range(value) else "" for value in shifted]

    def _encode(self, text: str) -> list[int]:
        return [value + self._offset for value in self._model.encode(text, out_type=int)]

    def _encode_target(self, text: str) -> list[int]:
        return [value + self._offset for value in self._target.encode(text, out_type=int)]

    def _decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        skip = self.entry.skip_ids if skip_special_tokens else frozenset()
        shifted = [value - self._offset for value in ids if value not in skip]
        return str(self._target.decode([value for value in shifted if self._in_range(value)]))

    def _in_range(self, value: int) -> bool:
        return 0 <= value < int(self._target.get_piece_size())


def load(folder: Path, entry: Entry) -> SentencePieceTokenizer:
    model = files.sentencepiece_model(entry.path(folder, "model"))
    other = "target_model" in entry.files
    target = files.sentencepiece_model(entry.path(folder, "target_model")) if other else model
    return SentencePieceTokenizer(entry, model, target)
