"""LoRA adapters: a folder with adapter_config.json, merged into its base model at export.

The bundle holds the merged weights and knows of no adapter. Merging is peft's own; without peft an adapter is refused,
as a model without it would translate as if it had never been tuned.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, MissingExtra, UnsupportedModel

CONFIG = "adapter_config.json"
PREFIX = "adapter_"  # of the files that peft writes


def base_of(folder: Path) -> str | None:
    """Where the base model of the adapter in `folder` is: the folder itself, a path or a hub id. None: no adapter."""
    file = folder / CONFIG
    if not file.is_file():
        return None
    if (folder / "config.json").is_file() and any(_is_base_weight(path) for path in folder.iterdir()):
        return str(folder)
    try:
        base = json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{file}: not readable as a JSON object ({error}); restore the adapter") from error
    if not isinstance(base, str) or not base:
        raise CheckpointError(
            f"{file}: base_model_name_or_path is {base!r}, expected a folder or a hub id; put the base model's files "
            "into the adapter's folder"
        )
    beside = folder / base
    return str(beside) if beside.is_dir() else base


def require_peft() -> None:
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise MissingExtra("peft", "lora", "merging the adapter that adapter_config.json describes") from error


@contextlib.contextmanager
def without_adapter(folder: Path) -> Iterator[Path]:
    """`folder` without its adapter, which transformers would load on its own where peft is installed."""
    if not (folder / CONFIG).is_file():
        yield folder
        return
    with tempfile.TemporaryDirectory() as temporary:
        for path in folder.iterdir():
            if not path.name.startswith(PREFIX):
                (Path(temporary) / path.name).symlink_to(path.resolve())
        yield Path(temporary)


def merge(model: Any, folder: Path) -> Any:
    """The base `model` with the adapter in `folder` merged into its weights. Raises CheckpointError."""
    import peft
    from peft.utils.save_and_load import load_peft_weights

    try:
        config = peft.PeftConfig.from_pretrained(str(folder))
        if not isinstance(config, peft.LoraConfig):
            raise UnsupportedModel(f"{folder}: the adapter is of type {config.peft_type}; expected LORA, to be merged")
        tuned = peft.get_peft_model(model, config)
        found = peft.set_peft_model_state_dict(tuned, load_peft_weights(str(folder), device="cpu"))
    except UnsupportedModel:
        raise
    except Exception as error:
        words = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{folder}: peft can't load the adapter ({words}); is it this base model's?") from error
    lacking = [name for name in found.missing_keys if "lora_" in name or "modules_to_save" in name]
    for names, what in ((found.unexpected_keys, "has weights that the base model has no place for"),
                        (lacking, "lacks weights that its adapter_config.json asks for")):  # fmt: skip
        if names:
            raise CheckpointError(f"{folder}: the adapter {what}: '{names[0]}' ({len(names)} in all); restore it")
    return tuned.merge_and_unload().eval()


def _is_base_weight(path: Path) -> bool:
    return path.name.endswith((".safetensors", ".bin")) and not path.name.startswith(PREFIX)
