"""transformers' `generate` over a reference model, against searches that share no code with it."""

from __future__ import annotations

import itertools

import pytest
import torch
from decoding_models import tiny_model
from plain_search import search_reference, search_transformers

from s2s_export.errors import BackendError
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


SEARCHES = [
    {"num_beams": 1},
    {"num_beams": 4, "num_return_sequences": 3},
    {"num_beams": 3, "length_penalty": 0.0, "early_stopping": True},
    {"num_beams": 5, "length_penalty": 2.0},
]


def by_generate(model, source, **options):
    ids = torch.tensor([source])
    with torch.no_grad():
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            return_dict_in_generate=True,
            output_scores=True,
            do_sample=False,
            **options,
        )
    return out.sequences.tolist(), getattr(out, "sequences_scores", None)


def agree(found, model, source, **options):
    sequences, scores = by_generate(model, source, **options)
    assert len(found) == len(sequences)
    for i, (hypothesis, sequence) in enumerate(zip(found, sequences, strict=True)):
        n = len(hypothesis.token_ids)
        assert hypothesis.token_ids == sequence[:n] and len(set(sequence[n:])) <= 1
        assert scores is None or hypothesis.score == pytest.approx(float(scores[i]), abs=1e-4)


@pytest.mark.parametrize("options", SEARCHES)
@pytest.mark.parametrize("architecture", ["marian", "t5", "bart"])
def test_the_plain_search_is_generates(architecture, options):
    """Else what it says of other models would be worth nothing."""
    for seed in range(3):
        model = tiny_model(architecture, 31, seed)
        source = [5 + seed, 9, 4, 7, model.generation_config.eos_token_id]
        agree(search_transformers(model, source, max_new_tokens=9, **options), model, source, max_new_tokens=9,
              **options)  # fmt: skip


@pytest.mark.parametrize("options", SEARCHES)
def test_generate_drives_the_wrapper_as_the_plain_search_drives_the_model(model, options):
    source = [3, 8, 5, 20, 2]
    agree(search_reference(model, source, max_new_tokens=9, **options), GenerateWrapper(model).eval(), source,
          max_new_tokens=9, **options)  # fmt: skip


def test_steps_are_computed_once(model):
    """A prefix is remembered: with the histories of a beam search every token is fed once a row."""
    wrapper, n_steps, step = GenerateWrapper(model).eval(), 0, model.step

    def counted(*arguments):
        nonlocal n_steps
        n_steps += 1
        return step(*arguments)

    model.step = counted
    by_generate(wrapper, [3, 8, 5, 2], num_beams=4, max_new_tokens=8, min_new_tokens=8)
    assert n_steps == 8


def test_equal_prefixes_of_different_sources_are_not_mixed_up(model):
    ids = torch.tensor([[3, 8, 5, 2], [9, 4, 2, 0], [3, 8, 5, 2]])
    with torch.no_grad():
        found = GenerateWrapper(model).eval().generate(
            input_ids=ids, attention_mask=(ids != 0).long(), num_beams=3, max_new_tokens=6, do_sample=False
        )  # fmt: skip
    for row, source in zip(found.tolist(), ids.tolist(), strict=True):
        best = search_reference(model, [i for i in source if i], num_beams=3, max_new_tokens=6)[0].token_ids
        assert row[: len(best)] == best


def test_single_tokens_in_place_of_histories_are_refused(model):
    """What a release would feed that carried its state elsewhere; the tokens would be wrong."""
    wrapper, ids = GenerateWrapper(model).eval(), torch.tensor([[3, 8, 5, 2]])
    encoded = wrapper.encoder(ids, torch.ones_like(ids))
    wrapper(decoder_input_ids=torch.tensor([[1]]), encoder_outputs=encoded)
    with pytest.raises(BackendError, match=r"fed 1 tokens a row after 1, expected each row's tokens from the first on"):
        wrapper(decoder_input_ids=torch.tensor([[4]]), encoder_outputs=encoded)


def test_use_cache_changes_nothing(model):
    wrapper = GenerateWrapper(model).eval()
    found = [by_generate(wrapper, [3, 8, 5, 2], num_beams=2, max_new_tokens=6, use_cache=use)[0] for use in (0, 1)]
    assert found[0] == found[1]
