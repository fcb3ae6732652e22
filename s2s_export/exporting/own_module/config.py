"""What a bundle has to know of a module that its weights do not say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...errors import InvalidOption


@dataclass(frozen=True)
class ModuleConfig:
    """Special tokens, limits and decoding defaults of a module of one's own.

    decoder_start_token_id: what `step` is fed first. eos_token_id: what ends a target, one or several.
    pad_token_id: what fills shorter sources of a batch; `encode` gets a mask of them as well.
    source_vocabulary_size: how many ids `encode` knows, by default as many as `step` has logits.
    max_source_length, max_target_length: in tokens, None for no limit.
    generation: more decoding defaults by their Hugging Face names, such as num_beams.
    name: what the manifest calls the model.
    """

    decoder_start_token_id: int
    eos_token_id: int | tuple[int, ...]
    pad_token_id: int = 0
    source_vocabulary_size: int | None = None
    max_source_length: int | None = None
    max_target_length: int | None = None
    generation: Mapping[str, Any] = field(default_factory=dict)
    name: str = "own-module"

    def __post_init__(self) -> None:
        wrong = [
            f"{name} is {value!r}; expected a whole number of at least {least}"
            for name, least in (
                ("decoder_start_token_id", 0),
                ("pad_token_id", 0),
                ("source_vocabulary_size", 1),
                ("max_source_length", 1),
                ("max_target_length", 1),
            )
            if (value := getattr(self, name)) is not None and not _is_whole(value, least)
        ]
        if not self.end_tokens or not all(_is_whole(token, 0) for token in self.end_tokens):
            wrong.append(f"eos_token_id is {self.eos_token_id!r}; expected a token's id, or several")
        if wrong:
            raise InvalidOption("; ".join(wrong))

    @property
    def end_tokens(self) -> tuple[Any, ...]:
        return (self.eos_token_id,) if isinstance(self.eos_token_id, int) else tuple(self.eos_token_id)

    def defaults(self) -> dict[str, Any]:
        """The generation options by their Hugging Face names."""
        ends = self.end_tokens
        found = {
            "decoder_start_token_id": self.decoder_start_token_id,
            "eos_token_id": ends[0] if len(ends) == 1 else list(ends),
            "pad_token_id": self.pad_token_id,
        }
        if self.max_target_length is not None:
            found["max_length"] = self.max_target_length
        return {**found, **self.generation}


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
