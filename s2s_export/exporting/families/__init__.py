"""One file for each model family: the `model_type`s it reads, and how its modules map to `graphs.structure`.

A family module defines

    MODEL_TYPES   the `model_type` values of config.json that it reads
    describe(model) -> Family   from the loaded model

and, for a model that transformers itself can't load, run or generate with,

    load_model(path, config)    instead of AutoModelForSeq2SeqLM
    Reference(model)            the model seen as the three graphs, see parity.Reference
    generate(model, **options)  instead of the model's own method

    AUTO_CLASS                  the class of transformers that loads it, instead of AutoModelForSeq2SeqLM
    UNUSED_WEIGHTS              beginnings of the names of weights that a checkpoint may lack
    SOURCE_KIND                 what it reads, by the name of a file of runtime/sources/, instead of token ids
    source(model)               what the manifest says of its sources beside kind and pad_token_id
    prepare_sources(path, source)   what the manifest's source has of the checkpoint's other files
    prompting(model)            the manifest's `prompt_replaces_start`, in a dictionary
    speech(model)               the manifest's `speech` section (runtime/speech/tokens.py)
    READS_CLASSIFIERS           True where it reads classifiers too, and refuses other classes itself (_encoders.py)

and, for folders that another toolkit wrote,

    recognise(folder)           the configuration of one that has no config.json, or None
    write_tokenizer(path, folder)   writes the tokenizer and returns its entry in the manifest, or None

and, where positions are computed and not stored,

    stretch(model, positions)   make the table longer before `describe`; 0 for its usual length

Families are found by listing this directory. A file whose name begins with an underscore is shared code.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from ...errors import UnsupportedModel


@dataclass(frozen=True)
class Family:
    """What a family says about one model.

    structure: what the graphs are emitted from (`graphs.structure.Transformer`, a recurrent model's, or an
        `EncoderModel`, whose `KIND` says that the bundle has an encoder alone).
    max_source_length, max_target_length: in tokens; None if the architecture sets no limit.
    sizes: more sizes for the manifest, which can't be read from `structure`.
    """

    name: str
    structure: Any
    max_source_length: int | None
    max_target_length: int | None
    sizes: dict[str, int] = field(default_factory=dict)


def modules() -> dict[str, ModuleType]:
    """Family modules by name."""
    names = [info.name for info in pkgutil.iter_modules(__path__) if not info.name.startswith("_")]
    return {name: importlib.import_module(f"{__name__}.{name}") for name in sorted(names)}


def model_types() -> dict[str, str]:
    """Every `model_type` that can be exported, with the family that reads it."""
    return {model_type: name for name, module in modules().items() for model_type in module.MODEL_TYPES}


def recognise(folder: Path) -> dict[str, Any] | None:
    """The configuration of a folder without config.json that a family knows by its files, or None."""
    hooks = [hook for module in modules().values() if (hook := getattr(module, "recognise", None))]
    return next((config for hook in hooks if (config := hook(folder)) is not None), None)


def find(model_type: str | None) -> ModuleType:
    """The family for a `model_type`. Raises UnsupportedModel with the reason, or the nearest name."""
    known = model_types()
    if model_type in known:
        return modules()[known[model_type]]
    from ._refused import REFUSED

    listed = f"docs/families.md has the {len(known)} types that can be exported"
    if model_type in REFUSED:
        raise UnsupportedModel(f"model type '{model_type}' can't be exported: {REFUSED[model_type]}; {listed}")
    near = difflib.get_close_matches(model_type or "", known, n=1)
    hint = f", did you mean '{near[0]}'?" if near else ""
    raise UnsupportedModel(f"model type '{model_type}' has no family{hint}; {listed}")
