"""Text of a hypothesis while its ids are still coming."""

from __future__ import annotations

from collections.abc import Sequence

from s2s_export.runtime.text.tokenizer import Tokenizer


class StreamDecoder:
    """Turns ids into text piece by piece, and never takes a character back.

    What later ids could still change is held: an unfinished UTF-8 character, a run of byte tokens, a space that a
    clean-up rule may remove, the space at the end of a text. The pieces joined are `tokenizer.decode` of all ids. One
    decoder belongs to one hypothesis and one thread.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._ids: list[int] = []
        self._emitted = 0  # characters

    def push(self, ids: Sequence[int]) -> str:
        """The text that these ids made final, possibly none."""
        self._ids.extend(int(value) for value in ids)
        return self._emit(self._tokenizer.settled(self._ids, self._skip))

    def finish(self) -> str:
        """The rest of the text; the hypothesis is over."""
        return self._emit(self._tokenizer.decode(self._ids, self._skip))

    def _emit(self, text: str) -> str:
        new = text[self._emitted :]
        self._emitted += len(new)
        return new
