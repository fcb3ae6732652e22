"""Recurrent models of toolkits: modules with the reference models' interface, traced as a module of one's own is.

Each has `config` with the special tokens' ids and `source_vocabulary_size`, besides `encode`, `start` and `step`.
"""

from __future__ import annotations

from typing import Any

from ..families import Family
from ..graphs.traced import TracedModule
from ..own_module import interface, trace
from ..own_module.check import ModuleReference
from ..own_module.sources import Ids
from .plain import PlainTransformer, Reference, ToolkitModel


def family(name: str, wrapper: ToolkitModel) -> Family:
    """Traces the module. Raises UnsupportedModel, MissingExtra."""
    module: Any = wrapper.model
    read = Ids(module.config.source_vocabulary_size)
    found, example = interface.probe(module, read, wrapper.generation_config.decoder_start_token_id)
    structure = TracedModule(trace.trace(module, read, found, example), found, read)
    return Family(name, structure, None, None)


def reference_of(wrapper: ToolkitModel) -> Any:
    """The model seen as the three graphs (`parity.Reference`), whichever kind it is of."""
    if isinstance(wrapper.model, PlainTransformer):
        return Reference(wrapper)
    module: Any = wrapper.model
    start = wrapper.generation_config.decoder_start_token_id
    read = Ids(module.config.source_vocabulary_size)
    found, _ = interface.probe(module, read, start)
    return ModuleReference(module, found, read)
