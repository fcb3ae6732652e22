"""Text to token ids and back, with the results of the checkpoint's own tokenizer but without transformers.

`load(folder, entry)` returns the tokenizer that a manifest entry describes (entry.py explains its fields).
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from s2s_export.errors import BundleError, nearest
from s2s_export.runtime.text import kinds
from s2s_export.runtime.text.entry import Entry
from s2s_export.runtime.text.lines import lines_of, read_lines, without_end
from s2s_export.runtime.text.spelling import continues_word, spell
from s2s_export.runtime.text.stream import StreamDecoder
from s2s_export.runtime.text.tokenizer import Tokenizer, from_utf8

__all__ = [
    "StreamDecoder",
    "Tokenizer",
    "continues_word",
    "from_utf8",
    "known_kinds",
    "lines_of",
    "load",
    "read_lines",
    "spell",
    "without_end",
]


def known_kinds() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(kinds.__path__))


def load(folder: Path, entry: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that `entry` describes, with its files in `folder`. Raises BundleError."""
    checked = Entry.read(entry)
    known = known_kinds()
    if checked.kind not in known:
        raise BundleError(
            f"the bundle's tokenizer is of kind '{checked.kind}', which this version does not know"
            f"{nearest(checked.kind, known)}; install a newer version"
        )
    module = importlib.import_module(f"{kinds.__name__}.{checked.kind}")
    try:
        tokenizer: Tokenizer = module.load(Path(folder), checked)
    except (TypeError, ValueError) as error:
        raise BundleError(
            f"the manifest's tokenizer entry has options that '{checked.kind}' can't use ({error}); "
            "export the bundle again"
        ) from error
    return tokenizer
