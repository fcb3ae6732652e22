"""A tiny Whisper, exported once, beside the same in transformers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_whisper
import torch
import transformers

import s2s_export
from s2s_export.runtime.audio.log_mel import log_mel


@dataclass(frozen=True)
class Pair:
    """The same model twice."""

    model: Any
    session: Any
    checkpoint: Path
    bundle: Path

    def generate(self, clips: list[Any], **options: Any) -> list[list[int]]:
        """transformers' tokens of clips of one length."""
        n = tiny_whisper.SAMPLES
        if len(clips[0]) <= n:
            features = [log_mel(np.pad(clip, (0, n - len(clip))), tiny_whisper.BANDS) for clip in clips]
        else:
            features = [log_mel(clip, tiny_whisper.BANDS) for clip in clips]
            options["attention_mask"] = torch.ones((len(clips), features[0].shape[1]), dtype=torch.int64)
        if "prompt_ids" in options:
            options["prompt_ids"] = torch.tensor(options["prompt_ids"])
        with torch.no_grad():
            out = self.model.generate(torch.from_numpy(np.stack(features)), **options)
        end = self.model.generation_config.eos_token_id
        return [[token for token in row if token != end] for row in out.tolist()]


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: Any) -> Any:
    """pairs(is_multilingual) -> Pair"""
    made: dict[bool, Pair] = {}

    def make(is_multilingual: bool = True) -> Pair:
        if is_multilingual not in made:
            folder = tmp_path_factory.mktemp("whisper")
            checkpoint = tiny_whisper.save(folder / "checkpoint", 3, is_multilingual=is_multilingual)
            s2s_export.export(checkpoint, folder / "bundle")
            model = transformers.WhisperForConditionalGeneration.from_pretrained(
                checkpoint, attn_implementation="eager"
            ).eval()
            session = s2s_export.load(folder / "bundle", threads=1)
            made[is_multilingual] = Pair(model, session, checkpoint, folder / "bundle")
        return made[is_multilingual]

    return make
