"""Whisper (2212.04356): log-mel features through two convolutions, pre-norm, learned positions of the decoder.

tiny to large-v3-turbo, of English and multilingual, and distil-whisper, whose decoders have fewer layers. The decoder
step gives the weights of the alignment heads only, from which the times of words are found.
"""

from __future__ import annotations

from typing import Any

import torch

from ...errors import CheckpointError
from ...runtime.sources.audio_features import KIND, STRIDE
from ..graphs.stems import Convolution, Frames
from ..graphs.structure import Linear, Norm, PositionTable, Stack, Transformer
from . import Family
from ._bart_like import block
from ._bart_like import stack as stack_of
from ._one_input import OneInputReference

MODEL_TYPES = ("whisper",)
AUTO_CLASS = "AutoModelForSpeechSeq2Seq"
SOURCE_KIND = KIND.name


def describe(model: Any) -> Family:
    config, body = model.config, model.model
    encoder = Stack(
        embedding=Frames(
            tuple(Convolution(c.weight, c.bias, c.stride[0]) for c in (body.encoder.conv1, body.encoder.conv2)),
            n_frames=config.max_source_positions * STRIDE,
        ),
        embedding_scale=1.0,
        positions=PositionTable(body.encoder.embed_positions.weight),
        blocks=tuple(block(config, layer) for layer in body.encoder.layers),
        final_norm=Norm.of(body.encoder.layer_norm),
    )
    structure = Transformer(
        encoder,
        stack_of(config, body.decoder, PositionTable(body.decoder.embed_positions.weight)),
        norm_first=True,
        head=Linear.of(model.proj_out),
        alignment_heads=alignment_heads(model),
    )
    return Family("whisper", structure, None, config.max_target_positions)


def alignment_heads(model: Any) -> tuple[tuple[int, int], ...]:
    """(layer, head) whose cross-attention follows the sound: the checkpoint's, else all of the upper half of layers,
    as OpenAI's whisper takes them for a model that names none."""
    n_layers, n_heads = model.config.decoder_layers, model.config.decoder_attention_heads
    given = getattr(model.generation_config, "alignment_heads", None)
    if given is None:
        return tuple((layer, head) for layer in range(n_layers // 2, n_layers) for head in range(n_heads))
    found = tuple((int(layer), int(head)) for layer, head in given)
    if not found or any(not (0 <= layer < n_layers and 0 <= head < n_heads) for layer, head in found):
        raise CheckpointError(
            f"generation_config.json's alignment_heads are {given}; expected pairs of a layer below {n_layers} and a "
            f"head below {n_heads}"
        )
    return found


def source(model: Any) -> dict[str, Any]:
    return {"n_bands": model.config.num_mel_bins, "n_frames": model.config.max_source_positions * STRIDE}


def speech(model: Any) -> dict[str, Any]:
    """Of generation_config.json; raises CheckpointError for one of before transformers 4.31, which lacks the ids."""
    options = model.generation_config
    notimestamps = getattr(options, "no_timestamps_token_id", None)
    if notimestamps is None:
        raise CheckpointError(
            "generation_config.json has no no_timestamps_token_id, which prompts and times need; take the file of the "
            "model's newest release"
        )
    forced = getattr(options, "forced_decoder_ids", None) or getattr(model.config, "forced_decoder_ids", None)
    end = options.eos_token_id
    return {
        "startoftranscript": options.decoder_start_token_id,
        "endoftext": end[0] if isinstance(end, list) else end,
        "startofprev": getattr(options, "prev_sot_token_id", None) or notimestamps - 2,
        "nospeech": notimestamps - 1,
        "notimestamps": notimestamps,
        "lang_to_id": dict(getattr(options, "lang_to_id", None) or {}),
        "task_to_id": dict(getattr(options, "task_to_id", None) or {}),
        "is_multilingual": bool(getattr(options, "is_multilingual", False)),
        "max_initial_timestamp_index": getattr(options, "max_initial_timestamp_index", None),
        "alignment_heads": [list(pair) for pair in alignment_heads(model)],
        "median_filter_width": int(getattr(model.config, "median_filter_width", 7)),
        "forced_decoder_ids": forced,
        "return_timestamps": bool(getattr(options, "return_timestamps", False)),
    }


class Reference(OneInputReference):
    """Of the decoder's attention only the alignment heads are compared."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self._heads = alignment_heads(model)

    def weights(self, layers: Any) -> torch.Tensor:
        return torch.stack([layers[layer][:, head, -1] for layer, head in self._heads], dim=1)[:, None]


def generate(model: Any, **options: Any) -> Any:
    """The search itself, from the decoder prompt that the options give.

    Whisper's own method builds prompts and cuts windows around it.
    """
    from transformers import GenerationMixin

    options.pop("attention_mask", None)
    return GenerationMixin.generate(model, **options)
