"""The checkpoint of a reference model: a folder in the layout of Hugging Face's checkpoints.

    config.json                  "model_type": "s2s-lstm", "s2s-gru", "s2s-attention" or "s2s-transformer", and sizes
    generation_config.json       decoder_start, bos, eos and pad token ids, max_length, num_beams
    model.safetensors            the weights, float32, with the names of the model's state dict; a tied weight is stored
                                 once, as target_embedding.weight
    tokenizer.model              sentencepiece; its ids are the model's, and a source ends with eos
    training_state.safetensors   what `s2s train --resume` needs: the latest weights and the optimizer's moments
    training_state.json          step, options, history

A folder is written under a temporary name beside its destination and then renamed, so that it is complete or absent. To
replace a folder, the old one is renamed first; if the process dies between the two renames, the next load or save
restores it.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

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
    temporary = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _put_back(folder)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".new", dir=folder.parent))
        temporary.chmod(0o755)
        _write_json(temporary / "config.json", checkpoint.config.to_dict())
        _write_json(temporary / "generation_config.json", generation)
        _write_tensors(temporary / "model.safetensors", checkpoint.weights)
        if checkpoint.tokenizer is not None:
            (temporary / "tokenizer.model").write_bytes(checkpoint.tokenizer)
        if checkpoint.training:
            _write_tensors(temporary / "training_state.safetensors", checkpoint.tensors)
            _write_json(temporary / "training_state.json", checkpoint.training)
        _replace(folder, temporary)
    except OSError as error:
        raise CheckpointError(
            f"can't write {folder}: {error.strerror or error}; give a folder that can be written"
        ) from error
    finally:
        if temporary is not None and temporary.exists():
            shutil.rmtree(temporary, ignore_errors=True)


def load_checkpoint(folder: str | os.PathLike[str], expected: str | None = None, resume: bool = False) -> Checkpoint:
    """Read a folder. expected: the model that it must hold. resume: read the training state as well.

    Raises CheckpointError when it is missing, damaged or of another model.
    """
    folder = Path(folder)
    _put_back(folder)
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


def _aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.previous")


def _replace(folder: Path, temporary: Path) -> None:
    if folder.exists():
        os.rename(folder, _aside(folder))
    os.rename(temporary, folder)
    shutil.rmtree(_aside(folder), ignore_errors=True)


def _put_back(folder: Path) -> None:
    """Undo a replacement that was interrupted between its two renames, or finish one interrupted after them."""
    aside = _aside(folder)
    if aside.exists():
        if folder.exists():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            os.rename(aside, folder)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    _flush(path)


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    safetensors.torch.save_file({name: value.contiguous() for name, value in tensors.items()}, path, {"format": "pt"})
    path.chmod(0o644)  # safetensors makes files that only their owner can read
    _flush(path)


def _flush(path: Path) -> None:
    """Write to the disk before the rename: else, after a power cut, the new folder may hold empty files."""
    with suppress(OSError), path.open("rb") as file:
        os.fsync(file.fileno())


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
