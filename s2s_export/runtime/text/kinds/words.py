"""Pieces with spaces between them, as the commands of OpenNMT-py, fairseq and CTranslate2 read and write a text.

The owner has cut the text beforehand, and joins what comes out; where there are codes, they split and join words
(bpe_codes.py). Files: vocab, target_vocab if the target has a vocabulary of its own, and perhaps codes. Options:
`unk_token`, which stands for pieces that the vocabulary lacks.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from s2s_export.errors import BundleError
from s2s_export.runtime.text import files
from s2s_export.runtime.text.bpe_codes import BpeCodes, joined
from s2s_export.runtime.text.entry import Entry
from s2s_export.runtime.text.tokenizer import Tokenizer, check_ids
from s2s_export.schema import shown


class WordsTokenizer(Tokenizer):
    def __init__(
        self, entry: Entry, vocab: dict[str, int], target: dict[str, int], codes: BpeCodes | None = None
    ) -> None:
        super().__init__(entry)
        self._codes = codes
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
        return [self._vocab.get(piece, self._vocab[self._unk_token]) for piece in self._pieces(text)]

    def _encode_target(self, text: str) -> list[int]:
        return [self._target.get(piece, self._target[self._unk_token]) for piece in self._pieces(text)]

    def _pieces(self, text: str) -> list[str]:
        codes = self._codes
        return text.split() if codes is None else [piece for word in text.split() for piece in codes.split(word)]

    def _decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        skip = self.entry.skip_ids if skip_special_tokens else frozenset()
        text = " ".join(self._by_id.get(value, self._unk_token) for value in ids if value not in skip)
        return text if self._codes is None else joined(text)


def load(folder: Path, entry: Entry) -> WordsTokenizer:
    vocab = files.vocabulary(entry.path(folder, "vocab"))
    target = files.vocabulary(entry.path(folder, "target_vocab")) if "target_vocab" in entry.files else vocab
    codes = BpeCodes.read(entry.path(folder, "codes")) if "codes" in entry.files else None
    return WordsTokenizer(entry, vocab, target, codes)
