"""`suppress_tokens`: never generated."""

from __future__ import annotations

from ..options import GenerationOptions
from ..rule import Edit, SparseRule, View, shared_ids

ORDER = 130


class SuppressTokens(SparseRule):
    """`SuppressTokensLogitsProcessor`.

    Device: the tokens.
    """

    def __init__(self, tokens: tuple[int, ...]) -> None:
        self._edit = Edit("ban", shared_ids(tokens))

    def edit(self, view: View) -> Edit:
        return self._edit


def from_options(options: GenerationOptions, vocabulary_size: int) -> SuppressTokens | None:
    return SuppressTokens(options.suppress_tokens) if options.suppress_tokens else None
