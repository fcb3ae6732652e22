"""Tiny random models of six architectures, and a decode state that runs one of them in torch."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import numpy as np
import torch
import transformers
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from s2s_export.runtime.decoding import StepQuery, StepResult

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()

ARCHITECTURES = ("marian", "bart", "m2m100", "mbart", "pegasus", "t5")


@cache
def tiny_model(architecture: str, vocabulary_size: int, seed: int) -> Any:
    """A model with a sharp random distribution: big weights keep candidates further apart than rounding."""
    sizes = {
        "vocab_size": vocabulary_size, "d_model": 16, "encoder_layers": 1, "decoder_layers": 2,
        "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24,
        "max_position_embeddings": 64, "pad_token_id": 1, "eos_token_id": 2, "bos_token_id": 0,
        "decoder_start_token_id": 2, "forced_eos_token_id": None, "init_std": 0.6, "attn_implementation": "eager",
    }  # fmt: skip
    torch.manual_seed(seed)
    if architecture == "marian":
        config = transformers.MarianConfig(**{**sizes, "decoder_start_token_id": 1})
        model = transformers.MarianMTModel(config)
    elif architecture == "bart":
        model = transformers.BartForConditionalGeneration(transformers.BartConfig(**sizes))
    elif architecture == "m2m100":
        model = transformers.M2M100ForConditionalGeneration(transformers.M2M100Config(**sizes))
    elif architecture == "mbart":
        model = transformers.MBartForConditionalGeneration(transformers.MBartConfig(**sizes))
    elif architecture == "pegasus":
        config = transformers.PegasusConfig(
            **{**sizes, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
        )
        model = transformers.PegasusForConditionalGeneration(config)
    else:
        config = transformers.T5Config(
            vocab_size=vocabulary_size, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_decoder_layers=2, num_heads=2,
            pad_token_id=0, eos_token_id=1, decoder_start_token_id=0, initializer_factor=1.5,
            attn_implementation="eager",
        )  # fmt: skip
        model = transformers.T5ForConditionalGeneration(config)
    model.generation_config.forced_eos_token_id = None
    return model.eval()


def padded(sources: list[list[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, sources))
    ids = torch.tensor([source + [pad] * (longest - len(source)) for source in sources])
    mask = torch.tensor([[1] * len(source) + [0] * (longest - len(source)) for source in sources])
    return ids, mask


@cache
def _cache_name(model_class: Any) -> str:
    """`past_key_values` until transformers 5.23, `cache` from 5.24 on, where the old name is dropped by some calls."""
    return "cache" if "cache" in inspect.signature(model_class.forward).parameters else "past_key_values"


class TorchState:
    """Runs a model of transformers with its own cache, as generate() does."""

    def __init__(self, model: Any, sources: list[list[int]], n_beams: int) -> None:
        self._model = model
        ids, mask = padded(sources, model.config.pad_token_id)
        with torch.no_grad():
            encoded = model.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
        self._encoded = encoded.repeat_interleave(n_beams, 0)
        self._mask = mask.repeat_interleave(n_beams, 0)
        self._cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        self.n_sources, self.n_beams, self.vocabulary_size = len(sources), n_beams, model.config.vocab_size
        self.n_steps = 0

    def step(self, tokens: np.ndarray, parents: np.ndarray, query: StepQuery) -> StepResult:
        assert tokens.shape == parents.shape == (self.n_sources, self.n_beams)
        assert tokens.dtype == parents.dtype == np.int64
        rows = parents + np.arange(self.n_sources)[:, None] * self.n_beams
        if self.n_steps:
            self._cache.reorder_cache(torch.from_numpy(rows.ravel()))
        else:
            assert not parents.any()
        self.n_steps += 1
        with torch.no_grad():
            out = self._model(
                encoder_outputs=BaseModelOutput(self._encoded),
                attention_mask=self._mask,
                decoder_input_ids=torch.from_numpy(tokens.reshape(-1, 1)),
                output_attentions=query.attention,
                **{_cache_name(type(self._model)): self._cache},
            )
        logits = out.logits[:, -1].float().reshape(self.n_sources, self.n_beams, -1)
        attention = None
        if query.attention:
            attention = torch.stack([layer[:, :, -1] for layer in out.cross_attentions], 1).numpy()
            attention = attention.reshape(self.n_sources, self.n_beams, *attention.shape[1:])
        return seen_through(query, logits, attention)

    def keep(self, sources: np.ndarray) -> None:
        rows = torch.from_numpy((sources[:, None] * self.n_beams + np.arange(self.n_beams)).ravel())
        self._cache.batch_select_indices(rows)
        self._mask, self._encoded = self._mask[rows], self._encoded[rows]
        self.n_sources = len(sources)


def seen_through(query: StepQuery, logits: torch.Tensor, attention: np.ndarray | None = None) -> StepResult:
    """logits [B, K, V] as a query sees them."""
    log_probs = torch.log_softmax(logits, -1)
    best, ids = log_probs.topk(query.n_candidates)
    probe = None
    if query.probe_ids is not None:
        probe = log_probs.gather(-1, torch.from_numpy(np.ascontiguousarray(query.probe_ids))).numpy()
    return StepResult(
        candidate_ids=ids.numpy(),
        candidate_log_probs=best.numpy(),
        log_normalizer=torch.logsumexp(logits, -1).numpy(),
        probe_log_probs=probe,
        log_probs=log_probs.numpy() if query.dense else None,
        attention=attention,
    )
