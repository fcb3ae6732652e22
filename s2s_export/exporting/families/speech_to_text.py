"""Speech2Text (2010.05171): filter banks through gated convolutions, pre-norm, positions that are computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ...errors import CheckpointError, UnsupportedModel
from ...runtime.sources import MASK
from ...runtime.sources.filter_banks import FILTER_BANKS, KIND, N_FRAMES
from ...schema import Unreadable, read_json
from ..graphs.gated_convolutions import GatedConvolution, GatedConvolutions
from ..graphs.structure import Linear, Norm, PositionTable, Stack, Transformer
from ..parity import Inputs, TransformersReference, cross_outputs
from . import Family
from ._bart_like import block

MODEL_TYPES = ("speech_to_text",)
AUTO_CLASS = "AutoModelForSpeechSeq2Seq"
SOURCE_KIND = KIND.name
PREPROCESSOR = "preprocessor_config.json"


def describe(model: Any) -> Family:
    config, encoder, decoder = model.config, model.model.encoder, model.model.decoder
    padding = config.pad_token_id
    if not padding:
        raise UnsupportedModel(
            f"speech_to_text: pad_token_id is {padding}; expected another, as transformers then takes all of a source "
            "for padding"
        )
    layers = encoder.conv.conv_layers
    stem = GatedConvolutions(
        tuple(GatedConvolution(c.weight, c.bias, c.stride[0]) for c in layers), float(encoder.embed_scale)
    )
    source = Stack(
        embedding=stem,
        embedding_scale=1.0,
        positions=PositionTable(encoder.embed_positions.weights, padding + 1),
        blocks=tuple(block(config, layer) for layer in encoder.layers),
        final_norm=Norm.of(encoder.layer_norm),
    )
    target = Stack(
        embedding=decoder.embed_tokens.weight,
        embedding_scale=float(decoder.embed_scale),
        positions=PositionTable(decoder.embed_positions.weights, padding + 1, padding),
        blocks=tuple(block(config, layer) for layer in decoder.layers),
        final_norm=Norm.of(decoder.layer_norm),
    )
    structure = Transformer(source, target, norm_first=True, head=Linear.of(model.lm_head))
    lengths = (len(side.embed_positions.weights) - padding - 1 for side in (encoder, decoder))
    longest_source, longest_target = lengths
    return Family(
        "speech_to_text",
        structure,
        min(longest_source, config.max_source_positions),
        min(longest_target, config.max_target_positions),
    )


def source(model: Any) -> dict[str, Any]:
    layers = model.model.encoder.conv.conv_layers
    return {
        "n_bands": model.config.input_feat_per_channel * model.config.input_channels,
        "convolutions": [[c.kernel_size[0], c.stride[0]] for c in layers],
    }


def prepare_sources(path: Path, source: dict[str, Any]) -> dict[str, Any]:
    """What preprocessor_config.json says of normalizing."""
    settings: Any = {}
    if (path / PREPROCESSOR).exists():
        try:
            settings = read_json(path / PREPROCESSOR)
        except Unreadable as error:
            raise CheckpointError(f"{path / PREPROCESSOR}: not readable as JSON ({error}); restore it") from error
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path / PREPROCESSOR}: holds no JSON object; restore the checkpoint")
    if settings.get("dither") or settings.get("sampling_rate", 16000) != 16000:
        raise UnsupportedModel(f"{path / PREPROCESSOR}: expected dither of 0 and a sampling_rate of 16000")
    is_normalized = settings.get("do_ceptral_normalize", True)
    return {name: bool(is_normalized and settings.get(name, True)) for name in ("normalize_means", "normalize_vars")}


class Reference(TransformersReference):
    """Every clip is encoded by itself, without what fills it up."""

    @torch.no_grad()
    def encode(self, inputs: Inputs) -> dict[str, torch.Tensor]:
        pairs = zip(inputs[FILTER_BANKS], inputs[N_FRAMES].tolist(), strict=True)
        rows = [self.model.get_encoder()(input_features=row[None, :n])[0][0] for row, n in pairs]
        return {"encoder_states": torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)}

    @torch.no_grad()
    def cross(self, inputs: Inputs) -> dict[str, torch.Tensor]:
        start = torch.zeros((len(inputs[MASK]), 1), dtype=torch.int64)
        return cross_outputs(self.model(**self._encoded(inputs), decoder_input_ids=start, use_cache=True))

    @torch.no_grad()
    def step(self, inputs: Inputs, history: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        encoded = self._encoded(inputs, history.shape[0] // len(inputs[MASK]))
        out = self.model(**encoded, decoder_input_ids=history, use_cache=False, output_attentions=True)
        return out.logits[:, -1], torch.stack([layer[:, :, -1] for layer in out.cross_attentions], dim=1)

    def _encoded(self, inputs: Inputs, repeats: int = 1) -> dict[str, Any]:
        from transformers.modeling_outputs import BaseModelOutput

        states = self.encode(inputs)["encoder_states"].repeat_interleave(repeats, 0)
        frames = torch.arange(inputs[FILTER_BANKS].shape[1]) < inputs[N_FRAMES][:, None]
        return {
            "encoder_outputs": BaseModelOutput(last_hidden_state=states),
            "attention_mask": frames.long().repeat_interleave(repeats, 0),
        }


def generate(model: Any, **options: Any) -> Any:
    """Of one clip, which needs no mask."""
    options["input_features"] = options.pop(FILTER_BANKS)
    for name in ("attention_mask", N_FRAMES):
        options.pop(name, None)
    return model.generate(**options)
