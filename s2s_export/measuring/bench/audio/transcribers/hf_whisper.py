"""transformers' Whisper in fp32, with its own features and `generate()`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from . import Absent, Bundle, Choice, Entry, Job, Setting, model_of, per_folder

NAME = "transformers"
BATCHED = False
WINDOW = 480_000  # samples


def entries(bundle: Bundle, choice: Choice, folders: Sequence[str]) -> list[Entry]:
    options = per_folder(folders)[0]
    return [Entry(NAME, "transformers generate", "fp32", 4.0, options, choice.reason_if_for_cpus)]


def open(job: Job, folder: str) -> Transformers:
    try:
        import torch
        import transformers
    except ImportError as error:
        raise Absent(f"torch and transformers are needed ({error}); pip install 's2s-export[export]'") from error
    torch.set_num_threads(job.threads)
    transformers.logging.set_verbosity_error()
    source = model_of(job)
    try:
        model = transformers.WhisperForConditionalGeneration.from_pretrained(
            source, local_files_only=True, dtype=torch.float32
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, local_files_only=True)
    except (ValueError, OSError, ImportError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise Absent(f"transformers can't load {source} ({reason}); --peer-model {NAME}=DIR") from error
    features = transformers.WhisperFeatureExtractor(feature_size=model.config.num_mel_bins)
    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    return Transformers(model.eval(), features, tokenizer, versions)


class Transformers:
    def __init__(self, model: Any, features: Any, tokenizer: Any, versions: dict[str, str]) -> None:
        self.versions = versions
        self._model = model
        self._features = features
        self._tokenizer = tokenizer

    def transcribe(self, samples: Any, setting: Setting) -> str:
        import torch

        is_long = len(samples) > WINDOW
        how = {"truncation": False, "padding": "longest", "return_attention_mask": True} if is_long else {}
        given: dict[str, Any] = {"num_beams": setting.num_beams, "return_timestamps": True}
        if self._model.generation_config.is_multilingual:
            given |= {"language": setting.language, "task": "transcribe"}
        made = self._features([samples], sampling_rate=16000, return_tensors="pt", **how)
        if is_long:
            given["attention_mask"] = made.attention_mask
        with torch.inference_mode():
            tokens = self._model.generate(made.input_features, **given)
        return str(self._tokenizer.decode(tokens[0], skip_special_tokens=True))
