"""Moonshine (2410.15608): the waveform through three convolutions, rotary positions, pre-norm, a gated decoder.

Every clip gives what it gives alone. In transformers' batches of clips of different lengths it does not, as the norm
behind the first convolution there counts what fills a clip up.
"""

from __future__ import annotations

from typing import Any

import torch

from ...errors import UnsupportedModel
from ...runtime.sources import MASK
from ...runtime.sources.waveform import INPUT_VALUES, KIND
from ..graphs.structure import Attention, Block, FeedForward, Linear, Norm, Rotary, Stack, Transformer
from ..graphs.waveform_stem import Filter, Waveform
from ..parity import Inputs, TransformersReference, cross_outputs
from . import Family
from ._bart_like import activation

MODEL_TYPES = ("moonshine",)
AUTO_CLASS = "AutoModelForSpeechSeq2Seq"
SOURCE_KIND = KIND.name
SOURCE_POSITIONS = 2048  # 49 s; angles are computed, and the model was trained with up to 30 s


def describe(model: Any) -> Family:
    config, body = model.config, model.model
    _check(config, model)
    encoder, decoder = body.encoder, body.decoder
    filters = tuple(
        Filter(c.weight, c.bias, c.stride[0], name)
        for c, name in ((encoder.conv1, "Tanh"), (encoder.conv2, "Gelu"), (encoder.conv3, "Gelu"))
    )
    group = encoder.groupnorm
    source = Stack(
        embedding=Waveform(filters, Norm(group.weight, group.bias, group.eps)),
        embedding_scale=1.0,
        positions=None,
        blocks=tuple(_block(config, encoder, layer, SOURCE_POSITIONS) for layer in encoder.layers),
        final_norm=_norm(encoder.layer_norm),
    )
    target = Stack(
        embedding=decoder.embed_tokens.weight,
        embedding_scale=1.0,
        positions=None,
        blocks=tuple(_block(config, decoder, layer, config.max_position_embeddings) for layer in decoder.layers),
        final_norm=_norm(decoder.norm),
    )
    structure = Transformer(source, target, norm_first=True, head=Linear.of(model.proj_out))
    return Family("moonshine", structure, SOURCE_POSITIONS, config.max_position_embeddings)


def _check(config: Any, model: Any) -> None:
    attentions = [module for module in model.modules() if hasattr(module, "q_proj")]
    sizes = {(m.head_dim, m.q_proj.out_features, m.k_proj.out_features) for m in attentions}
    if len(sizes) > 1 or any(queries != keys for _, queries, keys in sizes):
        raise UnsupportedModel(
            "moonshine: encoder, decoder, queries and keys have different numbers of heads; expected equal ones, as "
            "transformers computes no others"
        )
    kind = config.rope_parameters["rope_type"]
    if kind != "default":
        raise UnsupportedModel(f"moonshine: rope_type is '{kind}'; expected 'default'")


def _norm(module: Any) -> Norm:
    """LayerNorm without a bias."""
    return Norm(module.weight, torch.zeros_like(module.weight), module.eps)


def _block(config: Any, side: Any, layer: Any, n_positions: int) -> Block:
    crossed = hasattr(layer, "encoder_attn")
    inner = Linear.of(layer.mlp.fc1)
    gate = None
    if crossed:
        inner, gate = _halves(inner)
    norms = (layer.post_attention_layernorm, layer.final_layernorm) if crossed else (layer.post_attention_layernorm,)
    return Block(
        self_attention=_turned(layer.self_attn, side.rotary_emb, n_positions),
        self_norm=_norm(layer.input_layernorm),
        cross_attention=_attention(layer.encoder_attn) if crossed else None,
        cross_norm=_norm(norms[0]) if crossed else None,
        feed_forward=FeedForward(
            inner=inner,
            outer=Linear.of(layer.mlp.fc2),
            activation=activation(config, config.decoder_hidden_act if crossed else config.encoder_hidden_act),
            gate=gate,
        ),
        feed_forward_norm=_norm(norms[-1]),
    )


def _halves(linear: Linear) -> tuple[Linear, Linear]:
    weights, biases = linear.weight.chunk(2), (None, None) if linear.bias is None else linear.bias.chunk(2)
    return Linear(weights[0], biases[0]), Linear(weights[1], biases[1])


