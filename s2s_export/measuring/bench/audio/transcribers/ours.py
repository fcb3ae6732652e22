"""This project: the portable graphs and every built target, on every backend that works here."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from ...contestants import ours
from . import OURS, Bundle, Choice, Entry, Job, Setting

NAME = OURS
BATCHED = True
WITHOUT: dict[str, Any] = {
    "temperature": (0.0,),
    "compression_ratio_threshold": None,
    "logprob_threshold": None,
    "no_speech_threshold": None,
}


def entries(bundle: Bundle, choice: Choice, folders: Sequence[str]) -> list[Entry]:
    return [entry for entry in ours.entries(bundle, choice) if "shortlist" not in entry.options]


def open(job: Job, folder: str) -> Ours:
    return Ours(ours.open(dataclasses.replace(job), folder))


class Ours:
    def __init__(self, opened: Any) -> None:
        from .....runtime.speech import activity

        self._session = opened.session
        self.versions = {**opened.versions, "vad": "Silero" if activity.silero() else "loudness"}

    def transcribe(self, samples: Any, setting: Setting) -> str:
        given: dict[str, Any] = {**WITHOUT, "num_beams": setting.num_beams}
        if setting.language is not None and self._session.speech.is_multilingual:
            given["language"] = setting.language
        if setting.batched:
            given |= {"batched": True, "batch_size": setting.batch_size, "timestamps": "none"}
        return str(self._session.transcribe(samples, **given).finish().text)
