"""What sentence-transformers' files say of an encoder's embeddings: pooling, normalization, prompts, longest source.

modules.json lists what a text goes through: a Transformer, a Pooling, perhaps a Normalize. A checkpoint without it has
the mean of its tokens' states, not normalized, which is what sentence-transformers takes then.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..bundle import POOLINGS
from ..errors import CheckpointError, UnsupportedModel
from ..schema import Unreadable, read_json, shown

MODULES = "modules.json"
PROMPTS = "config_sentence_transformers.json"
# The switches of a pooling's config.json, and what we call what each turns on.
SWITCHES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_lasttoken": "last",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}
NAMES = {"lasttoken": "last", "mean_sqrt_len_tokens": "mean_sqrt_len"}  # the same, in its newer `pooling_mode`


def head_of(folder: Path) -> tuple[dict[str, Any], int | None]:
    """The manifest's `head` of an embedding, and the longest source in tokens, None where the files don't say.

    Raises CheckpointError for damaged files, and UnsupportedModel for modules that are not read.
    """
    head: dict[str, Any] = {"task": "embedding", "pooling": "mean", "normalize": False}
    if not (folder / MODULES).is_file():
        return head, None
    longest: int | None = None
    for module in _read(folder / MODULES, list):
        kind = str(module.get("type", "")).rpartition(".")[2] if isinstance(module, dict) else ""
        inside = folder / str(module.get("path", "")) if kind else folder
        if kind == "Transformer":
            longest = _longest(folder, inside)
        elif kind == "Pooling":
            head["pooling"] = _pooling(inside / "config.json")
        elif kind == "Normalize":
            head["normalize"] = True
        else:
            raise UnsupportedModel(
                f"{folder / MODULES}: has a module of type {shown(module.get('type') if kind else module)}; expected "
                "Transformer, Pooling and Normalize"
            )
    if (folder / PROMPTS).is_file():
        head |= _prompts(_read(folder / PROMPTS, dict), folder / PROMPTS)
    return head, longest


def _longest(folder: Path, inside: Path) -> int | None:
    if inside.resolve() != folder.resolve():
        raise UnsupportedModel(
            f"{folder / MODULES}: its Transformer is in {inside.name}; expected it beside {MODULES}; export "
            f"{inside} instead, which has the mean of the states"
        )
    found = inside / "sentence_bert_config.json"
    if not found.is_file():
        return None
    length = _read(found, dict).get("max_seq_length")
    if length is not None and (isinstance(length, bool) or not isinstance(length, int) or length < 1):
        raise CheckpointError(f"{found}: max_seq_length is {shown(length)}; expected a number of tokens")
    return length


def _pooling(file: Path) -> str:
    config: Mapping[str, Any] = _read(file, dict)
    found = config.get("pooling_mode")
    on = [found] if isinstance(found, str) else [name for switch, name in SWITCHES.items() if config.get(switch)]
    on = [NAMES.get(name, name) for name in on]
    if len(on) != 1 or on[0] not in POOLINGS:
        raise UnsupportedModel(
            f"{file}: pools by {' and '.join(on) or 'nothing'}; expected exactly one of {', '.join(POOLINGS)}"
        )
    if config.get("include_prompt") is False:
        raise UnsupportedModel(f"{file}: include_prompt is false; expected a pooling over the prompt's tokens as well")
    return on[0]


def _prompts(config: Mapping[str, Any], file: Path) -> dict[str, Any]:
    prompts, default = config.get("prompts") or {}, config.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
        raise CheckpointError(f"{file}: prompts is {shown(prompts)}; expected texts by name")
    if default is not None and default not in prompts:
        raise CheckpointError(f"{file}: default_prompt_name is {shown(default)}; expected a name of its prompts")
    return {"prompts": prompts, "default_prompt": default}


def _read(file: Path, kind: type) -> Any:
    try:
        found = read_json(file)
    except Unreadable as error:
        raise CheckpointError(f"{file}: not readable as JSON ({error}); restore the checkpoint") from error
    if not isinstance(found, kind):
        expected = "a list" if kind is list else "an object"
        raise CheckpointError(f"{file}: holds {shown(found)}; expected {expected}; restore the checkpoint")
    return found
