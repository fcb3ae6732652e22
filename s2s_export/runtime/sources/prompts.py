"""Prompts: token ids that a decoder alone goes on with. They are read as `token_ids` are.

Positions count from a prompt's own beginning, and it is filled up on the right, where nothing looks.
"""

from __future__ import annotations

from typing import ClassVar

from ...bundle import Bundle
from . import SourceKind
from .token_ids import TokenIds


class PromptIds(TokenIds):
    """See `sources.SourceKind`. longest: the most tokens of a whole text, prompt included, or None."""

    name: ClassVar[str] = "prompts"
    is_prompt: ClassVar[bool] = True

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle)
        self.longest = bundle.max_target_length


KIND: type[SourceKind] = PromptIds
