"""transformers' `generate` over a reference model, against search that shares no code with it."""

from __future__ import annotations

import itertools

import pytest
import torch

from s2s_export.reference import ReferenceConfig, build
from s2s_export.reference.hf import GenerateWrapper

LENGTH, V = 4, 5  # small enough to score every hypothesis


@torch.no_grad()
def test_greedy_is_the_best_token_at_each_step(model, batch):
    input_ids, mask, _ = batch
    ids = GenerateWrapper(model).generate(input_ids=input_ids, attention_mask=mask, do_sample=False)
    state = model.start(model.encode(input_ids, mask))
    token, done, expected = torch.ones(4, dtype=torch.int64), torch.zeros(4, dtype=torch.bool), []
    for _ in range(ids.shape[1]):
        expected.append(token)
        logits, state, _ = model.step(token, state)
        token = torch.where(done, 0, logits.argmax(dim=-1))
        done |= token == 2
    assert ids.tolist() == torch.stack(expected, dim=1).tolist()


@pytest.mark.parametrize("name", ["lstm", "gru", "attention", "transformer"])
@torch.no_grad()
def test_a_wide_beam_finds_what_exhaustive_search_finds(name):
    torch.manual_seed(3)
    model = build(ReferenceConfig(name, V, d_model=8, **({"heads": 2} if name == "transformer" else {}))).eval()
    for parameter in model.parameters():
        parameter.mul_(3)
    source = torch.tensor([[3, 4, 3, 2]])
    # No end token before the last position, so that all hypotheses are equally long: V ** 3 of them.
    hypotheses = torch.tensor(list(itertools.product([0, 1, 3, 4], repeat=LENGTH - 1)))
    fed = torch.cat([torch.ones(len(hypotheses), 1, dtype=torch.int64), hypotheses[:, :-1]], dim=1)
    repeated = source.expand(len(hypotheses), -1)
    log_probs = model(repeated, torch.ones_like(repeated), fed).log_softmax(dim=-1)
    scores = log_probs.gather(2, hypotheses[:, :, None])[:, :, 0].sum(dim=1)
    best = scores.topk(3)
    found = GenerateWrapper(model).generate(
        input_ids=source,
        attention_mask=torch.ones_like(source),
        num_beams=len(hypotheses),
        num_return_sequences=3,
        max_length=LENGTH,
        suppress_tokens=[2],
        length_penalty=1.0,
        renormalize_logits=False,
        return_dict_in_generate=True,
        output_scores=True,
    )
    assert found.sequences[:, 1:].tolist() == hypotheses[best.indices].tolist()
    torch.testing.assert_close(found.sequences_scores * (LENGTH - 1), best.values, atol=1e-4, rtol=0)


@torch.no_grad()
def test_batched_beams_equal_single_ones(model, batch):
    input_ids, mask, _ = batch
    wrapper = GenerateWrapper(model)
    options = {"num_beams": 3, "return_dict_in_generate": True, "output_scores": True, "max_length": 12}
    together = wrapper.generate(input_ids=input_ids, attention_mask=mask, **options)
    for row, length in enumerate(mask.sum(dim=1).tolist()):
        cut = slice(row, row + 1)
        alone = wrapper.generate(input_ids=input_ids[cut, :length], attention_mask=mask[cut, :length], **options)
        n = alone.sequences.shape[1]
        assert together.sequences[row, :n].tolist() == alone.sequences[0].tolist()
        torch.testing.assert_close(together.sequences_scores[cut], alone.sequences_scores, atol=1e-4, rtol=0)
