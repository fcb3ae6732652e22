"""The models against their equations, stepping against teacher forcing, batches against single sources."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import equations

from s2s_export.errors import InputError, InvalidOption
from s2s_export.reference import ReferenceConfig, build
from s2s_export.reference.interface import select_rows

# The same float32 numbers added in another order: a few ulps of values around 10, through up to 7 steps.
TOLERANCE = 2e-5


@torch.no_grad()
def by_steps(model, input_ids, mask, target):
    state, logits, weights = model.start(model.encode(input_ids, mask)), [], []
    for token in target.T:
        step_logits, state, attention = model.step(token, state)
        logits.append(step_logits)
        weights.append(attention)
    return torch.stack(logits, dim=1), None if weights[0] is None else torch.stack(weights, dim=1)


@torch.no_grad()
def test_the_equations(model, batch):
    input_ids, mask, target = batch
    logits, weights = by_steps(model, *batch)
    for row in range(len(input_ids)):
        source = input_ids[row, mask[row]].numpy()
        expected, alignment = equations.MODELS[model.config.model](
            equations.Weights(model), source, target[row].numpy()
        )
        np.testing.assert_allclose(logits[row].numpy(), expected, atol=10 * TOLERANCE, rtol=0)
        if alignment is None:
            assert weights is None
        else:
            np.testing.assert_allclose(weights[row, ..., : len(source)].numpy(), alignment, atol=TOLERANCE)


@torch.no_grad()
def test_stepping_equals_teacher_forcing(model, batch):
    stepped, _ = by_steps(model, *batch)
    torch.testing.assert_close(stepped, model(*batch), atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_padding_changes_nothing(model, batch):
    input_ids, mask, target = batch
    together, weights = by_steps(model, *batch)
    for row, length in enumerate(mask.sum(dim=1).tolist()):
        alone, _ = by_steps(
            model, input_ids[row : row + 1, :length], mask[row : row + 1, :length], target[row : row + 1]
        )
        torch.testing.assert_close(together[row], alone[0], atol=TOLERANCE, rtol=0)
        if weights is not None:
            assert bool((weights[row, ..., length:] == 0).all())
    garbage = input_ids.masked_fill(~mask, 9)  # what is under the mask is not looked at
    torch.testing.assert_close(model(garbage, mask, target), model(*batch), atol=0, rtol=0)


@torch.no_grad()
def test_rows_are_independent(model, batch):
    """A reordered and repeated state goes on like the rows it was taken from: all that beams need."""
    input_ids, mask, target = batch
    state = model.start(model.encode(input_ids, mask))
    _, state, _ = model.step(target[:, 0], state)
    rows = torch.tensor([2, 2, 0, 3, 1])
    expected, _, _ = model.step(target[:, 1], state)
    logits, _, _ = model.step(target[rows, 1], select_rows(state, rows))
    torch.testing.assert_close(logits, expected[rows], atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_a_step_leaves_its_state_alone(model, batch):
    input_ids, mask, target = batch
    state = model.start(model.encode(input_ids, mask))
    first, _, _ = model.step(target[:, 0], state)
    again, _, _ = model.step(target[:, 0], state)
    torch.testing.assert_close(first, again, atol=0, rtol=0)


def test_every_parameter_learns(model, batch):
    model.train()
    model(*batch).square().sum().backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


def test_dropout_acts_in_training_only(batch):
    for name in ("lstm", "gru", "attention", "transformer"):
        model = build(ReferenceConfig(name, 23, d_model=16, dropout=0.5))
        assert not torch.equal(model(*batch), model(*batch)), name
        model.eval()
        assert torch.equal(model(*batch), model(*batch)), name


@pytest.mark.parametrize(
    ("input_ids", "mask", "message"),
    [
        ([[3, 4]], [[0, 1]], "gap"),
        ([[3, 4, 5]], [[1, 0, 1]], "gap"),
        ([[3, 4], [0, 0]], [[1, 1], [0, 0]], "no token"),
        ([[3] * 21], [[1] * 21], "at most 20"),
        ([[3, 4]], [[1]], "shape"),
    ],
)
def test_sources_that_no_model_takes(model, input_ids, mask, message):
    with pytest.raises(InputError, match=message):
        model.encode(torch.tensor(input_ids), torch.tensor(mask))


def test_a_target_beyond_the_positions():
    model = build(ReferenceConfig("transformer", 23, d_model=16, max_target_length=3)).eval()
    state = model.start(model.encode(torch.tensor([[3, 2]]), torch.tensor([[1, 1]])))
    for _ in range(3):
        _, state, _ = model.step(torch.tensor([4]), state)
    with pytest.raises(InputError, match="at most 3"):
        model.step(torch.tensor([4]), state)


@pytest.mark.parametrize(
    ("options", "messages"),
    [
        ({"model": "ltsm"}, ["did you mean 'lstm'"]),
        ({"model": "lstm", "heads": 2, "norm": "pre"}, ["heads is an option of transformer", "norm is an option"]),
        ({"model": "gru", "reverse_source": True}, ["reverse_source is an option of lstm"]),
        ({"model": "attention", "score": "cosine", "cell": "rnn"}, ["score is 'cosine'", "cell is 'rnn'"]),
        ({"model": "lstm", "encoder_layers": 1, "decoder_layers": 2}, ["encoder_layers is 1 and decoder_layers 2"]),
        ({"model": "lstm", "tie_embeddings": True, "hidden_size": 8}, ["tie_embeddings needs"]),
        ({"model": "attention", "hidden_size": 7}, ["even"]),
        ({"model": "transformer", "d_model": 15, "heads": 4}, ["multiple of heads", "even number"]),
        ({"model": "gru", "pad_token_id": 2, "eos_token_id": 2, "bos_token_id": 99}, ["three different", "has id 99"]),
        (
            {"model": "gru", "d_model": 0, "dropout": 1.0, "decoder_layers": -1},
            ["d_model is 0", "dropout", "decoder_la"],
        ),
    ],
)
def test_contradictions_are_reported_together(options, messages):
    with pytest.raises(InvalidOption) as error:
        ReferenceConfig(**{"vocab_size": 23, "d_model": 16, **options})
    for message in messages:
        assert message in str(error.value)
