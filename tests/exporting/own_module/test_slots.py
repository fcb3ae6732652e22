"""Caches along time of a module of one's own: which become slots, and why others are copied."""

from __future__ import annotations

import random
from dataclasses import replace

import arrivals
import numpy as np
import pytest
import torch
from own_modules import END, PAD, START, VOCABULARY, Cached, Convolved, KeysAndValues, spread
from random_searches import random_options
from torch.nn import functional as F

import s2s_export
from s2s_export import Features, ModuleConfig, Pictures, cached_attention, export_module, recipes
from s2s_export.building.build import build
from s2s_export.building.gpu import dimensions
from s2s_export.errors import InvalidOption
from s2s_export.exporting.own_module import interface, slots, sources, views

CONFIG = ModuleConfig(decoder_start_token_id=START, eos_token_id=END, pad_token_id=PAD, max_target_length=20)
OPTIONS = [
    {"num_beams": 1},
    {"num_beams": 4, "num_return_sequences": 3, "length_penalty": 0.7},
    {"num_beams": 3, "no_repeat_ngram_size": 2, "do_sample": True, "seed": 3},
]
SOURCES = [[5, 6, 7, 3], [8], [9, 10, 11, 4, 5, 6, 7]]


def step_of(model):
    """The traced step, and the fields of its state."""
    read = sources.Ids(VOCABULARY)
    found, example = interface.probe(spread(model).eval(), read, START)

    class Step(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, *tensors):
            token, *state = tensors
            logits, after, weights = self.model.step(token, type(example.state)(*state))
            changed = [v for f, v in zip(found.state, after, strict=True) if f.changes]
            return (logits, *changed, *([] if weights is None else [weights]))

    given = [torch.zeros(2, dtype=torch.int64), *(value.clone() for value in example.later)]
    shapes = [("B",), *(f.shape for f in found.state)]
    dynamic = [{i: torch.export.Dim.DYNAMIC for i, s in enumerate(shape) if isinstance(s, str)} for shape in shapes]
    with torch.no_grad():
        return torch.export.export(Step(), tuple(given), dynamic_shapes=(tuple(dynamic),), strict=False), found.state


slow = pytest.mark.slow
FORMS = [
    "function",
    *(pytest.param(f, marks=slow) for f in ("fused", "product", "bmm", "einsum", "stacked", "keys last")),
]


@pytest.mark.parametrize("form", FORMS)
def test_attention_over_a_cache_is_found_however_it_is_written(form):
    program, fields = step_of(KeysAndValues(form))
    found = slots.find(program, fields)
    assert found.slots.caches == {f.name for f in fields if "C" in f.shape}
    assert found.slots.counters == {"position"}
    assert [(a.n_heads, a.key_heads, a.head_size) for a in found.slots.attentions] == [(2, 2, 4)] * 2
    assert all(a.scale == (1.0 if form == "einsum" else 0.5) for a in found.slots.attentions)  # its query is halved
    found.apply()
    called = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert called.count(torch.ops.s2s_export.slot_attention.default) == 2
    assert torch.ops.aten.cat.default not in called


class Changes(KeysAndValues):
    def step(self, token, state):
        logits, after, weights = super().step(token, state)
        return logits, after._replace(**{self.name: self.changed(getattr(after, self.name))}), weights


class Decays(Changes):
    """The past fades: every step multiplies what it was given."""

    name = "keys"

    def changed(self, keys):
        return keys * 0.9


class Turns(Changes):
    """Beams of time change places: the newest first."""

    name = "values"

    def changed(self, values):
        return torch.cat([values[..., -1:, :], values[..., :-1, :]], dim=-2)


class Forgets(Changes):
    """What is kept of a token is not what its own attention has seen."""

    name = "keys"

    def changed(self, keys):
        return torch.cat([keys[..., :-1, :], torch.zeros_like(keys[..., -1:, :])], dim=-2)


class Counts(Changes):
    name = "position"

    def changed(self, position):
        return position * 2


