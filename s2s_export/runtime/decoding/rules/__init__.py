"""The decoding rules, one file each, found by listing this folder.

A file has

    ORDER      its place among the others: that of transformers' processors in `_get_logits_processor`
    OPTIONS    the generation options that are its own, by their Hugging Face names: see `option.Option`
    from_options(options, vocabulary_size)
               the rule (rule.py), or None where the options leave it inactive
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import lru_cache
from typing import Any

from ..generation_options import GenerationOptions
from ..option import Option
from ..rule import Rule


def modules() -> tuple[Any, ...]:
    """Every rule's module, in the order of application."""
    return _found(tuple(__path__))[0]


def options() -> dict[str, Option]:
    """The options of all rules, by name."""
    return _found(tuple(__path__))[1]


@lru_cache(maxsize=2)
def _found(folders: tuple[str, ...]) -> tuple[tuple[Any, ...], dict[str, Option]]:
    found = [importlib.import_module(f"{__name__}.{entry.name}") for entry in pkgutil.iter_modules(folders)]
    in_order = tuple(sorted(found, key=lambda module: int(module.ORDER)))
    return in_order, {name: option for module in in_order for name, option in module.OPTIONS.items()}


def active(options: GenerationOptions, vocabulary_size: int) -> list[Rule]:
    """The rules that these options switch on, in the order of application."""
    made = (module.from_options(options, vocabulary_size) for module in modules())
    return [rule for rule in made if rule is not None]
