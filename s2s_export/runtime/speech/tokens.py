"""The special ids of a speech model: manifest.json's `speech` section, whose types bundle.py has checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...bundle import Bundle

SECONDS_PER_TIMESTAMP = 0.02  # between two times that have tokens, and two positions of the encoder
FRAMES_PER_TIMESTAMP = 2


@dataclass(frozen=True)
class SpeechTokens:
    """lang_to_id: "<|en|>" -> id. task_to_id: "transcribe" -> id. Both are empty for a model of one language.

    startofprev stands before earlier text. nospeech: what the first step gives probability if nobody speaks.
    alignment_heads: (layer, head) of the cross-attention that the decoder step gives.
    """

    startoftranscript: int
    endoftext: int
    notimestamps: int
    is_multilingual: bool
    lang_to_id: Mapping[str, int] = field(default_factory=dict)
    task_to_id: Mapping[str, int] = field(default_factory=dict)
    startofprev: int | None = None
    nospeech: int | None = None
    max_initial_timestamp_index: int | None = None
    alignment_heads: tuple[tuple[int, int], ...] = ()
    median_filter_width: int = 7
    forced_decoder_ids: tuple[tuple[int, int | None], ...] = ()
    return_timestamps: bool = False

    @classmethod
    def of(cls, bundle: Bundle) -> SpeechTokens | None:
        """None for a bundle of another kind of model."""
        entry = bundle.manifest.get("speech")
        if entry is None:
            return None
        lists: dict[str, Any] = {
            name: tuple(tuple(pair) for pair in entry.get(name) or ())
            for name in ("alignment_heads", "forced_decoder_ids")
        }
        plain = {name: value for name, value in entry.items() if name in cls.__dataclass_fields__ and name not in lists}
        return cls(**plain, **lists)

    @property
    def timestamp_begin(self) -> int:
        """<|0.00|>; all ids from it on are times."""
        return self.notimestamps + 1

    def seconds(self, token: int) -> float:
        """The time that a token of time means, from the beginning of its window."""
        return (token - self.timestamp_begin) * SECONDS_PER_TIMESTAMP