class Peeks(KeysAndValues):
    def step(self, token, state):
        logits, after, weights = super().step(token, state)
        return logits + after.keys.sum((1, 2, 3, 4))[:, None], after, weights


class Causal(KeysAndValues):
    def attend(self, query, key, value, keys, values):
        _, keys, values = cached_attention(query, key, value, keys, values)
        return F.scaled_dot_product_attention(query[:, :, None], keys, values, is_causal=True)[:, :, 0], keys, values


class OfRows(KeysAndValues):
    def attend(self, query, key, value, keys, values):
        keys, values = (torch.cat([old, new[:, :, None]], 2) for old, new in ((keys, key), (values, value)))
        bias = query.sum((1, 2))[:, None, None, None].expand(-1, 1, 1, keys.shape[2])
        return F.scaled_dot_product_attention(query[:, :, None], keys, values, bias)[:, :, 0], keys, values


@slow
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Cached, "state.cache: is read by aten.linear, and not as keys or values of an attention"),
        (Decays, "what state.keys held is changed, or moved, when it is returned"),
        (Turns, "what state.values held is changed, or moved, when it is returned"),
        (Forgets, "what state.keys held is changed, or moved, when it is returned"),
        (Counts, "state.position changes with every step too, and must follow its beam"),
        (Peeks, "state.keys: is read by aten.sum, and not as keys or values of an attention"),
        (Causal, "state.keys and state.values: is read by an attention with dropout, or is_causal for a single token"),
        (OfRows, "state.keys and state.values: has a bias or mask with a row of its own for each source or beam"),
    ],
)
def test_what_is_no_cache_alone_is_copied(model, message):
    program, fields = step_of(model())
    with pytest.raises(views.NotFollowed) as error:
        slots.find(program, fields)
    assert str(error.value) == message


