"""The checkpoint of a reference model: a folder in the layout of Hugging Face's checkpoints.

    config.json                  "model_type": "s2s-lstm", "s2s-gru", "s2s-attention" or "s2s-transformer", and sizes
    generation_config.json       decoder_start, bos, eos and pad token ids, max_length, num_beams
    model.safetensors            the weights, float32, with the names of the model's state dict; a tied weight is stored
                                 once, as target_embedding.weight
    tokenizer.model              sentencepiece; its ids are the model's, and a source ends with eos
    training_state.safetensors   what `s2s train --resume` needs: the latest weights and the optimizer's moments
    training_state.json          step, options, history

A folder is written as a hidden sibling and exchanged for the one that was there (replacing.py): a run killed at any
moment leaves the old or the new one whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from .. import replacing
from ..errors import CheckpointError, S2SError
from . import build
from .config import ReferenceConfig
from .interface import EncoderDecoder

TIED = ("source_embedding.weight", "output.weight")  # the other names of target_embedding.weight when tied


@dataclass
class Checkpoint:
    """A checkpoint in memory. tokenizer: the bytes of tokenizer.model. tensors, training: what resuming needs."""

    config: ReferenceConfig
    weights: dict[str, Tensor]
    tokenizer: bytes | None = None
    generation: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)

    def model(self) -> EncoderDecoder:
        """The model with its weights, in evaluation mode."""
        model = build(self.config)
        load_weights(model, self.weights)
        return model.eval()


def weights_of(model: EncoderDecoder) -> dict[str, Tensor]:
    """A copy of the model's weights on the CPU, with tied weights once."""
    skipped = TIED if model.config.tie_embeddings else ()
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items() if name not in skipped}


def load_weights(model: EncoderDecoder, weights: Mapping[str, Tensor]) -> None:
    """Copy weights into the model. Raises CheckpointError for a missing, unknown, misshapen or non-finite one."""
    state = model.state_dict()
    if model.config.tie_embeddings:
        state = {name: value for name, value in state.items() if name not in TIED}
    problems = [f"{name} is missing" for name in state if name not in weights]
    problems += [f"{name} is not a weight of this model" for name in weights if name not in state]
    for name, value in weights.items():
        if name in state and value.shape != state[name].shape:
            problems.append(f"{name} has shape {list(value.shape)}, expected {list(state[name].shape)}")
        elif name in state and not bool(torch.isfinite(value).all()):
            problems.append(f"{name} has values that are not finite")
    if problems:
        shown = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise CheckpointError(
            f"the weights do not fit the {model.config.model} model of config.json: {shown}; restore the checkpoint"
        )
    with torch.no_grad():
        for name, value in state.items():
            value.copy_(weights[name])


def save_checkpoint(folder: str | os.PathLike[str], checkpoint: Checkpoint) -> None:
    """Write the folder, replacing an existing one in one step. Raises CheckpointError."""
    folder = Path(folder)
    generation = {
        "decoder_start_token_id": checkpoint.config.bos_token_id,
        "bos_token_id": checkpoint.config.bos_token_id,
        "eos_token_id": checkpoint.config.eos_token_id,
        "pad_token_id": checkpoint.config.pad_token_id,
        "max_length": checkpoint.config.max_target_length,
        "num_beams": 1,
        **checkpoint.generation,
    }
    try:
        with replacing.folder(folder, replace=True) as work:
            _write_json(work / "config.json", checkpoint.config.to_dict())
            _write_json(work / "generation_config.json", generation)
            _write_tensors(work / "model.safetensors", checkpoint.weights)
            if checkpoint.tokenizer is not None:
                (work / "tokenizer.model").write_bytes(checkpoint.tokenizer)
            if checkpoint.training:
                _write_tensors(work / "training_state.safetensors", checkpoint.tensors)
                _write_json(work / "training_state.json", checkpoint.training)
    except OSError as error:
        raise CheckpointError(
            f"can't write {folder}: {error.strerror or error}; give a folder that can be written"
        ) from error


def load_checkpoint(folder: str | os.PathLike[str], expected: str | None = None, resume: bool = False) -> Checkpoint:
    """Read a folder. expected: the model that it must hold. resume: read the training state as well.

    Raises CheckpointError when it is missing, damaged or of another model.
    """
    folder = Path(folder)
    with suppress(OSError):  # a folder that can't be written may still be read
        replacing.put_back(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder, expected a checkpoint that `s2s train` wrote; check the path")
    try:
        config = ReferenceConfig.from_dict(_read_json(folder / "config.json"))
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    if expected is not None and config.model != expected:
        raise CheckpointError(
            f"{folder} holds a model of type '{config.model}', expected '{expected}'; "
            f"ask for --model {config.model}, or give another folder"
        )
    checkpoint = Checkpoint(config, _read_tensors(folder / "model.safetensors"))
    tokenizer = folder / "tokenizer.model"
    checkpoint.tokenizer = tokenizer.read_bytes() if tokenizer.exists() else None
    if (folder / "generation_config.json").exists():
        checkpoint.generation = _read_json(folder / "generation_config.json")
    if resume:
        checkpoint.training = _read_json(folder / "training_state.json")
        checkpoint.tensors = _read_tensors(folder / "training_state.safetensors")
    try:
        checkpoint.model()
    except S2SError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    return checkpoint


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    safetensors.torch.save_file({name: value.contiguous() for name, value in tensors.items()}, path, {"format": "pt"})
    path.chmod(0o644)  # safetensors makes files that only their owner can read


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path.name} is missing, expected the files that `s2s train` writes; restore it"
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path.name} can't be read as JSON: {error}; restore it, or train again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path.name} does not hold a JSON object; restore it, or train again")
    return value


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing, expected the files that `s2s train` writes; restore it") from None
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); restore it, or train again") from error
