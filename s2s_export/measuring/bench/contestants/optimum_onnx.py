"""optimum-onnx: its own export, run by ONNX Runtime with transformers' generate(), in fp32.

It needs an older version of transformers than a checkpoint may need, so that it is often installed in an environment of
its own: --peer-python optimum=/path/to/python.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ....bundle import Bundle
from . import Absent, Choice, Entry, Job
from ._generate import Generate, readable, settings, versions

NAME = "optimum"
EXPORTED = "optimum"

__all__ = ["NAME", "entries", "open", "prepare", "settings"]


def entries(bundle: Bundle, choice: Choice) -> list[Entry]:
    return [Entry(NAME, "optimum-onnx", "fp32", 4.0, reason=choice.reason_if_for_cpus)]


def prepare(job: Job, folder: str) -> None:
    """Export with its defaults: one decoder graph with a cache."""
    checkpoint = readable(Path(job.need_checkpoint()), Path(folder) / "checkpoint")
    model = _class().from_pretrained(checkpoint, export=True)
    model.save_pretrained(Path(folder) / EXPORTED)


def _class() -> Any:
    try:
        from optimum.onnxruntime import ORTModelForSeq2SeqLM
    except ImportError as error:
        raise Absent(f"optimum-onnx can't be imported ({error}); pip install optimum-onnx, in its own environment and "
                     "with --peer-python optimum=PYTHON where its transformers differs") from error  # fmt: skip
    return ORTModelForSeq2SeqLM


def open(job: Job, folder: str) -> Any:
    model_class = _class()
    import onnxruntime
    import torch
    import transformers

    torch.set_num_threads(job.threads)
    transformers.logging.set_verbosity_error()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job.threads
    model = model_class.from_pretrained(Path(folder) / EXPORTED, session_options=options)
    return Generate(model, versions("optimum-onnx", "onnxruntime", "transformers"))
