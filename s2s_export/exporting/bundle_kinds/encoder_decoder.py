"""Encoder-decoders: three graphs, compared step by step (parity.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...bundle import Bundle
from ...runtime.sources import token_ids

if TYPE_CHECKING:
    from ..families import Family
    from ..parity import Expected, OutputError


def manifest(
    source: Any, model: Any, family: Family, limits: dict[str, int | None], graphs: dict[str, Any]
) -> dict[str, Any]:
    of_source = source.family.source(model) if hasattr(source.family, "source") else {}
    if prepare := getattr(source.family, "prepare_sources", None):
        of_source |= prepare(source.path, of_source)
    is_recurrent = any(value["name"] == "parents" for value in graphs["decoder_step"]["inputs"])
    return {
        "decoder": "recurrent" if is_recurrent else "attention",
        "limits": limits,
        "source": {
            "kind": getattr(source.family, "SOURCE_KIND", token_ids.KIND.name),
            "pad_token_id": getattr(model.config, "pad_token_id", None),
            **of_source,
        },
        **({"speech": source.family.speech(model)} if hasattr(source.family, "speech") else {}),
        **(source.family.prompting(model) if hasattr(source.family, "prompting") else {}),
        "generation": generation_defaults(model),
    }


def generation_defaults(model: Any) -> dict[str, Any]:
    """The generation options that the checkpoint's configuration sets, by their Hugging Face names."""
    values = model.generation_config.to_dict()
    return {name: _plain(value) for name, value in values.items() if value is not None and not name.startswith("_")}


def _plain(value: Any) -> Any:
    """What JSON holds in place of an object of transformers, such as a WatermarkingConfig."""
    return value.to_dict() if hasattr(value, "to_dict") else value


def expect(written: Bundle, source: Any, model: Any) -> Expected:
    from .. import parity

    return parity.expect(written, getattr(source.family, "Reference", parity.TransformersReference)(model))


def compare(written: Bundle, expected: Expected) -> list[OutputError]:
    from .. import parity

    return parity.compare(written, expected)
