"""Shared by the contestants that decode with transformers' generate(). torch is imported inside functions."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..work import NEUTRAL, Ids
from . import Absent, Job, Marks, until_end, without_prompt


def load_model(job: Job) -> Any:
    """The transformers model with its fastest attention, in fp32, or in fp16 on a GPU. Raises Absent."""
    try:
        import torch
        import transformers
    except ImportError as error:
        raise Absent(f"torch and transformers are needed ({error}); pip install 's2s-export[export]'") from error
    on_gpu = job.options.get("device") == "cuda"
    if on_gpu and not torch.cuda.is_available():
        raise Absent(f"torch {torch.__version__} finds no GPU; install a build of torch for CUDA")
    torch.set_num_threads(job.threads)
    transformers.logging.set_verbosity_error()
    try:
        model = transformers.AutoModelForSeq2SeqLM.from_pretrained(job.need_checkpoint(), local_files_only=True)
    except (ValueError, OSError, ImportError) as error:
        raise Absent(f"transformers can't load this checkpoint ({_first_line(error)})") from error
    return (model.half().to("cuda") if on_gpu else model.float()).eval()


class Generate:
    """Batched decoding with `model.generate`.

    Hooks are set on the instance: `forward` of the model marks a step, `forward` of its encoder is timed.
    """

    def __init__(self, model: Any, versions: dict[str, str]) -> None:
        self.versions = versions
        self.marks = Marks()
        self.model = model
        for name, value in NEUTRAL.items():
            if hasattr(model.generation_config, name):
                setattr(model.generation_config, name, value)
        model.generation_config.max_length = None
        self._pad = model.config.pad_token_id
        self._hook()

    def _hook(self) -> None:
        import torch

        marks, encoder, forward = self.marks, self.model.get_encoder(), self.model.forward
        encode = encoder.forward
        wait = torch.cuda.synchronize if self.model.device.type == "cuda" else lambda: None

        def timed_encode(*arguments: Any, **options: Any) -> Any:
            started = time.perf_counter()
            found = encode(*arguments, **options)
            wait()
            marks.encoder(time.perf_counter() - started)
            return found

        def marked_forward(*arguments: Any, **options: Any) -> Any:
            marks.step()
            return forward(*arguments, **options)

        # generate() reads the signature to find out which arguments the model takes.
        for timed, original in ((timed_encode, encode), (marked_forward, forward)):
            timed.__wrapped__ = original  # type: ignore[attr-defined]
        encoder.forward, self.model.forward = timed_encode, marked_forward

    def decode(self, sources: Sequence[Ids], num_beams: int, new_tokens: int) -> list[Ids]:
        rows = self._generate(sources, num_beams=num_beams, min_new_tokens=new_tokens, max_new_tokens=new_tokens)
        n_prompt = len(rows[0]) - new_tokens
        return [without_prompt(row, n_prompt, new_tokens) for row in rows]

    def translate(
        self, sources: Sequence[Ids], num_beams: int, max_new_tokens: int, setting: dict[str, Any]
    ) -> list[Ids]:
        found: list[Ids] = [[] for _ in sources]
        end = self.model.generation_config.eos_token_id
        ends = set(end if isinstance(end, list) else [end])
        for indices in longest_first([len(source) for source in sources], setting["batch_size"]):
            rows = self._generate([sources[i] for i in indices], num_beams=num_beams, max_new_tokens=max_new_tokens)
            for i, row in zip(indices, rows, strict=True):
                found[i] = until_end(row, 1, ends)
        return found

    def _generate(self, sources: Sequence[Ids], **options: Any) -> list[list[int]]:
        import torch

        longest = max(map(len, sources))
        ids = torch.full((len(sources), longest), self._pad or 0)
        mask = torch.zeros_like(ids)
        for row, source in enumerate(sources):
            ids[row, : len(source)] = torch.tensor(source)
            mask[row, : len(source)] = 1
        with torch.inference_mode():
            given = {"input_ids": ids.to(self.model.device), "attention_mask": mask.to(self.model.device)}
            rows: list[list[int]] = self.model.generate(**given, **options).tolist()
        return rows


def longest_first(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def versions(*packages: str) -> dict[str, str]:
    import importlib.metadata

    return {package: importlib.metadata.version(package) for package in packages}


def settings(cores: int) -> list[dict[str, Any]]:
    return [{"threads": cores, "batch_size": size} for size in (8, 32)]


def readable(checkpoint: Path, copy: Path) -> Path:
    """A folder of links, with a config.json that also has the older name of `dtype` for its older transformers."""
    copy.mkdir()
    for file in checkpoint.iterdir():
        if file.name != "config.json":
            (copy / file.name).symlink_to(file.resolve())
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    config.setdefault("torch_dtype", config.get("dtype", "float32"))
    (copy / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return copy


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
