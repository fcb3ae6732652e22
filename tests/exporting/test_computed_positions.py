"""Past max_position_embeddings: M2M100's positions are computed and go on, tables of weights end."""

from __future__ import annotations

import pytest
import torch
from tiny_models import CONFIGS

import s2s_export
from s2s_export.errors import InputError, InvalidOption
from s2s_export.exporting.checkpoint import load_transformers_model


@pytest.mark.parametrize("beams", [1, 3])
def test_m2m100_goes_on_as_transformers_does(exported, beams):
    checkpoint, bundle = exported("m2m_100")
    model = load_transformers_model(checkpoint, {})
    positions = model.config.max_position_embeddings
    generator = torch.Generator().manual_seed(beams)
    pad, size = model.config.pad_token_id, model.config.vocab_size
    ids = torch.randint(0, size, (1, positions + 40), generator=generator)
    ids[ids == pad] = 7
    options = {"num_beams": beams, "max_new_tokens": positions + 20, "min_new_tokens": positions + 20}
    with torch.no_grad():
        wanted = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, **options)
    session = s2s_export.load(bundle)
    found = session.generate(ids.tolist(), do_sample=False, **options)[0][0].token_ids
    assert list(found) == wanted[0].tolist()
    assert session.bundle.max_source_length >= 4 * positions


def test_a_longer_table_on_demand(exported, tmp_path):
    report = s2s_export.export(exported("m2m_100")[0], tmp_path / "b", max_source_length=5000)
    assert report.manifest["limits"]["max_source_length"] == 5000
    assert s2s_export.load(tmp_path / "b").generate([[7] * 5000], max_new_tokens=2)


@pytest.mark.parametrize("name", ["marian", "bart", "mbart", "pegasus"])
def test_tables_of_weights_keep_their_limit(exported, name):
    checkpoint, bundle = exported(name)
    positions = CONFIGS[name]().max_position_embeddings
    session = s2s_export.load(bundle)
    with pytest.raises(InputError, match=f"the model allows {positions}"):
        session.generate([[7] * (positions + 1)])
    with pytest.raises(InvalidOption, match=f"at most {positions + 1}"):
        session.generate([[7]], max_length=positions + 2)
    model = load_transformers_model(checkpoint, {})
    ids = torch.full((1, positions + 1), 7)
    with pytest.raises(IndexError), torch.no_grad():  # as for transformers
        model.get_encoder()(input_ids=ids, attention_mask=torch.ones_like(ids))
