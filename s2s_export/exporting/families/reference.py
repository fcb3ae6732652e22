"""This project's own reference models (s2s_export/reference), exported like any Hugging Face checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ...reference.attention import AttentionEncoderDecoder
from ...reference.gru import GRUEncoderDecoder
from ...reference.hf import GenerateWrapper
from ...reference.interface import EncoderDecoder
from ...reference.lstm import LSTMEncoderDecoder
from ...reference.transformer import TransformerEncoderDecoder
from ...runtime.sources import MASK
from ...runtime.sources.token_ids import INPUT_IDS
from ..graphs.recurrent import Recurrent, Score, Unit
from ..graphs.structure import Attention, Block, FeedForward, Linear, Norm, PositionTable, Stack, Transformer
from . import Family

MODEL_TYPES = ("s2s-lstm", "s2s-gru", "s2s-attention", "s2s-transformer")


def load_model(path: Path, config: dict[str, Any]) -> GenerateWrapper:
    from ...reference.checkpoint import load_checkpoint

    return GenerateWrapper(load_checkpoint(path).model()).eval()


def describe(wrapper: GenerateWrapper) -> Family:
    model = wrapper.model
    describers: dict[type, Callable[[Any], Any]] = {
        LSTMEncoderDecoder: _lstm,
        GRUEncoderDecoder: _gru,
        AttentionEncoderDecoder: _attention,
        TransformerEncoderDecoder: _transformer,
    }
    config = model.config
    return Family(config.model, describers[type(model)](model), config.max_source_length, config.max_target_length)


def _lstm(model: LSTMEncoderDecoder) -> Recurrent:
    return Recurrent(
        model.source_embedding.weight,
        model.target_embedding.weight,
        encoder=tuple((unit,) for unit in _units(model.encoder)),
        decoder=_units(model.decoder),
        output=Linear.of(model.output),
        reverse_source=bool(model.config.reverse_source),
    )


def _gru(model: GRUEncoderDecoder) -> Recurrent:
    return Recurrent(
        model.source_embedding.weight,
        model.target_embedding.weight,
        encoder=tuple((unit,) for unit in _units(model.encoder)),
        decoder=_units(model.decoder),
        output=Linear.of(model.output),
        summary=Linear.of(model.summary),
        initial=Linear.of(model.initial),
        readout=Linear.of(model.readout),
    )


def _attention(model: AttentionEncoderDecoder) -> Recurrent:
    additive = model.config.score == "additive"
    return Recurrent(
        model.source_embedding.weight,
        model.target_embedding.weight,
        encoder=tuple(zip(_units(model.encoder), _units(model.encoder, "_reverse"), strict=True)),
        decoder=tuple(_unit(cell, str(model.config.cell), "") for cell in model.decoder),
        output=Linear.of(model.output),
        score=Score(
            query=Linear.of(model.query) if additive else None,
            energy=Linear.of(model.energy) if additive else None,
            key=Linear.of(model.key) if model.config.score != "dot" else None,
        ),
        initial=Linear.of(model.initial),
        readout=Linear.of(model.readout),
    )


def _units(module: Any, direction: str = "") -> tuple[Unit, ...]:
    kind = type(module).__name__.lower()
    return tuple(_unit(module, kind, f"_l{i}{direction}") for i in range(module.num_layers))


def _unit(module: Any, kind: str, suffix: str) -> Unit:
    parts = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    return Unit(kind, *(getattr(module, part + suffix) for part in parts))


def _transformer(model: TransformerEncoderDecoder) -> Transformer:
    return Transformer(
        _stack(model, "source", model.encoder, "encoder_norm"),
        _stack(model, "target", model.decoder, "decoder_norm"),
        norm_first=model.config.norm == "pre",
        head=Linear.of(model.output),
    )


def _stack(model: TransformerEncoderDecoder, side: str, layers: Any, final: str) -> Stack:
    learned = model.config.positions == "learned"
    return Stack(
        embedding=getattr(model, f"{side}_embedding").weight,
        embedding_scale=float(model.config.d_model) ** 0.5,
        positions=PositionTable(getattr(model, f"{side}_positions").weight if learned else model.sinusoids),
        blocks=tuple(_block(layer) for layer in layers),
        final_norm=Norm.of(getattr(model, final)) if hasattr(model, final) else None,
    )


def _block(layer: Any) -> Block:
    crossed = hasattr(layer, "cross_attention")
    return Block(
        self_attention=_heads(layer.self_attention),
        self_norm=Norm.of(layer.self_norm),
        cross_attention=_heads(layer.cross_attention) if crossed else None,
        cross_norm=Norm.of(layer.cross_norm) if crossed else None,
        feed_forward=FeedForward(Linear.of(layer.ff_in), Linear.of(layer.ff_out), "relu"),
        feed_forward_norm=Norm.of(layer.ff_norm),
    )


def _heads(module: Any) -> Attention:
    query, key, value, output = (Linear.of(getattr(module, name)) for name in ("query", "key", "value", "output"))
    scale = (query.weight.shape[0] // module.heads) ** -0.5
    return Attention(query, key, value, output, n_heads=module.heads, scale=scale)


Inputs = Mapping[str, torch.Tensor]  # of the encoder, by name


class Reference:
    """A reference model seen as the three graphs (`parity.Reference`)."""

    def __init__(self, wrapper: GenerateWrapper) -> None:
        self.model: EncoderDecoder = wrapper.model

    @torch.no_grad()
    def encode(self, inputs: Inputs) -> dict[str, torch.Tensor]:
        memory = self.model.encode(inputs[INPUT_IDS], inputs[MASK])
        names = {
            LSTMEncoderDecoder: {"final_hidden": "hidden", "final_cell": "cell"},
            GRUEncoderDecoder: {"context": "context"},
            AttentionEncoderDecoder: {"encoder_states": "annotations"},
            TransformerEncoderDecoder: {"encoder_states": "states"},
        }[type(self.model)]
        return {output: getattr(memory, field) for output, field in names.items()}

    @torch.no_grad()
    def cross(self, inputs: Inputs) -> dict[str, torch.Tensor]:
        state = self.model.start(self.model.encode(inputs[INPUT_IDS], inputs[MASK]))
        found: dict[str, torch.Tensor] = {}
        for name in ("hidden", "cell", "cross_keys", "cross_values"):
            value: Any = getattr(state, name, None)
            for i in range(0 if value is None else value.shape[1]):
                found[f"{name.removesuffix('s')}.{i}"] = value[:, i]
        if isinstance(self.model, AttentionEncoderDecoder) and self.model.config.score != "dot":
            found["cross_key.0"] = state.keys
        return found

    @torch.no_grad()
    def step(self, inputs: Inputs, history: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        ids, mask = inputs[INPUT_IDS], inputs[MASK]
        repeats = history.shape[0] // ids.shape[0]
        state = self.model.start(
            self.model.encode(ids.repeat_interleave(repeats, 0), mask.repeat_interleave(repeats, 0))
        )
        for token in history.T:
            logits, state, weights = self.model.step(token, state)
        return logits, weights


def generate(wrapper: GenerateWrapper, **options: Any) -> Any:
    return wrapper.generate(**options)
