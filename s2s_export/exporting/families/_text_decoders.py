"""Decoders with cross-attention that were trained, or can be, without an encoder of their own.

BERT, RoBERTa, XLM-R, CamemBERT and GPT-2; BART's, mBART's and TrOCR's decoders. `DECODERS` says how each is described.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..graphs.structure import Attention, Block, FeedForward, HeadTransform, Linear, Norm, PositionTable, Stack
from ._bart_like import activation, embedding_scale
from ._bart_like import block as bart_block

# Model types whose modules have BERT's names; RoBERTa's count positions from after the padding id.
BERT_LIKE = {"bert": False, "roberta": True, "xlm-roberta": True, "camembert": True}


def n_positions(stack: Stack) -> int:
    """The longest sequence that a stack with a table of positions takes."""
    assert isinstance(stack.positions, PositionTable)
    return len(stack.positions.table) - stack.positions.offset


Described = tuple[Stack, Linear, HeadTransform | None]


def bert_stack(config: Any, module: Any) -> Stack:
    embeddings = module.embeddings
    # Every token has type 0.
    table = embeddings.position_embeddings.weight + embeddings.token_type_embeddings.weight[0]
    padding = config.pad_token_id if BERT_LIKE.get(config.model_type) else None
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
        bert_stack(config, model.bert),
        Linear.of(predictions.decoder),
        HeadTransform(Linear.of(transform.dense), name, Norm.of(transform.LayerNorm)),
    )


def _roberta(model: Any) -> Described:
    head = model.lm_head
    transform = HeadTransform(Linear.of(head.dense), "gelu", Norm.of(head.layer_norm))
    return bert_stack(model.config, model.roberta), Linear.of(head.decoder), transform


def _gpt2(model: Any) -> Described:
    config, body = model.config, model.transformer
    stack = Stack(
        embedding=body.wte.weight,
        embedding_scale=1.0,
        positions=PositionTable(body.wpe.weight),
        blocks=tuple(gpt2_block(config, layer) for layer in body.h),
        final_norm=Norm.of(body.ln_f),
    )
    return stack, Linear.of(model.lm_head), None


def gpt2_block(config: Any, layer: Any) -> Block:
    query, key, value = _columns(layer.attn.c_attn, 3)
    cross = getattr(layer, "crossattention", None)
    return Block(
        self_attention=_gpt2_attention(layer.attn, query, key, value),
        self_norm=Norm.of(layer.ln_1),
        cross_attention=(
            None if cross is None else _gpt2_attention(cross, *_columns(cross.q_attn, 1), *_columns(cross.c_attn, 2))
        ),
        cross_norm=None if cross is None else Norm.of(layer.ln_cross_attn),
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


def _bart(model: Any) -> Described:
    return _bart_stack(model.config, model.model.decoder), Linear.of(model.lm_head), None


def _trocr(model: Any) -> Described:
    return _bart_stack(model.config, model.model.decoder), Linear.of(model.output_projection), None


def _bart_stack(config: Any, module: Any) -> Stack:
    """Position 0 is row 2 of a table that was learned; one that is computed counts from after the padding id."""
    positions = module.embed_positions
    if getattr(config, "use_learned_position_embeddings", True):
        table = PositionTable(positions.weight, positions.offset)
    else:
        if positions.weights.is_meta:  # transformers 5 leaves them without values when it loads a checkpoint
            positions.weights = positions.get_embedding(*positions.weights.shape, config.pad_token_id)
        table = PositionTable(positions.weights, config.pad_token_id + 1, config.pad_token_id)
    norms = [getattr(module, name, None) for name in ("layernorm_embedding", "layer_norm")]
    return Stack(
        embedding=module.embed_tokens.weight,
        embedding_scale=embedding_scale(module),
        positions=table,
        blocks=tuple(bart_block(config, layer) for layer in module.layers),
        embedding_norm=None if norms[0] is None else Norm.of(norms[0]),
        final_norm=None if norms[1] is None else Norm.of(norms[1]),
    )


# The description of a decoder, and whether its blocks are pre-norm.
DECODERS: dict[str, tuple[Callable[[Any], Described], bool]] = {
    "bert": (_bert, False),
    "roberta": (_roberta, False),
    "xlm-roberta": (_roberta, False),
    "camembert": (_roberta, False),
    "gpt2": (_gpt2, True),
    "bart": (_bart, False),
    "mbart": (_bart, True),
    "trocr": (_trocr, False),
}
