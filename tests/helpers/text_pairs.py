"""Fixtures, which a conftest imports: one export of every family's tokenizer, and transformers' own beside it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import text_folders

from s2s_export.exporting.tokenizers import write as text_assets
from s2s_export.runtime import text

STYLES = ("slow", "resaved")  # as transformers 4 wrote a folder without tokenizer.json; as the installed one writes it
CASES = [f"{family}/{style}" for family in text_folders.SLOW for style in STYLES]


@dataclass(repr=False)
class Pair:
    """transformers' tokenizer and the runtime's, of one checkpoint."""

    name: str
    checkpoint: Path
    folder: Path
    entry: dict[str, Any]
    original: Any
    tokenizer: text.Tokenizer

    def __repr__(self) -> str:
        return f"Pair({self.name})"

    def plain(self, ids: list[int], skip: bool) -> str | None:
        """transformers' text, None where it refuses an id."""
        try:
            return self.original.decode(ids, skip_special_tokens=skip)
        except (IndexError, ValueError):
            return None

    @property
    def size(self) -> int:
        return max(len(self.original), len(getattr(self.original, "target_encoder", ())))


@pytest.fixture(scope="session")
def pair_of(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")

    @cache
    def checkpoint(name: str) -> Path:
        family, style = name.split("/")
        folder = root / family / style
        if style == "slow":
            text_folders.SLOW[family](folder)
        else:
            text_folders.resaved(checkpoint(f"{family}/slow"), folder)
        return folder

    @cache
    def make(name: str) -> Pair:
        source = checkpoint(name)
        folder = source.with_name(source.name + "-bundle")
        entry = text_assets.write_tokenizer(source, folder)
        return Pair(name, source, folder, entry, text_folders.original(source), text.load(folder, entry))

    return make


@pytest.fixture(params=CASES)
def pair(request, pair_of) -> Pair:
    return pair_of(request.param)
