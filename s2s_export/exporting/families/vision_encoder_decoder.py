"""Pictures to text: an encoder of pictures with a text decoder, such as TrOCR (2109.10282) and Donut (2111.15664).

Encoders: ViT, DeiT, BEiT, Swin and Donut's Swin. Decoders: those of `_text_decoders.py`. Where the widths differ, the
encoder's states are projected to the decoder's, or cross-attention does it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...errors import UnsupportedModel
from ...runtime.sources.pixels import KIND
from ..graphs.structure import Linear, Transformer
from ..pictures import preprocessing_of
from . import Family
from ._one_input import OneInputReference
from ._picture_encoders import ENCODERS
from ._text_decoders import DECODERS, n_positions

MODEL_TYPES = ("vision-encoder-decoder",)
AUTO_CLASS = "VisionEncoderDecoderModel"
UNUSED_WEIGHTS = ("encoder.pooler.",)  # TrOCR's checkpoints have none
SOURCE_KIND = KIND.name
Reference = OneInputReference


def describe(model: Any) -> Family:
    encoder, decoder = model.encoder, model.decoder
    source, target = encoder.config.model_type, decoder.config.model_type
    if source not in ENCODERS:
        raise _unsupported("encoder", source, ENCODERS)
    if target not in DECODERS:
        raise _unsupported("decoder", target, DECODERS)
    describe_decoder, decoder_norm_first = DECODERS[target]
    stack, head, transform = describe_decoder(decoder)
    bridge = getattr(model, "enc_to_dec_proj", None)
    structure = Transformer(
        ENCODERS[source](encoder),
        stack,
        norm_first=True,
        decoder_norm_first=decoder_norm_first,
        head=head,
        head_transform=transform,
        bridge=None if bridge is None else Linear.of(bridge),
    )
    depth = getattr(encoder.config, "depths", None)
    sizes = {} if depth is None else {"encoder_layers": sum(depth)}
    return Family("vision-encoder-decoder", structure, None, n_positions(stack), sizes)


def _unsupported(side: str, found: str, known: Any) -> UnsupportedModel:
    return UnsupportedModel(
        f"vision-encoder-decoder: the {side} is of type '{found}'; expected one of {', '.join(known)}"
    )


def source(model: Any) -> dict[str, Any]:
    stem: Any = ENCODERS[model.encoder.config.model_type](model.encoder).embedding
    channels, height, width = stem.shape
    return {"n_channels": channels, "height": height, "width": width, "n_positions": stem.n_positions}


def prompting(model: Any) -> dict[str, bool]:
    """Donut's prompt is the name of its task, in place of the start token."""
    return {"prompt_replaces_start": True} if "donut" in model.encoder.config.model_type else {}


def prepare_sources(path: Path, source: dict[str, Any]) -> dict[str, Any]:
    """What the manifest's source has of the checkpoint's preprocessor_config.json."""
    return {"preprocessing": preprocessing_of(path, (source["n_channels"], source["height"], source["width"]))}


def generate(model: Any, **options: Any) -> Any:
    """Without a mask, which no encoder of pictures takes."""
    options.pop("attention_mask", None)
    return model.generate(**options)
