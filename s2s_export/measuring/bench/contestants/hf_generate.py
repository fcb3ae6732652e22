"""transformers' generate() with PyTorch in fp32, on a GPU in fp16: the reference for tokens."""

from __future__ import annotations

from typing import Any

from ....bundle import Bundle
from . import Choice, Entry, Job
from ._generate import Generate, load_model, settings, versions

NAME = "transformers"

__all__ = ["NAME", "entries", "open", "settings"]


def entries(bundle: Bundle, choice: Choice) -> list[Entry]:
    if choice.device == "cuda":
        return [Entry(NAME, "transformers generate fp16", "fp16", 2.0, {"device": "cuda"})]
    return [Entry(NAME, "transformers generate", "fp32", 4.0)]


def open(job: Job, folder: str) -> Any:
    return Generate(load_model(job), versions("torch", "transformers"))
