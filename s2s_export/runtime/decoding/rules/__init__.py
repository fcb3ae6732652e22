"""The decoding rules, one file each, found by listing this folder.

A file has `ORDER`, its place among the others (as in transformers' `_get_logits_processor`), and
`from_options(options, vocabulary_size)`, which returns the rule, or None if the options don't activate it.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import lru_cache
from typing import Any

from ..options import GenerationOptions
from ..rule import Rule


@lru_cache(maxsize=1)
def modules() -> tuple[Any, ...]:
    """Every rule's module, in the order of application."""
    found = [importlib.import_module(f"{__name__}.{entry.name}") for entry in pkgutil.iter_modules(__path__)]
    return tuple(sorted(found, key=lambda module: int(module.ORDER)))


def active(options: GenerationOptions, vocabulary_size: int) -> list[Rule]:
    """The rules that these options switch on, in the order of application."""
    made = (module.from_options(options, vocabulary_size) for module in modules())
    return [rule for rule in made if rule is not None]
