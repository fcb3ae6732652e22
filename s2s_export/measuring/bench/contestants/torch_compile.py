"""generate() with the model compiled by torch.compile, fp32, on a GPU in fp16.

Shapes are symbolic, because the cache has another length at every step, and compiling for each would take too long. The
measurement shows whether compilation helps.
"""

from __future__ import annotations

import shutil
from typing import Any

from ....bundle import Bundle
from . import Absent, Choice, Entry, Job
from ._generate import Generate, load_model, settings, versions

NAME = "torch-compile"
COMPILERS = ("c++", "g++", "clang++")

__all__ = ["NAME", "entries", "open", "settings"]


def entries(bundle: Bundle, choice: Choice) -> list[Entry]:
    reason = None
    if not any(shutil.which(name) for name in COMPILERS):
        reason = f"torch.compile needs a C++ compiler; found none of {', '.join(COMPILERS)}"
    if choice.device == "cuda":
        return [Entry(NAME, "torch.compile generate fp16", "fp16", 2.0, {"device": "cuda"}, reason=reason)]
    return [Entry(NAME, "torch.compile generate", "fp32", 4.0, reason=reason)]


def open(job: Job, folder: str) -> Any:
    model = load_model(job)
    import torch

    if not hasattr(torch, "compile"):
        raise Absent(f"torch {torch.__version__} has no torch.compile; upgrade torch")
    decoder = model.get_decoder()
    decoder.forward = torch.compile(decoder.forward, dynamic=True)
    return Generate(model, versions("torch", "transformers"))
