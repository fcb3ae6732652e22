"""`verify` finds the bundle right under every release of transformers, and tells whose fault a difference is."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
import transformers
from tiny_names import RECURRENT

from s2s_export.building.build import build
from s2s_export.errors import ParityError
from s2s_export.exporting.families import marian, reference
from s2s_export.exporting.verify import verify
from s2s_export.reference.hf import GenerateWrapper

pytestmark = pytest.mark.matrix


@pytest.mark.parametrize("name", RECURRENT)
def test_reference_models_are_verified(bundled, name):
    found = verify(bundled(name), bundled(name).with_suffix(""))
    assert found.is_close and found.fault is None
    assert [s.n_equal + s.n_ties for s in found.searches] == [s.n_sources for s in found.searches]


def test_a_reference_that_loses_its_state_is_named(bundled, monkeypatch):
    """What transformers 5.24 did to a wrapper that kept its state in `past_key_values`."""
    whole = GenerateWrapper.forward

    def forgetful(self, decoder_input_ids, encoder_outputs, **_):
        self._known = None
        return whole(self, decoder_input_ids[:, -1:], encoder_outputs)

    monkeypatch.setattr(GenerateWrapper, "forward", forgetful)
    found = verify(bundled("lstm"), bundled("lstm").with_suffix(""))
    assert not found.is_close and all(o.is_close for o in found.outputs)
    assert all(s.is_reference_broken for s in found.searches)
    assert f"THE REFERENCE LOOKS BROKEN: generate() of transformers {transformers.__version__}" in (
        found.searches[0].line()
    )
    assert "say nothing about the bundle" in found.fault and "another release of transformers" in found.fault


def test_a_reference_that_reads_another_source_is_named(exported, monkeypatch):
    def generate(model, input_ids, **options):
        return model.generate(input_ids=input_ids.flip(1), **options)

    monkeypatch.setattr(marian, "generate", generate, raising=False)
    checkpoint, bundle = exported("marian")
    assert "say nothing about the bundle" in verify(bundle, checkpoint).fault


def test_another_search_over_the_same_logits_is_no_broken_reference(bundled, monkeypatch):
    def generate(wrapper, **options):
        return wrapper.generate(**options, repetition_penalty=3.0)

    monkeypatch.setattr(reference, "generate", generate)
    found = verify(bundled("gru"), bundled("gru").with_suffix(""))
    assert not found.is_close and not any(s.is_reference_broken for s in found.searches)
    assert "OUTSIDE TOLERANCE" in found.searches[0].line()
    assert "graphs agree with PyTorch and the tokens differ" in found.fault


def test_an_engine_of_lower_precision_is_judged_by_its_tokens(exported, copied, monkeypatch):
    build(path := copied("t5"), "cpu-int8")
    found = verify(path, exported("t5")[0], target="cpu-int8")
    assert all(s.is_lossy and s.engine == "cpu-int8" for s in found.searches)
    assert all(0 <= s.tokens_before <= 1 for s in found.searches)
    assert "tokens of cpu-int8 (" in found.searches[0].line()
    assert "% of the tokens before the first that differs" in found.searches[0].line()
    wrong = [dataclasses.replace(s, tokens_before=0.1) for s in found.searches]
    assert "judge it on your own data with s2s evaluate" in dataclasses.replace(found, searches=wrong).fault
    whole = [dataclasses.replace(s, tokens_before=0.9, n_equal=0) for s in found.searches]
    assert dataclasses.replace(found, searches=whole).fault is None


def test_another_checkpoint_is_recognised_before_it_is_loaded(bundled, exported, tmp_path):
    checkpoint = tmp_path / "other"
    shutil.copytree(exported("t5")[0], checkpoint)
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "dropout_rate": 0.2}))
    with pytest.raises(ParityError, match="was exported from 't5', whose weights or config.json are not those of"):
        verify(bundled("t5"), checkpoint)
