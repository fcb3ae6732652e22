"""Models whose encoder has one input, of one size, and no mask: of windows of sound, and of pictures."""

from __future__ import annotations

from typing import Any

import torch

from ...runtime.sources import MASK
from ..parity import Inputs, TransformersReference, cross_outputs


class OneInputReference(TransformersReference):
    """Encoding takes a hundred times as long as a step, so that what was encoded last is kept."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self._last: tuple[torch.Tensor, torch.Tensor] | None = None

    def encode(self, inputs: Inputs) -> dict[str, torch.Tensor]:
        ((name, values),) = ((name, value) for name, value in inputs.items() if name != MASK)
        if self._last is None or self._last[0] is not values:
            self._last = values, super().encode({name: values})["encoder_states"]
        return {"encoder_states": self._last[1]}

    @torch.no_grad()
    def cross(self, inputs: Inputs) -> dict[str, torch.Tensor]:
        states = self.encode(inputs)["encoder_states"]
        start = torch.zeros((len(states), 1), dtype=torch.int64)
        return cross_outputs(self.model(encoder_outputs=(states,), decoder_input_ids=start, use_cache=True))

    @torch.no_grad()
    def step(self, inputs: Inputs, history: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        states = self.encode(inputs)["encoder_states"]
        out = self.model(
            encoder_outputs=(states.repeat_interleave(history.shape[0] // states.shape[0], 0),),
            decoder_input_ids=history,
            use_cache=False,
            output_attentions=True,
        )
        return out.logits[:, -1], self.weights(out.cross_attentions)

    def weights(self, layers: Any) -> torch.Tensor:
        """Cross-attention weights [R,L,H,S] of the last token, from those [R,H,T,S] of each layer."""
        return torch.stack([layer[:, :, -1] for layer in layers], dim=1)
