"""Pieces with spaces between them, as the commands of OpenNMT-py, fairseq and CTranslate2 read and write a text.

The model's owner has cut the text beforehand, and joins what comes out. Files: vocab, and target_vocab if the target
has a vocabulary of its own. Options: `unk_token`, which stands for pieces that the vocabulary lacks.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from s2s_export.errors import BundleError
from s2s_export.runtime.text import files
from s2s_export.runtime.text.entry import Entry
from s2s_export.runtime.text.tokenizer import Tokenizer, check_ids
from s2s_export.schema import shown


class WordsTokenizer(Tokenizer):
    def __init__(self, entry: Entry, vocab: dict[str, int], target: dict[str, int]) -> None:
        super().__init__(entry)
        self._vocab, self._target = vocab, target
        self._by_id = {value: piece for piece, value in target.items()}
        self._source_by_id = {value: piece for piece, value in vocab.items()}
        self._unk_token = str(entry.options.get("unk_token", "<unk>"))
        if self._unk_token not in vocab or self._unk_token not in target:
            raise BundleError(
                f"the tokenizer's vocabulary lacks its unknown token {shown(self._unk_token)}; export the bundle again"
            )

    def tokens(self, ids: Iterable[int]) -> list[str]:
        return [self._by_id.get(value, "") for value in check_ids(ids)]

    def source_tokens(self, ids: Iterable[int]) -> list[str]:
        return [self._source_by_id.get(value, "") for value in check_ids(ids)]

    def _encode(self, text: str) -> list[int]:
        return [self._vocab.get(piece, self._vocab[self._unk_token]) for piece in text.split()]

    def _encode_target(self, text: str) -> list[int]:
        return [self._target.get(piece, self._target[self._unk_token]) for piece in text.split()]

    def _decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        skip = self.entry.skip_ids if skip_special_tokens else frozenset()
        return " ".join(self._by_id.get(value, self._unk_token) for value in ids if value not in skip)


def load(folder: Path, entry: Entry) -> WordsTokenizer:
    vocab = files.vocabulary(entry.path(folder, "vocab"))
    target = files.vocabulary(entry.path(folder, "target_vocab")) if "target_vocab" in entry.files else vocab
    return WordsTokenizer(entry, vocab, target)
