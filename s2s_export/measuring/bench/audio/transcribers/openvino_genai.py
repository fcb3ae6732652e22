"""OpenVINO GenAI. It reads folders that optimum-intel exported (--peer-model, once for each precision):

    optimum-cli export openvino -m CHECKPOINT --task automatic-speech-recognition-with-past --weight-format int8 DIR

A folder with int8 weights runs as OpenVINO chooses (bf16 arithmetic where the processor has it), another in fp32.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import MODEL, Absent, Bundle, Choice, Entry, Job, Setting, per_folder

NAME = "openvino-genai"
BATCHED = False
GRAPH = "openvino_decoder_model.xml"
STORED = {"int4": ("u4", "i4"), "int8": ("u8", "i8")}  # types of weights in a graph
WEIGHTS = {"fp32": 4.0, "int8": 1.0, "int4": 0.5}


def entries(bundle: Bundle, choice: Choice, folders: Sequence[str]) -> list[Entry]:
    found = []
    for options in per_folder(folders):
        precision = _precision(options.get(MODEL))
        reason = choice.reason_if_for_cpus
        if not options:
            reason = reason or f"needs a folder that optimum-intel exported: --peer-model {NAME}=DIR"
        found.append(Entry(NAME, f"OpenVINO GenAI {precision}", precision, WEIGHTS[precision], options, reason))
    return found


def _precision(folder: str | None) -> str:
    """That of the weights, which the graph names."""
    try:
        graph = "" if folder is None else (Path(folder) / GRAPH).read_text(encoding="utf-8")
    except OSError:
        return "fp32"
    return next((name for name, types in STORED.items() if any(f'element_type="{t}"' in graph for t in types)), "fp32")


def open(job: Job, folder: str) -> OpenVino:
    try:
        import openvino_genai
    except ImportError as error:
        raise Absent(
            f"openvino_genai can't be imported ({error}); pip install openvino-genai, or --peer-python {NAME}=PYTHON"
        ) from error
    model = job.options[MODEL]
    given: dict[str, Any] = {"INFERENCE_NUM_THREADS": job.threads}
    if _precision(model) == "fp32":
        given["INFERENCE_PRECISION_HINT"] = "f32"
    try:
        pipeline = openvino_genai.WhisperPipeline(model, "CPU", **given)
    except RuntimeError as error:
        raise Absent(f"can't open {model} ({str(error).strip().splitlines()[-1][:200]})") from error
    return OpenVino(pipeline, openvino_genai.__version__)


class OpenVino:
    def __init__(self, pipeline: Any, version: str) -> None:
        self.versions = {"openvino-genai": version}
        self._pipeline = pipeline

    def transcribe(self, samples: Any, setting: Setting) -> str:
        config = self._pipeline.get_generation_config()
        config.num_beams, config.return_timestamps = setting.num_beams, True
        if config.is_multilingual:
            config.task = "transcribe"
            if setting.language is not None:
                config.language = f"<|{setting.language}|>"
        return str(self._pipeline.generate(samples.tolist(), config))
