"""What a bundle has to know of a module that its weights do not say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...errors import InvalidOption


@dataclass(frozen=True)
class Features:
    """Sources of float features [S, width] in place of ids: filter banks, sensors, embeddings of another model.

    `encode` gets them padded with zeros at their end, and a mask. least: the fewest that it takes, such as the width of
    a convolution that adds no padding.
    """

    width: int
    least: int = 1


@dataclass(frozen=True)
class Pictures:
    """Sources of pictures, all of one size, in place of ids: `encode(pixel_values)` gets [B, channels, height, width].

    preprocessor: what a picture goes through first, as an image processor of transformers has it: the processor, its
    settings as a dictionary, or a folder with preprocessor_config.json. Without one the bundle takes arrays of pixel
    values.
    """

    height: int
    width: int
    channels: int = 3
    preprocessor: Any = None


@dataclass(frozen=True)
class ModuleConfig:
    """Special tokens, limits and decoding defaults of a module of one's own.

    decoder_start_token_id: what `step` is fed first. eos_token_id: what ends a target, one or several.
    pad_token_id: what fills shorter sources of a batch; `encode` gets a mask of them as well.
    source_vocabulary_size: how many ids `encode` knows, by default as many as `step` has logits.
    max_source_length, max_target_length: in tokens, None for no limit.
    generation: more decoding defaults by their Hugging Face names, such as num_beams.
    source: what `encode` reads: Features or Pictures; None for token ids.
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
    source: Features | Pictures | None = None

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
        wrong += _wrong_source(self.source)
        if self.source is not None and self.source_vocabulary_size is not None:
            wrong.append(
                f"source_vocabulary_size is given beside {self.source!r}, which has no ids; leave one of them out"
            )
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


def _wrong_source(source: Any) -> list[str]:
    if source is None:
        return []
    if not isinstance(source, Features | Pictures):
        return [f"source is {source!r}; expected s2s_export.Features, s2s_export.Pictures, or None for token ids"]
    sizes = ("width", "least") if isinstance(source, Features) else ("height", "width", "channels")
    return [
        f"source.{name} is {getattr(source, name)!r}; expected a whole number of at least 1"
        for name in sizes
        if not _is_whole(getattr(source, name), 1)
    ]