def test_the_function_is_attention_over_the_whole_sequence():
    """Step by step as F.scaled_dot_product_attention over all tokens at once, with fewer heads of keys and a bias."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(3, n, 5, 4, requires_grad=True) for n in (4, 2, 2))
    bias = torch.randn(4, 9)  # by distance
    keys = values = torch.zeros(3, 2, 0, 4)
    found = []
    for t in range(5):
        by_distance = bias[:, t - torch.arange(t + 1)]
        mixed, keys, values = cached_attention(
            query[:, :, t], key[:, :, t], value[:, :, t], keys, values, bias=by_distance, scale=0.3
        )
        found.append(mixed)
    distance = torch.arange(5)[:, None] - torch.arange(5)
    mask = torch.where(distance >= 0, bias[:, distance.clamp(min=0)], -torch.inf)
    expected = F.scaled_dot_product_attention(query, key, value, mask, scale=0.3, enable_gqa=True)
    assert torch.allclose(torch.stack(found, 2), expected, atol=1e-6)
    torch.stack(found, 2).sum().backward()
    assert key.grad.abs().sum() > 0


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    path = tmp_path_factory.mktemp("slots") / "bundle"
    return path, export_module(spread(KeysAndValues("function")), CONFIG, path)


@slow
def test_any_search_gives_what_one_over_copies_gives(exported, tmp_path, monkeypatch):
    path, report = exported
    assert report.manifest["decoder"] == "attention" and not report.notices
    names = [entry["name"] for entry in report.manifest["graphs"]["decoder_step"]["inputs"]]
    assert {"position", "ancestors", "self_key.1", "state_position"} <= {*names} and "state_keys" not in names

    def refuse(*given):
        raise views.NotFollowed("as a test wants it")

    monkeypatch.setattr(slots, "find", refuse)
    copying = export_module(spread(KeysAndValues("function")), CONFIG, tmp_path / "b")
    assert copying.manifest["decoder"] == "recurrent" and "as a test wants it" in copying.notices[0]
    for target in ("cpu-fp32", "cpu-int8"):
        build(path, target)
    sessions = [s2s_export.load(path, "onnxruntime", target, threads=1) for target in ("portable", "cpu-fp32")]
    one_that_copies = s2s_export.load(tmp_path / "b", threads=1)
    for seed in range(60):
        chance = random.Random(seed)
        options = random_options(chance, VOCABULARY)
        given = [[chance.randrange(3, VOCABULARY) for _ in range(chance.randint(1, 9))] for _ in range(1 + seed % 3)]
        expected = one_that_copies.decode_batch(given, options)
        for session in sessions:
            found = session.decode_batch(given, options)
            assert [[h.token_ids for h in one] for one in found] == [[h.token_ids for h in one] for one in expected]


@slow
def test_sources_join_a_batch_of_a_module_with_slots(exported):
    if not (exported[0] / "engines" / "cpu-fp32").is_dir():
        build(exported[0], "cpu-fp32")
    session = s2s_export.load(exported[0], "onnxruntime", "cpu-fp32", threads=1)
    assert session.backend.why_no_open_batch() is None
    rng = np.random.default_rng(4)
    given = [[int(t) for t in rng.integers(3, VOCABULARY, rng.integers(1, 12))] for _ in range(12)]
    options = session.options(num_beams=3)
    found = arrivals.arrive(session, [(source, options) for source in given], seed=1, most=4)
    for source, hypotheses in zip(given, found.results, strict=True):
        (alone,) = session.generate([source], num_beams=3)
        assert [h.token_ids for h in hypotheses] == [h.token_ids for h in alone]


class Hears(KeysAndValues):
    """Half as many states as vectors, less one."""

    def __init__(self):
        super().__init__()
        self.convolution = torch.nn.Conv1d(6, 8, 4, stride=2)

    def encode(self, features, source_mask):
        states = torch.tanh(self.convolution(features.transpose(1, 2))).transpose(1, 2)
        return Convolved(states, source_mask[:, 3::2].bool())


class Sees(KeysAndValues):
    def __init__(self):
        super().__init__()
        self.patches = torch.nn.Conv2d(3, 8, 4, stride=4)

    def encode(self, pixel_values):
        states = torch.tanh(self.patches(pixel_values)).flatten(2).transpose(1, 2)
        return Convolved(states, torch.ones_like(states[..., 0], dtype=torch.bool))


@slow
@pytest.mark.parametrize(("model", "source"), [(Hears, Features(6, least=4)), (Sees, Pictures(8, 12))])
def test_features_and_pictures(tmp_path, model, source):
    report = export_module(spread(model()), replace(CONFIG, source=source), tmp_path / "b")
    assert report.manifest["decoder"] == "attention" and not report.notices
    build(tmp_path / "b", "cpu-fp32")
    portable, fast = (
        s2s_export.load(tmp_path / "b", "onnxruntime", target, threads=1) for target in ("portable", "cpu-fp32")
    )
    given = [portable.kind.random(np.random.default_rng(i), 5 + i) for i in range(4)]
    for options in OPTIONS:
        expected, found = (session.generate(given, **options) for session in (portable, fast))
        assert [[h.token_ids for h in one] for one in expected] == [[h.token_ids for h in one] for one in found]
    reason = fast.backend.why_no_open_batch()
    if model is Hears:
        assert "as 'state_states' has a length that follows from the source's" in reason
        with pytest.raises(InvalidOption, match="states that have a length of their own"):
            dimensions.check(fast.bundle, recipes.load("rtx-fp16"))
    else:
        assert reason is None


@slow
@pytest.mark.parametrize("form", ["shared heads", "bias", "length"])
def test_shared_heads_biases_and_lengths(tmp_path, form):
    report = export_module(spread(KeysAndValues(form)), CONFIG, tmp_path / "b")
    assert report.manifest["decoder"] == "attention" and not report.notices
    assert all(error.relative < 2e-5 for error in report.parity)
    build(tmp_path / "b", "cpu-fp32")
    portable, fast = (
        s2s_export.load(tmp_path / "b", "onnxruntime", target, threads=1) for target in ("portable", "cpu-fp32")
    )
    for options in OPTIONS:
        expected, found = (session.generate(SOURCES, **options) for session in (portable, fast))
        assert [[h.token_ids for h in one] for one in expected] == [[h.token_ids for h in one] for one in found]
