"""The reference models by the same road: exported, compared with PyTorch, and searched like any other."""

from __future__ import annotations

import random

import pytest
import torch
from plain_search import search_reference

import s2s_export
from s2s_export import bundle
from s2s_export.reference import build
from s2s_export.reference.checkpoint import Checkpoint, save_checkpoint, weights_of
from s2s_export.reference.config import ReferenceConfig

VARIANTS = {
    "lstm": {"model": "lstm"},
    "lstm forward, one layer": {"model": "lstm", "reverse_source": False, "encoder_layers": 1, "decoder_layers": 1},
    "gru": {"model": "gru"},
    "attention": {"model": "attention"},
    "attention dot lstm": {"model": "attention", "score": "dot", "cell": "lstm", "encoder_layers": 1},
    "attention general": {"model": "attention", "score": "general", "decoder_layers": 1},
    "transformer": {"model": "transformer"},
    "transformer post": {"model": "transformer", "norm": "post", "positions": "learned", "tie_embeddings": True},
}
TIGHT = 2e-5


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """trained(variant) -> (model, bundle); weights are doubled so that distributions are not flat."""
    root = tmp_path_factory.mktemp("reference")
    made = {}

    def make(variant):
        if variant not in made:
            torch.manual_seed(len(made))
            config = ReferenceConfig(
                vocab_size=40, d_model=24, max_source_length=30, max_target_length=30, **VARIANTS[variant]
            )
            model = build(config).eval()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(2.0)
            folder = root / variant.replace(" ", "-").replace(",", "")
            save_checkpoint(folder, Checkpoint(config, weights_of(model)))
            path = folder.with_suffix(".bundle")
            s2s_export.export(folder, path)
            made[variant] = (model, path)
        return made[variant]

    return make


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_output_equals_pytorchs(trained, variant):
    outputs = bundle.read(trained(variant)[1]).manifest["parity"]["outputs"]
    assert all(o["relative"] < TIGHT for o in outputs)
    has_attention = not variant.startswith(("lstm", "gru"))
    assert has_attention == any(o["output"] == "attention" for o in outputs)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("n_beams", [1, 4])
def test_tokens_equal_those_of_a_plain_search(trained, variant, n_beams):
    """Which `tests/reference` compares with generate()."""
    model, path = trained(variant)
    chance = random.Random(n_beams)
    sources = [[chance.randrange(3, 40) for _ in range(chance.randint(1, 15))] + [2] for _ in range(6)]
    found = s2s_export.load(path).generate(sources, num_beams=n_beams, max_new_tokens=20)
    for source, (best, *_) in zip(sources, found, strict=True):
        expected = search_reference(model, source, num_beams=n_beams, max_new_tokens=20)[0]
        assert list(best.token_ids) == expected.token_ids
        assert best.score == pytest.approx(expected.score, abs=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_batch_of_mixed_lengths_equals_its_sources_one_by_one(trained, variant):
    session = s2s_export.load(trained(variant)[1])
    chance = random.Random(7)
    sources = [[chance.randrange(3, 40) for _ in range(n)] + [2] for n in (1, 14, 6, 25, 2)]
    together = session.generate(sources, num_beams=3, max_new_tokens=15)
    alone = [session.generate([source], num_beams=3, max_new_tokens=15)[0] for source in sources]
    assert [[h.token_ids for h in hs] for hs in together] == [[h.token_ids for h in hs] for hs in alone]


def test_alignments_only_where_there_is_attention(trained):
    with_it = s2s_export.load(trained("attention")[1]).generate([[5, 6, 7, 2]], max_new_tokens=5, alignments=True)
    alignment = with_it[0][0].alignment
    assert alignment.shape[1] == 4 and alignment.sum(axis=1) == pytest.approx([1.0] * len(alignment), abs=1e-5)
    with pytest.raises(s2s_export.errors.InvalidOption, match="family 'lstm' has no attention"):
        s2s_export.load(trained("lstm")[1]).generate([[5, 6, 7, 2]], max_new_tokens=5, alignments=True)


def test_a_target_beyond_the_limit_is_refused(trained):
    session = s2s_export.load(trained("gru")[1])
    with pytest.raises(s2s_export.errors.S2SError, match="at most 31"):
        session.generate([[5, 2]], max_new_tokens=500)
