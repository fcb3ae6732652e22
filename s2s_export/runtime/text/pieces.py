"""Tokenizers that are written in Python in transformers: added tokens are cut out first, the rest becomes pieces.

Options of every kind that is built on this:

    added_tokens              [{"id", "content", "lstrip", "rstrip", "single_word"}, ..]
    special_tokens            contents that appear as they are, and are never joined with neighbouring pieces
    split_special_tokens      true: special tokens written in a text are ordinary text
    separate_added_tokens     contents that are separated by spaces; null if the exporting transformers did not do so
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable

from s2s_export.errors import BundleError, InputError
from s2s_export.runtime.text.added import AddedToken, AddedTokens
from s2s_export.runtime.text.entry import Entry
from s2s_export.runtime.text.tokenizer import Tokenizer, check_ids


class PieceTokenizer(Tokenizer):
    """A kind defines the pieces of a text, the ids of pieces, and how pieces are joined."""

    def __init__(self, entry: Entry) -> None:
        super().__init__(entry)
        try:
            tokens = [AddedToken(**token) for token in entry.options.get("added_tokens", ())]
            separate = entry.options.get("separate_added_tokens")
            self._separate = None if separate is None else frozenset(separate)
            self._specials = frozenset(entry.options.get("special_tokens", ()))
        except TypeError as error:
            raise BundleError(
                f"the manifest's tokenizer entry has damaged added tokens ({error}); export the bundle again"
            ) from None
        self._added = AddedTokens(tokens)
        self._added_by_id = {token.id: token.content for token in tokens}
        self._split_specials = bool(entry.options.get("split_special_tokens", False))

    def tokens(self, ids: Iterable[int]) -> list[str]:
        return [self._spelling(value) for value in check_ids(ids)]

    @abstractmethod
    def _pieces(self, text: str) -> list[str]:
        """The pieces of a text without added tokens."""

    @abstractmethod
    def _piece_id(self, piece: str) -> int: ...

    @abstractmethod
    def _piece_of(self, token: int) -> str | None:
        """The piece with this id; None if transformers refuses to decode it."""

    @abstractmethod
    def _join(self, pieces: list[str]) -> str: ...

    def _encode(self, text: str) -> list[int]:
        ids = []
        for part in [text] if self._split_specials else self._added.split(text):
            whole = not self._split_specials and (part in self._added.by_content or part in self._specials)
            for piece in [part] if whole else self._pieces(part):
                added = self._added.by_content.get(piece)
                ids.append(self._piece_id(piece) if added is None else added.id)
        return ids

    def _decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        pieces = []
        for token in ids:
            if skip_special_tokens and token in self.entry.skip_ids:
                continue
            piece = self._added_by_id.get(token, self._piece_of(token))
            if piece is None:
                raise InputError(f"token id {token} is outside the tokenizer's vocabulary, expected an id in it")
            pieces.append(piece)
        if self._separate is None:
            return self._join(pieces)
        return self._set_apart(pieces, skip_special_tokens, self._separate)

    def _set_apart(self, pieces: list[str], skip_special_tokens: bool, separate: frozenset[str]) -> str:
        """As transformers 4 does it: the pieces between added tokens are joined separately."""
        texts: list[str] = []
        run: list[str] = []
        for piece in pieces:
            if skip_special_tokens and piece in self._specials:
                continue
            if piece not in separate:
                run.append(piece)
                continue
            if run and (text := self._join(run)):
                texts.append(text)
            run = []
            texts.append(piece)
        if run:
            texts.append(self._join(run))
        return (" " if self.entry.spaces_between_special_tokens else "").join(texts)

    def _spelling(self, token: int) -> str:
        return self._added_by_id.get(token, self._piece_of(token)) or ""
