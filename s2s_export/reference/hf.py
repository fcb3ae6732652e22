"""A reference model in the clothes of a transformers model, so that `generate` drives it.

Verification decodes this way, and tests hold it against searches that share no code with it. The wrapper adds nothing:
`encode`, `start` and `step` are called as any other search would call them.

What `generate` passes from step to step in place of a K/V cache has changed its name and type between releases
(`past_key_values` until 5.23, `cache` from 5.24 on), so none is passed: with `use_cache=False` every call gets each
row's tokens from the first on, and the wrapper remembers the state after all but the last. A row's predecessor is found
by its tokens; where there is none, the model is stepped from the start. Either way the logits are those of the tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers import __version__ as transformers_version
from transformers.modeling_outputs import Seq2SeqLMOutput
from transformers.utils import ModelOutput

from ..errors import BackendError
from .interface import EncoderDecoder, select_rows


class WrapperConfig(PretrainedConfig):
    model_type = "s2s-reference"


@dataclass
class MemoryOutput(ModelOutput):
    """A memory's tensors in their order. `generate` repeats each along its first dimension, once per beam."""

    last_hidden_state: Tensor | None = None
    second: Tensor | None = None
    third: Tensor | None = None


@dataclass(frozen=True)
class Known:
    """What was fed so far: tokens [R, T], the source's number of each row [R], and the state after them."""

    memory: tuple[Tensor, ...]
    source: Tensor
    tokens: Tensor
    state: Any


class Encoder(nn.Module):
    main_input_name = "input_ids"

    def __init__(self, model: EncoderDecoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **_: Any) -> MemoryOutput:
        return MemoryOutput(*self.model.encode(input_ids, attention_mask))


class GenerateWrapper(PreTrainedModel, GenerationMixin):
    """`GenerateWrapper(model).generate(input_ids=..., attention_mask=..., num_beams=4)`. For one thread at a time."""

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
        self._known: Known | None = None

    def get_encoder(self, modality: str | None = None) -> Encoder:
        return self.encoder

    def generate(self, *arguments: Any, **options: Any) -> Any:
        self._known = None
        try:
            return super().generate(*arguments, **{**options, "use_cache": False})
        finally:
            self._known = None

    def forward(self, decoder_input_ids: Tensor, encoder_outputs: MemoryOutput, **_: Any) -> Seq2SeqLMOutput:
        """decoder_input_ids [R, T]: each row's tokens from the first on. Returns logits [R, N, V] after the last N.

        N are the tokens that were not fed before; `generate` reads the last one's.
        Raises BackendError where `generate` feeds something else than that.
        """
        known, memory = self._known, encoder_outputs.to_tuple()
        if known is None or known.memory[0] is not memory[0]:
            known = self._begin(memory)
        elif decoder_input_ids.shape[1] <= known.tokens.shape[1]:
            raise BackendError(
                f"generate() of transformers {transformers_version} fed {decoder_input_ids.shape[1]} tokens a row "
                f"after {known.tokens.shape[1]}, expected each row's tokens from the first on; "
                "use another release of transformers"
            )
        elif (rows := _predecessors(known, decoder_input_ids)) is None:
            known = self._begin(memory)
        else:
            known = replace(known, state=select_rows(known.state, rows))
        state = known.state
        logits = []
        for token in decoder_input_ids[:, known.tokens.shape[1] :].T:
            step_logits, state, _weights = self.model.step(token, state)
            logits.append(step_logits)
        self._known = replace(known, tokens=decoder_input_ids, state=state)
        return Seq2SeqLMOutput(logits=torch.stack(logits, dim=1))

    def _begin(self, memory: tuple[Tensor, ...]) -> Known:
        changes = [(tensor[1:] != tensor[:-1]).flatten(1).any(dim=1) for tensor in memory]
        first = torch.zeros(1, dtype=torch.bool, device=memory[0].device)
        source = torch.cat([first, torch.stack(changes).any(dim=0)]).cumsum(0)  # beams of a source stand together
        tokens = torch.zeros((len(source), 0), dtype=torch.int64, device=source.device)
        return Known(memory, source, tokens, self.model.start(self.model.memory_class(*memory)))


def _predecessors(known: Known, tokens: Tensor) -> Tensor | None:
    """For each row of tokens [R, T + n] the row of the same source that held its first T; None if one has none."""
    n_rows, length = known.tokens.shape
    held = torch.cat([known.source[:, None], known.tokens], dim=1)
    wanted = torch.cat([known.source[:, None], tokens[:, :length]], dim=1)
    _, number = torch.cat([held, wanted]).unique(dim=0, return_inverse=True)
    row_of = torch.full((2 * n_rows,), -1, device=number.device)
    row_of[number[:n_rows]] = torch.arange(n_rows, device=number.device)
    rows = row_of[number[n_rows:]]
    return None if bool((rows < 0).any()) else rows
