"""Reading a checkpoint: which family it belongs to, and its PyTorch model with weights that are known to be whole.

Runs at export and for comparison only; transformers loads its own formats, a reference model its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import CheckpointError, MissingExtra, UnsupportedModel
from ..schema import Unreadable, read_json, shown
from . import adapters, ctranslate2, families, packed

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".index.json", ".npz")
MOST_LAYERS = 1000  # ten times those of the deepest models
COMPILED = "_orig_mod."  # what torch.compile puts before every name
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+|[\w.-]+")


@dataclass(frozen=True)
class Checkpoint:
    """A folder in Hugging Face's format, or one that `s2s train` wrote. `config` is config.json as it stands.

    adapter: the folder of a LoRA adapter that is merged into the model, or None.
    notices: sentences about what was found while loading and changes no result, for the caller to show. keeps: what
    must live as long as this, the temporary folder of a model that was converted.
    """

    path: Path
    name: str
    config: dict[str, Any]
    family: ModuleType
    adapter: Path | None = None
    notices: list[str] = field(default_factory=list)
    keeps: Any = None

    @property
    def model_type(self) -> str:
        return str(self.config["model_type"])

    def load_model(self) -> Any:
        """The PyTorch model in fp32, in evaluation mode. Raises CheckpointError for weights that are not whole."""
        if loader := getattr(self.family, "load_model", None):
            model = loader(self.path, self.config)
        else:
            with adapters.without_adapter(self.path) as base:
                auto_class = getattr(self.family, "AUTO_CLASS", "AutoModelForSeq2SeqLM")
                may_lack = getattr(self.family, "UNUSED_WEIGHTS", ())
                model = load_transformers_model(base, self.config, self.notices, auto_class, may_lack)
        if self.adapter is not None:
            model = adapters.merge(model, self.adapter)
        _check_finite(self.path, model)
        self.notices.extend(notice for notice in getattr(model, "notices", ()) if notice not in self.notices)
        return model

    def sha256(self) -> str:
        """One hash over config.json and the weight files, an adapter's included."""
        digest = hashlib.sha256()
        folders = [self.path] if self.adapter in (None, self.path) else [self.path, self.adapter]
        for path in [path for folder in folders for path in sorted(folder.iterdir())]:
            named = ("config.json", adapters.CONFIG, self.config.get("file"))  # the last is another toolkit's model
            if path.name in named or path.name.endswith(WEIGHT_SUFFIXES):
                digest.update(path.name.encode())
                with path.open("rb") as file:
                    while chunk := file.read(1 << 20):
                        digest.update(chunk)
        return digest.hexdigest()


class _TemporaryFolder:
    """A folder that is removed with the last reference to this."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="s2s-checkpoint-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Read config.json and find the family; no weights yet. What can't be exported is refused before any writing."""
    if not _may_be_on_the_hub(path):
        _locate(path)  # a wrong path is told before torch is imported, which takes seconds
    require_export_packages()
    given = _locate(path)
    folder, kept = given, None
    if packed.is_packed(given):
        kept = _TemporaryFolder()
        packed.lay_out(given, kept.path)
        folder = kept.path
    if ctranslate2.is_converted(folder):
        kept = _TemporaryFolder()
        ctranslate2.convert(folder, kept.path)
        folder = kept.path
    return _open(folder) if kept is None else dataclasses.replace(_open(folder), name=given.name, keeps=kept)


def _open(given: Path) -> Checkpoint:
    base = adapters.base_of(given)
    if base is not None:
        adapters.require_peft()
    folder = given if base is None else _locate(base)
    file = folder / "config.json"
    if not _names_a_type(file) and (recognised := families.recognise(folder)) is not None:
        return Checkpoint(folder, given.name, recognised, families.find(recognised["model_type"]))
    if not file.is_file():
        raise CheckpointError(f"{folder}: no config.json in it; expected a checkpoint folder in Hugging Face's format")
    config = _read_object(file)
    if os.path.lexists(generation := folder / "generation_config.json"):
        _read_object(generation)  # transformers takes defaults in silence where it can't read it
    _refuse_countless_layers(file, config)
    family = families.find(config.get("model_type"))
    if not getattr(family, "READS_CLASSIFIERS", False):
        _refuse_classifier(folder, config)
    return Checkpoint(folder, given.name, config, family, None if base is None else given)


def _names_a_type(file: Path) -> bool:
    """Whether a config.json is Hugging Face's; other toolkits write files of this name too."""
    return file.is_file() and "model_type" in _read_object(file)


def _read_object(file: Path) -> dict[str, Any]:
    try:
        found = read_json(file)
    except Unreadable as error:
        raise CheckpointError(f"{file}: not readable as JSON ({error}); restore the checkpoint") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{file}: holds no JSON object; restore the checkpoint")
    return found


def _refuse_countless_layers(file: Path, config: dict[str, Any]) -> None:
    """PyTorch would make them one by one, for days, before anything is compared with the weights."""
    for name, value in config.items():
        if name.endswith("layers") and isinstance(value, int) and value > MOST_LAYERS:
            raise CheckpointError(
                f"{file}: {name} is {shown(value)}, expected at most {MOST_LAYERS}; restore the checkpoint"
            )


