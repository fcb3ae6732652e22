"""What `encode` of a module reads: its inputs as the graphs have them, and examples of them to run it on.

Letters as in docs/architecture.md.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import InvalidOption
from ...runtime.sources import MASK, features, pixels, token_ids
from ..pictures import preprocessing_of
from .config import Features, ModuleConfig, Pictures

Input = tuple[str, torch.dtype, tuple[int | str, ...]]
SEED = 20143


class Ids:
    """Token ids and a mask, [B,S] int64 each. n_ids: how many `encode` knows; 1 where the module has yet to say."""

    kind = token_ids.KIND.name
    inputs: tuple[Input, ...] = (
        (token_ids.INPUT_IDS, torch.int64, ("B", "S")),
        (MASK, torch.int64, ("B", "S")),
    )
    least = 1

    def __init__(self, n_ids: int | None) -> None:
        self.n_ids = n_ids

    def example(self, n_rows: int, length: int) -> tuple[Tensor, ...]:
        ids = torch.arange(n_rows * length).reshape(n_rows, length) % (self.n_ids or 1)
        return ids, torch.ones_like(ids)

    def manifest(self, n_positions: int | None) -> dict[str, Any]:
        return {}


class FloatFeatures:
    """Features [B,S,W] float32 and a mask [B,S] int64."""

    kind = features.KIND.name

    def __init__(self, described: Features) -> None:
        self._width, self.least = described.width, described.least
        self.inputs: tuple[Input, ...] = (
            (features.FEATURES, torch.float32, ("B", "S", described.width)),
            (MASK, torch.int64, ("B", "S")),
        )

    def example(self, n_rows: int, length: int) -> tuple[Tensor, ...]:
        chance = torch.Generator().manual_seed(SEED)
        values = torch.randn((n_rows, length, self._width), generator=chance)
        return values, torch.ones((n_rows, length), dtype=torch.int64)

    def manifest(self, n_positions: int | None) -> dict[str, Any]:
        return {"n_features": self._width, "min_length": self.least}


class PixelValues:
    """Pixel values [B,channels,height,width] float32, of one size, and no mask."""

    kind = pixels.KIND.name
    least = 1

    def __init__(self, described: Pictures) -> None:
        self.shape = (described.channels, described.height, described.width)
        self._preprocessing = _preprocessing(described.preprocessor, self.shape)
        self.inputs: tuple[Input, ...] = ((pixels.PIXEL_VALUES, torch.float32, ("B", *self.shape)),)

    def example(self, n_rows: int, length: int) -> tuple[Tensor, ...]:
        return (torch.randn((n_rows, *self.shape), generator=torch.Generator().manual_seed(SEED)),)

    def manifest(self, n_positions: int | None) -> dict[str, Any]:
        """n_positions: those that attention weights have; nothing depends on it where there are none."""
        sizes = dict(zip(pixels.SIZES, (*self.shape, n_positions or 1), strict=True))
        return {**sizes, "preprocessing": self._preprocessing}


Sources = Ids | FloatFeatures | PixelValues


def of(config: ModuleConfig) -> Sources:
    if isinstance(config.source, Features):
        return FloatFeatures(config.source)
    if isinstance(config.source, Pictures):
        return PixelValues(config.source)
    return Ids(config.source_vocabulary_size)


def _preprocessing(given: Any, shape: tuple[int, int, int]) -> dict[str, Any] | None:
    """As the manifest has it. Raises InvalidOption, CheckpointError, UnsupportedModel."""
    if given is None:
        return None
    if hasattr(given, "to_dict"):
        given = {**given.to_dict(), "image_processor_type": type(given).__name__}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if isinstance(given, Mapping):
            (folder / "preprocessor_config.json").write_text(json.dumps(dict(given)), encoding="utf-8")
        elif isinstance(given, str | Path) and Path(given).is_dir():
            folder = Path(given)
        else:
            raise InvalidOption(
                f"source.preprocessor is {given!r}; expected an image processor of transformers, its settings, or a "
                "folder with preprocessor_config.json"
            )
        found = preprocessing_of(folder, shape)
    if found is None:
        raise InvalidOption(f"source.preprocessor: {given} has no preprocessor_config.json")
    return found
