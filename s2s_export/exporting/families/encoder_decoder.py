"""Pairs of an encoder and a decoder that were trained apart (1907.12461), such as BERT2BERT and RoBERTa with GPT-2.

Encoders: BERT, RoBERTa, XLM-R and CamemBERT. Decoders: the same, and GPT-2, with cross-attention. Where the widths
differ, the encoder's states are projected to the decoder's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...errors import UnsupportedModel
from ..graphs.structure import (
    Attention,
    Block,
    FeedForward,
    HeadTransform,
    Linear,
    Norm,
    PositionTable,
    Stack,
    Transformer,
)
from . import Family
from ._bart_like import activation

MODEL_TYPES = ("encoder-decoder",)

# Model types whose modules have BERT's names; RoBERTa's count positions from after the padding id.
BERT_LIKE = {"bert": False, "roberta": True, "xlm-roberta": True, "camembert": True}


def describe(model: Any) -> Family:
    encoder, decoder = model.encoder, model.decoder
    source, target = encoder.config, decoder.config
    if source.model_type not in BERT_LIKE:
        raise _unsupported("encoder", source.model_type, BERT_LIKE)
    if target.model_type not in DECODERS:
        raise _unsupported("decoder", target.model_type, DECODERS)
    describe_decoder, decoder_norm_first = DECODERS[target.model_type]
    stack, head, transform = describe_decoder(decoder)
    bridge = getattr(model, "enc_to_dec_proj", None)
    structure = Transformer(
        _bert_stack(source, encoder),
        stack,
        norm_first=False,
        decoder_norm_first=decoder_norm_first,
        head=head,
        head_transform=transform,
        bridge=None if bridge is None else Linear.of(bridge),
    )
    return Family("encoder-decoder", structure, _positions(structure.encoder), _positions(stack))


def _unsupported(side: str, found: str, known: Any) -> UnsupportedModel:
    return UnsupportedModel(f"encoder-decoder: the {side} is of type '{found}'; expected one of {', '.join(known)}")


def _positions(stack: Stack) -> int:
    assert isinstance(stack.positions, PositionTable)
    return len(stack.positions.table) - stack.positions.offset


Described = tuple[Stack, Linear, HeadTransform | None]


def _bert_stack(config: Any, module: Any) -> Stack:
    embeddings = module.embeddings
    # Every token has type 0.
    table = embeddings.position_embeddings.weight + embeddings.token_type_embeddings.weight[0]
    padding = config.pad_token_id if BERT_LIKE[config.model_type] else None
    return Stack(
        embedding=embeddings.word_embeddings.weight,
        embedding_scale=1.0,
        positions=PositionTable(table, 0 if padding is None else padding + 1, padding),
        blocks=tuple(_bert_block(config, layer) for layer in module.encoder.layer),
        embedding_norm=Norm.of(embeddings.LayerNorm),
    )


def _bert_block(config: Any, layer: Any) -> Block:
    cross = getattr(layer, "crossattention", None)
    return Block(
        self_attention=_bert_attention(layer.attention),
        self_norm=Norm.of(layer.attention.output.LayerNorm),
        cross_attention=None if cross is None else _bert_attention(cross),
        cross_norm=None if cross is None else Norm.of(cross.output.LayerNorm),
        feed_forward=FeedForward(
            inner=Linear.of(layer.intermediate.dense),
            outer=Linear.of(layer.output.dense),
            activation=activation(config, config.hidden_act),
        ),
        feed_forward_norm=Norm.of(layer.output.LayerNorm),
    )


def _bert_attention(module: Any) -> Attention:
    own = module.self
    return Attention(
        query=Linear.of(own.query),
        key=Linear.of(own.key),
        value=Linear.of(own.value),
        output=Linear.of(module.output.dense),
        n_heads=own.num_attention_heads,
        scale=float(own.attention_head_size) ** -0.5,
    )


def _bert(model: Any) -> Described:
    config = model.config
    predictions = model.cls.predictions
    transform = predictions.transform
    name = activation(config, config.hidden_act)
    return (
        _bert_stack(config, model.bert),
        Linear.of(predictions.decoder),
        HeadTransform(Linear.of(transform.dense), name, Norm.of(transform.LayerNorm)),
    )


def _roberta(model: Any) -> Described:
    head = model.lm_head
    transform = HeadTransform(Linear.of(head.dense), "gelu", Norm.of(head.layer_norm))
    return _bert_stack(model.config, model.roberta), Linear.of(head.decoder), transform


def _gpt2(model: Any) -> Described:
    config, body = model.config, model.transformer
    stack = Stack(
        embedding=body.wte.weight,
        embedding_scale=1.0,
        positions=PositionTable(body.wpe.weight),
        blocks=tuple(_gpt2_block(config, layer) for layer in body.h),
        final_norm=Norm.of(body.ln_f),
    )
    return stack, Linear.of(model.lm_head), None


def _gpt2_block(config: Any, layer: Any) -> Block:
    query, key, value = _columns(layer.attn.c_attn, 3)
    cross = layer.crossattention
    return Block(
        self_attention=_gpt2_attention(layer.attn, query, key, value),
        self_norm=Norm.of(layer.ln_1),
        cross_attention=_gpt2_attention(cross, *_columns(cross.q_attn, 1), *_columns(cross.c_attn, 2)),
        cross_norm=Norm.of(layer.ln_cross_attn),
        feed_forward=FeedForward(
            inner=_columns(layer.mlp.c_fc, 1)[0],
            outer=_columns(layer.mlp.c_proj, 1)[0],
            activation=activation(config, config.activation_function),
        ),
        feed_forward_norm=Norm.of(layer.ln_2),
    )


def _gpt2_attention(module: Any, query: Linear, key: Linear, value: Linear) -> Attention:
    output = _columns(module.c_proj, 1)[0]
    return Attention(query, key, value, output, n_heads=module.num_heads, scale=float(module.scaling))


def _columns(module: Any, n_parts: int) -> list[Linear]:
    """GPT-2's Conv1D, weight [in, out], as equal parts of its outputs."""
    weights, biases = module.weight.T.chunk(n_parts), module.bias.chunk(n_parts)
    return [Linear(weight, bias) for weight, bias in zip(weights, biases, strict=True)]


# The description of a decoder, and whether its blocks are pre-norm.
DECODERS: dict[str, tuple[Callable[[Any], Described], bool]] = {
    "bert": (_bert, False),
    "roberta": (_roberta, False),
    "xlm-roberta": (_roberta, False),
    "camembert": (_roberta, False),
    "gpt2": (_gpt2, True),
}