def _attention(module: Any) -> Attention:
    return Attention(
        query=Linear.of(module.q_proj),
        key=Linear.of(module.k_proj),
        value=Linear.of(module.v_proj),
        output=Linear.of(module.o_proj),
        n_heads=module.q_proj.out_features // module.head_dim,
        scale=float(module.scaling),
    )


def _turned(module: Any, rotary: Any, n_positions: int) -> Attention:
    """Neighbouring numbers are turned against each other, and those at a head's end not at all.

    The rows of queries and keys are put into the order in which the halves of a head are turned, the same for both, so
    that their products stay what they are; what is not turned gets angles of zero.
    """
    found = _attention(module)
    size, n_turned = found.head_size, 2 * len(rotary.inv_freq)
    if size % 2:
        raise UnsupportedModel(f"moonshine: a head has {size} numbers; expected an even number of them")
    rest = list(range(n_turned, size))
    half = len(rest) // 2
    order = [*range(0, n_turned, 2), *rest[:half], *range(1, n_turned, 2), *rest[half:]]
    rows = torch.tensor([head * size + i for head in range(found.n_heads) for i in order])
    angles = torch.arange(n_positions)[:, None].float() * rotary.inv_freq.float()
    angles = torch.cat([angles, torch.zeros(n_positions, half)], dim=1)

    def ordered(linear: Linear) -> Linear:
        return Linear(linear.weight[rows], None if linear.bias is None else linear.bias[rows])

    return Attention(
        query=ordered(found.query),
        key=ordered(found.key),
        value=found.value,
        output=found.output,
        n_heads=found.n_heads,
        scale=found.scale,
        rotary=Rotary(angles.cos(), angles.sin()),
    )


def source(model: Any) -> dict[str, Any]:
    encoder = model.model.encoder
    convolutions = (encoder.conv1, encoder.conv2, encoder.conv3)
    return {"convolutions": [[c.kernel_size[0], c.stride[0]] for c in convolutions]}


class Reference(TransformersReference):
    """Every clip is encoded by itself, without what fills it up."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        convolutions = source(model)["convolutions"]
        self._step = convolutions[0][1] * convolutions[1][1] * convolutions[2][1]
        (w0, s0), (w1, s1), (w2, _) = convolutions
        self._first = w0 + s0 * (w1 - 1) + s0 * s1 * (w2 - 1)

    @torch.no_grad()
    def encode(self, inputs: Inputs) -> dict[str, torch.Tensor]:
        values, lengths = inputs[INPUT_VALUES], inputs[MASK].sum(dim=1).tolist()
        rows = []
        for row, length in zip(values, lengths, strict=True):
            n = min(len(row), self._first + self._step * (length - 1))
            rows.append(self.model.model.encoder(input_values=row[None, :n])[0][0])
        return {"encoder_states": torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)}

    @torch.no_grad()
    def cross(self, inputs: Inputs) -> dict[str, torch.Tensor]:
        start = torch.zeros((len(inputs[MASK]), 1), dtype=torch.int64)
        return cross_outputs(self.model(encoder_outputs=self._encoded(inputs), decoder_input_ids=start, use_cache=True))

    @torch.no_grad()
    def step(self, inputs: Inputs, history: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        encoded = self._encoded(inputs, history.shape[0] // len(inputs[MASK]))
        out = self.model(encoder_outputs=encoded, decoder_input_ids=history, use_cache=False, output_attentions=True)
        return out.logits[:, -1], torch.stack([layer[:, :, -1] for layer in out.cross_attentions], dim=1)

    def _encoded(self, inputs: Inputs, repeats: int = 1) -> Any:
        from transformers.models.moonshine.modeling_moonshine import MoonshineEncoderModelOutput

        states = self.encode(inputs)["encoder_states"]
        return MoonshineEncoderModelOutput(
            last_hidden_state=states.repeat_interleave(repeats, 0),
            attention_mask=inputs[MASK].int().repeat_interleave(repeats, 0),
        )


def generate(model: Any, **options: Any) -> Any:
    """Of one clip, which needs no mask."""
    for name in ("attention_mask", "n_frames"):
        options.pop(name, None)
    return model.generate(**options)
