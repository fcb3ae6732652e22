"""The text of a hypothesis while it is being decoded."""

from __future__ import annotations

from collections.abc import Sequence

from s2s_export.runtime.text.tokenizer import Tokenizer


class StreamDecoder:
    """Turns ids into text piece by piece. A piece that was returned is never changed.

    Text that later ids could still change is held back: an incomplete UTF-8 character, a run of byte tokens, a space
    that a clean-up rule may remove, the space at the end. All pieces together are `tokenizer.decode` of all ids. A
    decoder is for one hypothesis and one thread.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True, *, prompt: Sequence[int] = ()) -> None:
        """prompt: ids that the hypothesis begins with, which are pushed like others and whose text is left out."""
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._ids: list[int] = []
        self._emitted = len(tokenizer.decode(prompt, skip_special_tokens)) if prompt else 0  # characters

    def push(self, ids: Sequence[int]) -> str:
        """Add ids; returns the text that has become final, which may be empty."""
        self._ids.extend(int(value) for value in ids)
        return self._emit(self._tokenizer.settled(self._ids, self._skip))

    def finish(self) -> str:
        """The rest of the text, once the hypothesis is complete."""
        return self._emit(self._tokenizer.decode(self._ids, self._skip))

    def _emit(self, text: str) -> str:
        new = text[self._emitted :]
        self._emitted += len(new)
        return new
