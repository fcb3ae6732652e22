"""OpenVINO through optimum-intel: its own export, run with transformers' generate(); in fp32, and with int8 weights.

It needs an older version of transformers than a checkpoint may need, so that it is often installed in an environment of
its own: --peer-python openvino=/path/to/python. With int8 weights the arithmetic is fp32's: OpenVINO multiplies whole
numbers only in models whose activations were calibrated, which optimum-intel does not do for such models.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ....bundle import Bundle
from . import Absent, Choice, Entry, Job
from ._generate import Generate, readable, settings, versions

NAME = "openvino"
EXPORTED = "openvino"

__all__ = ["NAME", "entries", "open", "prepare", "settings"]


def entries(bundle: Bundle, choice: Choice) -> list[Entry]:
    reason = choice.reason_if_for_cpus
    return [
        Entry(NAME, "OpenVINO fp32", "fp32", 4.0, {"in_8_bits": False}, reason=reason),
        Entry(NAME, "OpenVINO int8 weights", "int8", 1.0, {"in_8_bits": True}, reason=reason),
    ]


def prepare(job: Job, folder: str) -> None:
    checkpoint = readable(Path(job.need_checkpoint()), Path(folder) / "checkpoint")
    model = _class().from_pretrained(
        checkpoint, export=True, compile=False, load_in_8bit=job.options["in_8_bits"], local_files_only=True
    )
    model.save_pretrained(Path(folder) / EXPORTED)


def _class() -> Any:
    try:
        from optimum.intel import OVModelForSeq2SeqLM
    except ImportError as error:
        raise Absent(
            f"optimum-intel can't be imported ({error}); pip install 'optimum-intel[openvino]', in its own environment "
            "and with --peer-python openvino=PYTHON where its transformers differs"
        ) from error
    return OVModelForSeq2SeqLM


def open(job: Job, folder: str) -> Any:
    model_class = _class()
    import torch
    import transformers

    torch.set_num_threads(job.threads)
    transformers.logging.set_verbosity_error()
    config = {
        "INFERENCE_NUM_THREADS": str(job.threads), "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32",
    }  # fmt: skip
    model = model_class.from_pretrained(Path(folder) / EXPORTED, ov_config=config, local_files_only=True)
    return Generate(model, versions("optimum-intel", "openvino", "transformers"))
