"""Encoders alone: one graph, compared with transformers on sources of several lengths in one padded batch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...bundle import DENSE, ENCODER, Bundle
from ...errors import InvalidOption
from ...runtime.backends.onnxruntime import OnnxRuntimeBackend
from ...runtime.sources import MASK, Source, kind_of, token_ids, typed_token_ids
from .. import sentence_transformers
from ..families import _encoders
from ..tokenizers.pairs import pair_template
from ..tolerances import GRAPH_TOLERANCE

if TYPE_CHECKING:
    from ..families import Family
    from ..parity import OutputError

LENGTHS = (17, 4, 9, 1)  # tokens of the sources that are compared
SEED = 1810


@dataclass
class Expected:
    """What transformers computed for some sources: the graph's output, by its name."""

    sources: list[Source]
    output: str
    values: Any


def manifest(
    source: Any, model: Any, family: Family, limits: dict[str, int | None], graphs: dict[str, Any]
) -> dict[str, Any]:
    if limits["max_target_length"] is not None:
        raise InvalidOption(
            f"max_target_length is {limits['max_target_length']}, but the model is an encoder alone and generates "
            "nothing; leave it out"
        )
    if family.structure.classifier is not None:
        head, longest = _encoders.head_of(model), None
    else:
        head, longest = sentence_transformers.head_of(source.path)
    pair = None if source.path is None else pair_template(source.path)
    limit = limits["max_source_length"]
    if longest is not None:
        limit = longest if limit is None else min(limit, longest)
    return {
        "kind": ENCODER,
        "limits": {"max_source_length": limit},
        "source": {
            "kind": (token_ids if family.structure.encoder.types is None else typed_token_ids).KIND.name,
            "pad_token_id": getattr(model.config, "pad_token_id", None),
            **({} if pair is None else {"pair": pair}),
        },
        "head": head,
    }


def write_files(folder: Path, source: Any) -> None:
    """What a bundle has beside graphs and tokenizer: the weights of layers after the pooling."""
    if source.path is not None and (arrays := sentence_transformers.dense_weights(source.path)):
        np.savez(folder / DENSE, **arrays)


def expect(written: Bundle, source: Any, model: Any) -> Expected:
    import torch

    from ..parity import named

    kind, rng = kind_of(written), np.random.default_rng(SEED)
    limit = written.max_source_length or max(LENGTHS)
    sources = [kind.random(rng, min(length, limit)) for length in LENGTHS]
    inputs = {name: torch.from_numpy(array) for name, array in kind.prepare(sources).items()}
    with torch.no_grad():
        out = model(**named(inputs))
    output = written.manifest["graphs"]["encoder"]["outputs"][0]["name"]
    values = out.logits if output == "logits" else out.last_hidden_state
    return Expected(sources, output, values.float().numpy())


def compare(written: Bundle, expected: Expected) -> list[OutputError]:
    from ..parity import OutputErrors

    errors = OutputErrors(GRAPH_TOLERANCE[written.manifest["precision"]])
    found = OnnxRuntimeBackend(written, 1, prepack=False).encode(expected.sources)
    is_of_tokens = expected.values.ndim == 3
    errors.add("encoder", expected.output, found[expected.output], expected.values,
               mask=found[MASK] if is_of_tokens else None)  # fmt: skip
    return errors.list()
