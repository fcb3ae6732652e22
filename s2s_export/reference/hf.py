"""A reference model in the clothes of a transformers model, so that `generate` drives it.

Training scores its validation set this way, and tests hold it against this project's own search, which shares no code
with it. The wrapper adds nothing: `encode`, `start` and `step` are called as any other search would call them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import Seq2SeqLMOutput
from transformers.utils import ModelOutput

from .interface import EncoderDecoder, select_rows


class WrapperConfig(PretrainedConfig):
    model_type = "s2s-reference"


@dataclass
class MemoryOutput(ModelOutput):
    """A memory's tensors in their order. `generate` repeats each along its first dimension, once per beam."""

    last_hidden_state: Tensor | None = None
    second: Tensor | None = None
    third: Tensor | None = None


@dataclass
class Steps:
    """What `generate` passes from step to step in place of a K/V cache."""

    state: Any
    length: int

    def get_seq_length(self) -> int:
        return self.length


class Encoder(nn.Module):
    main_input_name = "input_ids"

    def __init__(self, model: EncoderDecoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **_: Any) -> MemoryOutput:
        return MemoryOutput(*self.model.encode(input_ids, attention_mask))


class GenerateWrapper(PreTrainedModel, GenerationMixin):
    """`GenerateWrapper(model).generate(input_ids=..., attention_mask=..., num_beams=4)`."""

    config_class = WrapperConfig
    main_input_name = "input_ids"

    def __init__(self, model: EncoderDecoder) -> None:
        config = model.config
        special = {
            "pad_token_id": config.pad_token_id,
            "bos_token_id": config.bos_token_id,
            "eos_token_id": config.eos_token_id,
            "decoder_start_token_id": config.bos_token_id,
        }
        super().__init__(WrapperConfig(is_encoder_decoder=True, vocab_size=config.vocab_size, **special))
        self.generation_config = GenerationConfig(max_length=config.max_target_length, **special)
        self.model = model
        self.encoder = Encoder(model)

    def get_encoder(self, modality: str | None = None) -> Encoder:
        return self.encoder

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # `Steps` come from the first forward call

    def _reorder_cache(self, past_key_values: Steps, beam_idx: Tensor) -> Steps:
        return Steps(select_rows(past_key_values.state, beam_idx), past_key_values.length)

    def forward(
        self,
        decoder_input_ids: Tensor,
        encoder_outputs: MemoryOutput,
        past_key_values: Steps | None = None,
        **_: Any,
    ) -> Seq2SeqLMOutput:
        if past_key_values is None:
            memory = self.model.memory_class(*encoder_outputs.to_tuple())
            past_key_values = Steps(self.model.start(memory), 0)
        state, logits = past_key_values.state, []
        for token in decoder_input_ids.T:  # the whole prompt at first, then the one new token
            step_logits, state, _weights = self.model.step(token, state)
            logits.append(step_logits)
        steps = Steps(state, past_key_values.length + len(logits))
        return Seq2SeqLMOutput(logits=torch.stack(logits, dim=1), past_key_values=steps)
