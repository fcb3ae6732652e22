"""Switch Transformers (2101.03961): T5 with mixtures of experts, of which each token goes to one.

An expert takes `expert_capacity` tokens of a source at most, as in transformers. A step of `generate()` is one token,
so no expert of the decoder is ever full; a prompt of more than `expert_capacity` tokens is where the two can differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ...errors import UnsupportedModel
from ...runtime.sources import MASK
from ...runtime.sources.token_ids import INPUT_IDS
from .. import parity
from . import Family
from ._t5_like import relative_positions, transformer

MODEL_TYPES = ("switch_transformers",)


def describe(model: Any) -> Family:
    config = model.config
    if config.router_dtype != "float32":
        raise UnsupportedModel(f"switch_transformers: router_dtype is '{config.router_dtype}'; only 'float32' is exact")
    encoder, decoder = model.encoder.block, model.decoder.block
    structure = transformer(
        model,
        encoder_positions=relative_positions(config, encoder[0].layer[0].SelfAttention, bidirectional=True),
        decoder_positions=relative_positions(config, decoder[0].layer[0].SelfAttention, bidirectional=False),
        scales_output=bool(config.tie_word_embeddings),
    )
    return Family("switch_transformers", structure, None, None)


class Reference(parity.TransformersReference):
    """As `generate()` computes: the encoder first, then a token at a time, since experts count the tokens of a call."""

    @torch.no_grad()
    def cross(self, inputs: parity.Inputs) -> dict[str, torch.Tensor]:
        start = torch.zeros((inputs[MASK].shape[0], 1), dtype=torch.int64)
        return parity.cross_outputs(next(self._outputs(inputs, start)))

    @torch.no_grad()
    def step(self, inputs: parity.Inputs, history: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        repeats = history.shape[0] // inputs[MASK].shape[0]
        repeated = {name: value.repeat_interleave(repeats, 0) for name, value in inputs.items()}
        for out in self._outputs(repeated, history):
            last = out
        weights = torch.stack([layer[:, :, -1] for layer in last.cross_attentions], dim=1)
        return last.logits[:, -1], weights

    def _outputs(self, inputs: parity.Inputs, tokens: torch.Tensor) -> Iterator[Any]:
        """What the model returns after each of tokens [R,T]."""
        mask = inputs[MASK]
        states = self.model.get_encoder()(input_ids=inputs[INPUT_IDS], attention_mask=mask)
        cache = None
        for token in tokens.T:
            out = self.model(
                encoder_outputs=states, attention_mask=mask, decoder_input_ids=token[:, None], past_key_values=cache,
                use_cache=True, output_attentions=True,
            )  # fmt: skip
            cache = out.past_key_values
            yield out
