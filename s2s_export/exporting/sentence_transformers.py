"""What sentence-transformers' files say of an encoder's embeddings: pooling, normalization, prompts, longest source.

modules.json lists what a text goes through: a Transformer, a Pooling, perhaps layers (Dense) and a Normalize.
A checkpoint without it has the mean of its tokens' states, not normalized, which is sentence-transformers' default.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..bundle import POOLINGS
from ..errors import CheckpointError, UnsupportedModel, shortened
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
POOLED = "sentence_embedding"  # sentence-transformers' name of what a pooling gives
# Classes of torch.nn, and what we call them; GELU is the exact one.
ACTIVATIONS = {"Identity": "identity", "Tanh": "tanh", "ReLU": "relu", "GELU": "gelu", "Sigmoid": "sigmoid"}
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
        elif kind == "Dense" and not head["normalize"]:
            head.setdefault("dense", []).append(_dense(inside))
        else:
            raise UnsupportedModel(
                f"{folder / MODULES}: has a module of type {shown(module.get('type') if kind else module)}; expected "
                "Transformer, Pooling, Dense and Normalize, in this order"
            )
    if (folder / PROMPTS).is_file():
        head |= _prompts(_read(folder / PROMPTS, dict), folder / PROMPTS)
    return head, longest


def dense_weights(folder: Path) -> dict[str, Any]:
    """Of the layers after the pooling: weight_0 [in, out], bias_0 [out], weight_1, ...; empty without any.

    Read from safetensors, or from a pickle of weights alone. Raises CheckpointError.
    """
    if not (folder / MODULES).is_file():
        return {}
    modules = [m for m in _read(folder / MODULES, list) if str(m.get("type", "")).endswith(".Dense")]
    found: dict[str, Any] = {}
    for i, module in enumerate(modules):
        inside = folder / str(module["path"])
        state = _state(inside)
        if "linear.weight" not in state:
            raise CheckpointError(f"{inside}: its weights hold no linear.weight; restore the checkpoint")
        weight = state["linear.weight"].float().numpy()
        bias = state["linear.bias"].float().numpy() if "linear.bias" in state else np.zeros(len(weight), np.float32)
        found |= {f"weight_{i}": np.ascontiguousarray(weight.T), f"bias_{i}": bias}
    return found


def _state(folder: Path) -> dict[str, Any]:
    import safetensors.torch
    import torch

    try:
        if (folder / "model.safetensors").is_file():
            return safetensors.torch.load_file(folder / "model.safetensors")
        state: dict[str, Any] = torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
    except Exception as error:  # both raise many types for a damaged file
        raise CheckpointError(f"{folder}: its weights can't be read ({shortened(error, 200)}); restore it") from error
    return state


def _dense(folder: Path) -> dict[str, Any]:
    config: Mapping[str, Any] = _read(folder / "config.json", dict)
    name = str(config.get("activation_function", "torch.nn.modules.activation.Tanh")).rpartition(".")[2]
    read = config.get("module_input_name") or POOLED
    if name not in ACTIVATIONS or read != POOLED or (config.get("module_output_name") or POOLED) != POOLED:
        raise UnsupportedModel(
            f"{folder / 'config.json'}: a Dense of {shown(read)} with activation {shown(name)}; expected one of "
            f"{POOLED} with {', '.join(ACTIVATIONS)}"
        )
    return {"activation": ACTIVATIONS[name], "width": int(config["out_features"])}


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
