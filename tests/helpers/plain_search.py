"""Beam search of one source, written out in lists: slow, and sharing nothing with what it is compared with.

The rules are those of transformers' generate() from 4.50 on: twice as many candidates as beams, only the best half may
finish, scores divided by length**length_penalty where a hypothesis finishes, prompt not counted. No processors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Found:
    token_ids: list[int]
    score: float


def plain_search(
    next_log_probs: Callable[[list[list[int]]], torch.Tensor],
    prompt: Sequence[int],
    eos: int,
    num_beams: int,
    max_new_tokens: int,
    length_penalty: float = 1.0,
    early_stopping: bool = False,
    num_return_sequences: int = 1,
) -> list[Found]:
    """next_log_probs: [K, V] after each of K histories of equal length, prompt included. Best hypotheses first."""
    if num_beams == 1:
        return [_greedy(next_log_probs, prompt, eos, max_new_tokens, length_penalty)]
    beams = [(0.0, list(prompt))]
    finished: list[Found] = []
    for length in range(1, max_new_tokens + 1):
        log_probs = next_log_probs([tokens for _, tokens in beams])
        candidates = sorted(
            (
                (total + float(log_probs[row, token]), [*tokens, token])
                for row, (total, tokens) in enumerate(beams)
                for token in range(log_probs.shape[1])
            ),
            key=lambda candidate: -candidate[0],
        )[: 2 * num_beams]
        is_last = length == max_new_tokens
        scale = length**length_penalty
        for total, tokens in candidates[:num_beams]:
            if tokens[-1] == eos or is_last:
                finished.append(Found(tokens, total / scale))
        finished = sorted(finished, key=lambda hypothesis: -hypothesis.score)[:num_beams]
        beams = [candidate for candidate in candidates if candidate[1][-1] != eos][:num_beams]
        is_full = len(finished) == num_beams
        if is_last or not beams or (is_full and (early_stopping or beams[0][0] / scale <= finished[-1].score)):
            break
    return finished[:num_return_sequences]


def _greedy(
    next_log_probs: Callable[[list[list[int]]], torch.Tensor],
    prompt: Sequence[int],
    eos: int,
    max_new_tokens: int,
    length_penalty: float,
) -> Found:
    tokens, total = list(prompt), 0.0
    for _ in range(max_new_tokens):
        best = next_log_probs([tokens])[0].max(dim=0)
        tokens.append(int(best.indices))
        total += float(best.values)
        if tokens[-1] == eos:
            break
    return Found(tokens, total / (len(tokens) - len(prompt)) ** length_penalty)


def search_reference(model: Any, source: list[int], **options: Any) -> list[Found]:
    """`plain_search` over a reference model, by teacher forcing of whole histories."""
    ids = torch.tensor([source])

    @torch.no_grad()
    def next_log_probs(histories: list[list[int]]) -> torch.Tensor:
        rows = ids.expand(len(histories), -1)
        return model(rows, torch.ones_like(rows), torch.tensor(histories))[:, -1].float().log_softmax(dim=-1)

    return plain_search(next_log_probs, [model.config.bos_token_id], model.config.eos_token_id, **options)


def search_transformers(model: Any, source: list[int], **options: Any) -> list[Found]:
    """`plain_search` over a model of transformers, without its cache."""
    ids = torch.tensor([source])

    @torch.no_grad()
    def next_log_probs(histories: list[list[int]]) -> torch.Tensor:
        rows = ids.expand(len(histories), -1)
        out = model(
            input_ids=rows,
            attention_mask=torch.ones_like(rows),
            decoder_input_ids=torch.tensor(histories),
            use_cache=False,
        )
        return out.logits[:, -1].float().log_softmax(dim=-1)

    return plain_search(
        next_log_probs, [model.config.decoder_start_token_id], model.generation_config.eos_token_id, **options
    )
