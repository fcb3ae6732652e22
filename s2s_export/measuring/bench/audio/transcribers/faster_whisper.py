"""faster-whisper, in float32 and int8. It reads a CTranslate2 folder: its own (--peer-model), the checkpoint where that
is one, or what CTranslate2's converter makes of the checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import Absent, Bundle, Choice, Entry, Job, Setting, model_of, per_folder

NAME = "faster-whisper"
BATCHED = True
PRECISIONS = {"fp32": ("float32", 4.0), "int8": ("int8", 1.0)}
MODEL_FILE = "model.bin"
COPIED = ("tokenizer.json", "preprocessor_config.json")


def entries(bundle: Bundle, choice: Choice, folders: Sequence[str]) -> list[Entry]:
    return [
        Entry(NAME, f"faster-whisper {theirs}", ours, weight_bytes, {**options, "compute_type": theirs},
              choice.reason_if_for_cpus)
        for options in per_folder(folders)[:1]
        for ours, (theirs, weight_bytes) in PRECISIONS.items()
    ]  # fmt: skip


def prepare(job: Job, folder: str) -> None:
    source = Path(model_of(job))
    if (source / MODEL_FILE).is_file():
        return
    try:
        from ctranslate2.converters import TransformersConverter
    except ImportError as error:
        raise Absent(
            f"ctranslate2 can't be imported ({error}) to convert the checkpoint; give a folder that is converted: "
            f"--peer-model {NAME}=DIR"
        ) from error
    copied = [name for name in COPIED if (source / name).is_file()]
    try:
        TransformersConverter(str(source), copy_files=copied).convert(str(Path(folder) / NAME))
    except Exception as error:  # whatever its converter meets
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise Absent(
            f"its converter can't take this checkpoint ({reason}); give a folder that is converted: "
            f"--peer-model {NAME}=DIR"
        ) from error


def open(job: Job, folder: str) -> FasterWhisper:
    try:
        import faster_whisper
    except ImportError as error:
        raise Absent(
            f"faster_whisper can't be imported ({error}); pip install faster-whisper, or --peer-python {NAME}=PYTHON"
        ) from error
    made = Path(folder) / NAME
    source = str(made if made.is_dir() else model_of(job))
    model = faster_whisper.WhisperModel(
        source, device="cpu", compute_type=job.options["compute_type"], cpu_threads=job.threads
    )
    return FasterWhisper(faster_whisper, model)


class FasterWhisper:
    def __init__(self, library: Any, model: Any) -> None:
        import ctranslate2

        self.versions = {
            "faster-whisper": library.__version__, "ctranslate2": ctranslate2.__version__, "vad": "Silero",
        }  # fmt: skip
        self._model = model
        self._batched = library.BatchedInferencePipeline(model=model)

    def transcribe(self, samples: Any, setting: Setting) -> str:
        given: dict[str, Any] = {
            "language": setting.language, "beam_size": setting.num_beams, "temperature": 0.0,
            "compression_ratio_threshold": None, "log_prob_threshold": None, "no_speech_threshold": None,
            "condition_on_previous_text": False,
        }  # fmt: skip
        if setting.batched:
            segments, _ = self._batched.transcribe(samples, batch_size=setting.batch_size, **given)
        else:
            segments, _ = self._model.transcribe(samples, **given)
        return "".join(segment.text for segment in segments)
