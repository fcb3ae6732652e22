"""The quality of translations: loss with teacher forcing, and decoded text compared with the reference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import sacrebleu
import torch

from ..exporting.checkpoint import quiet_transformers
from ..reference.hf import GenerateWrapper
from ..reference.interface import EncoderDecoder
from .corpus import Pair
from .data import Batch, Example, collate, cut_batches
from .tokenizer import Tokenizer

EVALUATION_TOKENS = 8192  # tokens in a batch with padding; larger than in training, since there are no gradients


@dataclass(frozen=True)
class Scores:
    """exact_match: share of translations that equal their reference, 0 to 1. bleu, chrf: of sacrebleu, 0 to 100."""

    exact_match: float
    bleu: float
    chrf: float
    n: int


def score_texts(translations: Sequence[str], references: Sequence[str]) -> Scores:
    """Exact match, BLEU (Papineni et al. 2002) and chrF (Popović 2015) of a corpus."""
    if not references:
        return Scores(math.nan, math.nan, math.nan, 0)
    exact = sum(a == b for a, b in zip(translations, references, strict=True)) / len(references)
    bleu = sacrebleu.corpus_bleu(list(translations), [list(references)]).score
    chrf = sacrebleu.corpus_chrf(list(translations), [list(references)]).score
    return Scores(exact, bleu, chrf, len(references))


def loss_sum(logits: torch.Tensor, labels: torch.Tensor, pad: int, label_smoothing: float = 0.0) -> torch.Tensor:
    """Negative log-likelihood in nats, summed over labels [B, T] that are not padding; logits [B, T, V].

    With smoothing e, the target distribution is (1 - e) * label + e * uniform (1512.00567, section 7).
    """
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=pad, reduction="sum", label_smoothing=label_smoothing
    )


@torch.no_grad()
def mean_loss(model: EncoderDecoder, examples: Sequence[Example], device: torch.device) -> float:
    """Nats per target token with teacher forcing, without smoothing or dropout. Restores the model's mode."""
    training = model.training
    model.eval()
    total, n_tokens, pad = 0.0, 0, model.config.pad_token_id
    for batch in evaluation_batches(model, examples):
        batch = batch.to(device)
        logits = model(batch.input_ids, batch.source_mask, batch.decoder_input_ids)
        total += float(loss_sum(logits, batch.labels, pad))
        n_tokens += int((batch.labels != pad).sum())
    model.train(training)
    return total / max(1, n_tokens)


def translate(
    model: EncoderDecoder, tokenizer: Tokenizer, pairs: Sequence[Pair], device: torch.device, num_beams: int = 1
) -> list[str]:
    """The sources decoded by transformers' `generate`, in the order of the pairs. Targets are not used."""
    training = model.training
    model.eval()
    wrapper = GenerateWrapper(model)
    examples = [Example(tokenizer.encode(pair.source), tokenizer.encode(pair.target)) for pair in pairs]
    order = sorted(range(len(pairs)), key=lambda i: len(examples[i].source))
    texts = [""] * len(pairs)
    for rows in cut_batches(examples, order, EVALUATION_TOKENS // num_beams):
        batch = collate([examples[i] for i in rows], model.config.pad_token_id, model.config.bos_token_id).to(device)
        with quiet_transformers():
            ids = wrapper.generate(
                input_ids=batch.input_ids, attention_mask=batch.source_mask, num_beams=num_beams, do_sample=False
            )
        for row, tokens in zip(rows, ids.tolist(), strict=True):
            texts[row] = tokenizer.decode(tokens)
    model.train(training)
    return texts


def evaluation_batches(model: EncoderDecoder, examples: Sequence[Example]) -> list[Batch]:
    """All examples in batches of similar source length."""
    order = sorted(range(len(examples)), key=lambda i: (len(examples[i].source), len(examples[i].target)))
    config = model.config
    return [
        collate([examples[i] for i in rows], config.pad_token_id, config.bos_token_id)
        for rows in cut_batches(examples, order, EVALUATION_TOKENS)
    ]