def _refuse_classifier(folder: Path, config: dict[str, Any]) -> None:
    """Its family's name is the same, and transformers would give it a language-model head of random weights."""
    for name in config.get("architectures") or ():
        if str(name).endswith(("Classification", "QuestionAnswering")):
            raise UnsupportedModel(
                f"{folder}: config.json says that it is a {name}, which generates no text; expected a model with a "
                "language-model head, such as a ...ForConditionalGeneration"
            )


def require_export_packages() -> None:
    for package in ("torch", "transformers", "onnx"):
        try:
            __import__(package)
        except ImportError as error:
            raise MissingExtra(package, "export", "reading a checkpoint") from error


def _may_be_on_the_hub(path: str | Path) -> bool:
    text = str(path)
    return not Path(path).exists() and text.count("/") == 1 and HUB_ID.fullmatch(text) is not None


def _locate(path: str | Path) -> Path:
    folder = Path(path)
    if folder.is_dir() or packed.is_packed(folder):
        return folder
    if folder.exists():
        raise CheckpointError(
            f"{folder}: is a file; expected a checkpoint folder, or a file of another toolkit "
            f"({', '.join(packed.SUFFIXES)})"
        )
    text = str(path)
    if not _may_be_on_the_hub(path):
        raise CheckpointError(f"{folder}: no such folder; expected a checkpoint folder or a Hugging Face hub id")
    try:
        from huggingface_hub import snapshot_download

        patterns = ["*.json", "*.safetensors", "*.bin", "*.spm", "*.model", "*.txt"]
        return Path(snapshot_download(text, allow_patterns=patterns))
    except Exception as error:
        raise CheckpointError(
            f"{text}: neither a folder here nor a hub id that could be downloaded ({first_line(error)})"
        ) from error


def load_transformers_model(
    path: Path,
    config: dict[str, Any],
    notices: list[str] | None = None,
    auto_class: str = "AutoModelForSeq2SeqLM",
    may_lack: tuple[str, ...] = (),
) -> Any:
    """A model of `auto_class` in fp32 with eager attention; missing or misshapen weights are errors, not warnings.

    Names that begin with `_orig_mod.`, as torch.compile leaves them behind, are read without it. notices: gets a
    sentence about weights that the model does not use. may_lack: beginnings of names of weights that may be missing, as
    nothing that is exported reads them.
    """
    import torch
    import transformers

    _check_weight_files(path)
    options: dict[str, Any] = {"attn_implementation": "eager", "output_loading_info": True, "local_files_only": True}
    options["ignore_mismatched_sizes"] = True  # reported below, with the tensors' names
    major, minor = (int(part) for part in transformers.__version__.split(".")[:2])
    options["dtype" if (major, minor) >= (4, 56) else "torch_dtype"] = torch.float32
    load = getattr(transformers, auto_class).from_pretrained
    with quiet_transformers():
        try:
            model, info = load(path, **options)
        except Exception as error:
            nested = _nested_options(path)
            hint = f"; generation_config.json gives an object for {_some(nested)}, remove it" if nested else ""
            raise CheckpointError(f"{path}: transformers can't load it ({first_line(error)}){hint}") from error
        if any(name.startswith(COMPILED) for name in info["unexpected_keys"]):
            options["key_mapping"] = {f"^{re.escape(COMPILED)}": ""}
            model, info = load(path, **options)
    if missing := sorted(name for name in info["missing_keys"] if not name.startswith(may_lack)):
        raise CheckpointError(
            f"{path}: the weights lack {_some(missing)}, which config.json asks for; restore the checkpoint"
        )
    if mismatched := info.get("mismatched_keys"):
        names = sorted(str(entry[0] if isinstance(entry, tuple) else entry) for entry in mismatched)
        raise CheckpointError(f"{path}: config.json and the weights disagree about the shape of {_some(names)}")
    if (unused := sorted(info["unexpected_keys"])) and notices is not None:
        notices.append(f"the model does not use {len(unused)} of the checkpoint's weights: {_some(unused)}")
    return model.eval()


def _nested_options(path: Path) -> list[str]:
    """Names of generation_config.json whose values are objects, which transformers expects for a few options only."""
    try:
        options = json.loads((path / "generation_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return (
        sorted(name for name, value in options.items() if isinstance(value, dict)) if isinstance(options, dict) else []
    )


def _check_weight_files(path: Path) -> None:
    files = [p for p in path.iterdir() if p.name.endswith((".safetensors", ".bin")) and p.is_file()]
    if not files:
        raise CheckpointError(f"{path}: no weights in it; expected model.safetensors (or shards with an index)")
    if any(p.stat().st_size == 0 for p in files):
        raise CheckpointError(f"{path}: a weight file is empty; restore the checkpoint")


def _check_finite(path: Path, model: Any) -> None:
    import torch

    for name, tensor in model.state_dict().items():
        # The extremes carry NaN and infinity, and unlike `isfinite` need no copy of a large embedding.
        if tensor.is_floating_point() and tensor.numel() and not torch.isfinite(torch.stack(tensor.aminmax())).all():
            raise CheckpointError(f"{path}: the weight '{name}' holds NaN or infinity; restore the checkpoint")


def _some(names: list[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """transformers reports to the log what we report ourselves; its progress bars would interleave with ours."""
    import warnings

    from transformers.utils import logging

    before = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()
