"""`verify` finds the bundle right under every release of transformers, and tells whose fault a difference is."""

from __future__ import annotations

import pytest
import transformers
from tiny_names import RECURRENT

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
