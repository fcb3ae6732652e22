"""Models small enough for loops in numpy: every variant of every reference model."""

from __future__ import annotations

import pytest
import torch

from s2s_export.reference import ReferenceConfig, build

V = 23
VARIANTS = {
    "lstm": {"model": "lstm"},
    "lstm-forward": {"model": "lstm", "reverse_source": False, "tie_embeddings": True},
    "lstm-deep": {"model": "lstm", "encoder_layers": 3, "decoder_layers": 3, "hidden_size": 10},
    "gru": {"model": "gru"},
    "gru-uneven": {"model": "gru", "encoder_layers": 1, "decoder_layers": 3, "hidden_size": 10, "tie_embeddings": True},
    "attention": {"model": "attention"},
    "attention-dot": {"model": "attention", "score": "dot", "encoder_layers": 1, "decoder_layers": 1},
    "attention-general": {"model": "attention", "score": "general", "hidden_size": 10},
    "attention-lstm": {"model": "attention", "cell": "lstm", "tie_embeddings": True},
    "attention-lstm-dot": {"model": "attention", "cell": "lstm", "score": "dot", "encoder_layers": 1},
    "transformer": {"model": "transformer"},
    "transformer-post": {"model": "transformer", "norm": "post", "tie_embeddings": True},
    "transformer-learned": {"model": "transformer", "positions": "learned", "decoder_layers": 1, "heads": 2},
    "transformer-post-learned": {"model": "transformer", "norm": "post", "positions": "learned", "ff_size": 20},
}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=VARIANTS)
def model(request):
    """A variant with random weights, large enough that its distributions are not flat."""
    config = ReferenceConfig(
        vocab_size=V, d_model=16, max_source_length=20, max_target_length=18, **VARIANTS[request.param]
    )
    torch.manual_seed(len(request.param))
    model = build(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "bias" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))  # or a mistake in them would not show
            else:
                parameter.mul_(2)
    return model


@pytest.fixture
def batch():
    """Sources of lengths 7, 1, 5, 3 and targets [4, 6]."""
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(3, V, (4, 7), generator=generator)
    lengths = torch.tensor([7, 1, 5, 3])
    mask = torch.arange(7) < lengths[:, None]
    return input_ids.masked_fill(~mask, 0), mask, torch.randint(3, V, (4, 6), generator=generator)
