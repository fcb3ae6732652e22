"""Speech to text by an encoder of the waveform and a text decoder: wav2vec 2.0 (2006.11477) or HuBERT (2106.07447).

Decoders: those of `_text_decoders.py`. Where the widths differ, the encoder's states are projected to the decoder's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ...errors import CheckpointError, UnsupportedModel
from ...runtime.sources import MASK
from ...runtime.sources.waveform import INPUT_VALUES, KIND, N_FRAMES
from ...schema import Unreadable, read_json
from ..graphs.structure import Block, FeedForward, Linear, Norm, Stack, Transformer
from ..graphs.wave_features import WaveConvolution, WaveFeatures
from ..parity import Inputs, TransformersReference, cross_outputs
from . import Family
from ._bart_like import activation, attention
from ._text_decoders import DECODERS, n_positions

MODEL_TYPES = ("speech-encoder-decoder",)
AUTO_CLASS = "SpeechEncoderDecoderModel"
UNUSED_WEIGHTS = ("encoder.masked_spec_embed",)  # of training
SOURCE_KIND = KIND.name
ENCODERS = ("wav2vec2", "hubert")
PREPROCESSOR = "preprocessor_config.json"
# Settings of the encoder that change what it computes, and the value that is read.
PLAIN: dict[str, Any] = {"add_adapter": False, "adapter_attn_dim": None, "conv_pos_batch_norm": False}


def describe(model: Any) -> Family:
    encoder, decoder = model.encoder, model.decoder
    source, target = encoder.config, decoder.config
    if source.model_type not in ENCODERS:
        raise _unsupported("encoder", source.model_type, ENCODERS)
    if target.model_type not in DECODERS:
        raise _unsupported("decoder", target.model_type, DECODERS)
    for name, value in PLAIN.items():
        if getattr(source, name, value) != value:
            raise UnsupportedModel(
                f"speech-encoder-decoder: the encoder's {name} is {getattr(source, name)}; expected {value}"
            )
    describe_decoder, decoder_norm_first = DECODERS[target.model_type]
    stack, head, transform = describe_decoder(decoder)
    bridge = getattr(model, "enc_to_dec_proj", None)
    structure = Transformer(
        _stack(encoder),
        stack,
        norm_first=bool(source.do_stable_layer_norm),
        decoder_norm_first=decoder_norm_first,
        head=head,
        head_transform=transform,
        bridge=None if bridge is None else Linear.of(bridge),
    )
    return Family("speech-encoder-decoder", structure, None, n_positions(stack))


def _unsupported(side: str, found: str, known: Any) -> UnsupportedModel:
    return UnsupportedModel(
        f"speech-encoder-decoder: the {side} is of type '{found}'; expected one of {', '.join(known)}"
    )


def _stack(model: Any) -> Stack:
    config, encoder = model.config, model.encoder
    norm = Norm.of(encoder.layer_norm)
    is_stable = config.do_stable_layer_norm
    return Stack(
        embedding=_stem(model),
        embedding_scale=1.0,
        positions=None,
        blocks=tuple(_block(config, layer) for layer in encoder.layers),
        embedding_norm=None if is_stable else norm,
        final_norm=norm if is_stable else None,
    )


def _stem(model: Any) -> WaveFeatures:
    config = model.config
    layers, projection = model.feature_extractor.conv_layers, model.feature_projection
    by_frames = config.feat_extract_norm == "group"
    convolutions = tuple(
        WaveConvolution(
            layer.conv.weight, layer.conv.bias, layer.conv.stride[0], None if by_frames else Norm.of(layer.layer_norm)
        )
        for layer in layers
    )
    positions = model.encoder.pos_conv_embed.conv
    norm = getattr(projection, "layer_norm", None)
    first = layers[0].layer_norm
    return WaveFeatures(
        convolutions,
        Norm(first.weight, first.bias, first.eps) if by_frames else None,
        None if norm is None else Norm.of(norm),
        Linear.of(projection.projection),
        Linear(positions.weight, positions.bias),
        positions.groups,
        activation(config, config.feat_extract_activation),
    )


def _block(config: Any, layer: Any) -> Block:
    return Block(
        self_attention=attention(layer.attention),
        self_norm=Norm.of(layer.layer_norm),
        feed_forward=FeedForward(
            inner=Linear.of(layer.feed_forward.intermediate_dense),
            outer=Linear.of(layer.feed_forward.output_dense),
            activation=activation(config, config.hidden_act),
        ),
        feed_forward_norm=Norm.of(layer.final_layer_norm),
    )


def source(model: Any) -> dict[str, Any]:
    convolutions = [layer.conv for layer in model.encoder.feature_extractor.conv_layers]
    return {"convolutions": [[c.kernel_size[0], c.stride[0]] for c in convolutions]}


def prepare_sources(path: Path, source: dict[str, Any]) -> dict[str, Any]:
    """Whether clips are normalized, as preprocessor_config.json says; without it they are, as in transformers."""
    file, settings = path / PREPROCESSOR, {}
    if file.exists():
        try:
            settings = read_json(file)
        except Unreadable as error:
            raise CheckpointError(f"{file}: not readable as JSON ({error}); restore the checkpoint") from error
    if not isinstance(settings, dict):
        raise CheckpointError(f"{file}: holds no JSON object; restore the checkpoint")
    return {"is_normalized": bool(settings.get("do_normalize", True))}


class Reference(TransformersReference):
    """Every clip is encoded by itself, without what fills it up."""

    def _n_samples(self, inputs: Inputs) -> list[int]:
        """Of each clip, those behind the last whole frame left out."""
        width, stride = source(self.model)["convolutions"][0]
        return [(n - 1) * stride + width for n in inputs[N_FRAMES].tolist()]

    @torch.no_grad()
    def encode(self, inputs: Inputs) -> dict[str, torch.Tensor]:
        pairs = zip(inputs[INPUT_VALUES], self._n_samples(inputs), strict=True)
        rows = [self.model.encoder(input_values=row[None, :n])[0][0] for row, n in pairs]
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
        states = self.encode(inputs)["encoder_states"].repeat_interleave(repeats, 0)
        n_samples = torch.tensor(self._n_samples(inputs))
        mask = torch.arange(int(n_samples.max())) < n_samples[:, None]
        return {"encoder_outputs": (states,), "attention_mask": mask.long().repeat_interleave(repeats, 0)}


def generate(model: Any, **options: Any) -> Any:
    """Of one clip, which needs no mask."""
    for name in ("attention_mask", N_FRAMES):
        options.pop(name, None)
    return model.generate(**options)
