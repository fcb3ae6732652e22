"""`export_module`: what is traced decodes as the module itself, and what can't be is refused with its reason."""

from __future__ import annotations

import math
import random
import re
import warnings

import own_modules
import pytest
import torch
from own_modules import END, PAD, START, VOCABULARY, Attentive, Cached, spread
from torch import nn

import s2s_export
from s2s_export import ModuleConfig, TransformerModule, export_module
from s2s_export.building.build import build
from s2s_export.errors import CheckpointError, InvalidOption, ParityError, UnsupportedModel
from s2s_export.exporting.own_module import behaviour, check, interface, sources
from s2s_export.runtime.backends._open_recurrent import why_whole_batches

CONFIG = ModuleConfig(decoder_start_token_id=START, eos_token_id=END, pad_token_id=PAD, max_target_length=20)
TIGHT = 2e-5
OPTIONS = [
    {"num_beams": 1},
    {"num_beams": 4, "num_return_sequences": 3, "length_penalty": 0.7},
    {"num_beams": 3, "no_repeat_ngram_size": 2, "early_stopping": True},
]


def random_sources(n=5, longest=9):
    chance = random.Random(n)
    return [[chance.randrange(3, VOCABULARY) for _ in range(chance.randint(1, longest))] for _ in range(n)]


def assert_engine_agrees(bundle):
    build(bundle, "cpu-fp32")
    portable, fast = (s2s_export.load(bundle, "onnxruntime", target, threads=1) for target in ("portable", "cpu-fp32"))
    for options in OPTIONS:
        expected, found = (session.generate(random_sources(), **options) for session in (portable, fast))
        assert [[h.token_ids for h in one] for one in expected] == [[h.token_ids for h in one] for one in found]


@pytest.fixture(scope="module")
def attentive(tmp_path_factory):
    model, path = spread(Attentive("GRU")), tmp_path_factory.mktemp("own") / "bundle"
    return model, path, export_module(model, CONFIG, path)


def test_every_output_is_close(attentive):
    outputs = {error.output for error in attentive[2].parity}
    assert outputs >= {"memory_states", "memory_mask", "state_hidden", "log_probs", "attention"}
    assert all(error.relative < TIGHT for error in attentive[2].parity)
    assert attentive[2].manifest["sizes"] == {"vocabulary_size": VOCABULARY, "source_vocabulary_size": VOCABULARY}


def test_tokens_and_scores_are_those_of_generate(attentive):
    """transformers' own search steps the module, through the wrapper that reference models have."""
    from s2s_export.reference.hf import GenerateWrapper

    model, path, _ = attentive
    session = s2s_export.load(path, threads=1)
    sources = random_sources()
    length = max(map(len, sources))
    ids = torch.tensor([source + [PAD] * (length - len(source)) for source in sources])
    mask = torch.tensor([[1] * len(source) + [0] * (length - len(source)) for source in sources])
    for options in OPTIONS:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            out = GenerateWrapper(model).generate(
                input_ids=ids, attention_mask=mask, return_dict_in_generate=True, output_scores=True, **options
            )
        found = [hypothesis for one in session.generate(sources, **options) for hypothesis in one]
        for tokens, hypothesis in zip(out.sequences.tolist(), found, strict=True):
            n = len(hypothesis.token_ids)
            assert tokens[:n] == list(hypothesis.token_ids) and len(set(tokens[n:])) <= 1
        if options["num_beams"] > 1:
            assert [h.score for h in found] == pytest.approx(out.sequences_scores.tolist(), abs=1e-4)


def test_a_cpu_engine_gives_the_same(attentive):
    assert_engine_agrees(attentive[1])


def test_the_module_is_left_as_it_was(attentive):
    model = attentive[0]
    assert isinstance(model.encoder, nn.GRU) and model.training
    assert own_modules.pack_padded_sequence is nn.utils.rnn.pack_padded_sequence


@pytest.mark.slow
@pytest.mark.parametrize("model", ["LSTM", "RNN", "no bias", "relu", "cache"])
def test_other_modules(tmp_path, model):
    made = {
        "LSTM": lambda: Attentive("LSTM"),
        "RNN": lambda: Attentive("RNN"),
        "no bias": lambda: Attentive("LSTM", bias=False),
        "relu": lambda: Attentive("RNN", nonlinearity="relu"),
        "cache": Cached,
    }[model]()
    made = spread(made)
    if model == "relu":  # whose states grow with every step: what rounding makes of 1e6 is no token's doing
        for parameter in made.encoder.parameters():
            parameter.data *= 0.5
    report = export_module(made, CONFIG, tmp_path / "b")
    assert all(error.relative < TIGHT for error in report.parity)
    assert_engine_agrees(tmp_path / "b")


# torch.nn.Transformer


def transformer(**options):
    return nn.Transformer(16, 4, 2, 2, 20, **options)


def pair():
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 24, batch_first=True), 2)
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(16, 4, 24, norm_first=True), 1, nn.LayerNorm(16))
    return encoder, decoder


def around(layers, **options):
    made = {"positions": torch.randn(40, 1, 16), "embedding_scale": math.sqrt(16)} | options
    module = TransformerModule(
        layers,
        source_embedding=nn.Embedding(VOCABULARY + 9, 16),
        target_embedding=nn.Embedding(VOCABULARY, 16),
        output=nn.Linear(16, VOCABULARY),
        **made,
    )
    return spread(module)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize(
    ("make", "options"),
    [
        (transformer, {}),
        (lambda: transformer(batch_first=True, norm_first=True, activation="gelu"), {}),
        (lambda: transformer(bias=False), {"target_positions": torch.randn(1, 30, 16)}),
        (pair, {"positions": None}),
    ],
)
def test_torchs_transformer_becomes_a_structure_with_caches(tmp_path, make, options):
    """Greedy and with beams, against PyTorch, which computes each whole sequence anew."""
    model = around(make(), **options)
    report = export_module(model, CONFIG, tmp_path / "b")
    assert all(error.relative < TIGHT for error in report.parity)
    assert any(v["name"] == "self_key.0" for v in report.manifest["graphs"]["decoder_step"]["inputs"])
    session = s2s_export.load(tmp_path / "b", threads=1)
    model.eval()
    for source in ([3, 4, 5, 6], [7]):
        expected = [START]
        ids = torch.tensor([source])
        with torch.no_grad():
            while len(expected) < 15 and expected[-1] != END:
                states = model.encode(ids, torch.ones_like(ids))
                logits = model.decode(states, torch.ones_like(ids), torch.tensor([expected]))
                expected.append(int(logits[0, -1].argmax()))
        assert list(session.generate([source], num_beams=1, max_new_tokens=14)[0][0].token_ids) == expected
    assert_engine_agrees(tmp_path / "b")


# What is refused


class Asks(Attentive):
    def step(self, token, state):
        if token.sum() > 5:
            token = token + 0
        return super().step(token, state)


class Loops(Attentive):
    def encode(self, input_ids, source_mask):
        hidden = torch.zeros(input_ids.shape[0], 6)
        for t in range(input_ids.shape[1]):
            hidden = self.cell(
                torch.cat([self.source(input_ids[:, t])] * 2, dim=-1)[:, :8].repeat(1, 3)[:, :20], hidden
            )
        return own_modules.Memory(hidden[:, None].repeat(1, input_ids.shape[1], 2), hidden, source_mask.bool())


class ListState(Attentive):
    def start(self, memory):
        return [memory.hidden]


class Counts(Attentive):
    def start(self, memory):
        return super().start(memory)._replace(unused=3)


class Keeps(Attentive):
    def encode(self, input_ids, source_mask):
        self.memory = super().encode(input_ids, source_mask)
        return self.memory

    def step(self, token, state):
        return super().step(token, state._replace(states=self.memory.states[: len(token)], mask=self.memory.mask))


class CountsInside(Attentive):
    n = 0

    def start(self, memory):
        self.n = 0
        return super().start(memory)

    def step(self, token, state):
        self.n += 1
        logits, state, weights = super().step(token, state)
        return logits * self.n, state, weights


class InPlace(Attentive):
    def step(self, token, state):
        logits, after, weights = super().step(token, state)
        state.hidden.copy_(after.hidden)
        return logits, state, weights


class Noisy(Attentive):
    def step(self, token, state):
        logits, state, weights = super().step(token, state)
        return nn.functional.dropout(logits), state, weights


class Doubles(Attentive):
    def step(self, token, state):
        logits, state, weights = super().step(token, state)
        return logits.double(), state, weights


class LayersFirst(Attentive):
    def start(self, memory):
        return super().start(memory)._replace(unused=memory.hidden.repeat(5, 1, 1))


class ListInside(Attentive):
    def start(self, memory):
        return super().start(memory)._replace(unused=[memory.hidden])


class Unmasked(Attentive):
    """As in many tutorials: the last state is that behind the padding."""

    def encode(self, input_ids, source_mask):
        states, last = self.encoder(self.source(input_ids))
        return own_modules.Memory(states, last[0], source_mask.bool())


class Mixes(Attentive):
    def step(self, token, state):
        logits, state, weights = super().step(token, state)
        return logits - logits.mean(0), state, weights


class Scripted(Attentive):
    def __init__(self):
        super().__init__()
        self.output = torch.jit.script(self.output)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Keeps, r"step gives other values for the same arguments: it keeps self.memory between calls; put it into"),
        (CountsInside, r"step gives other values for the same arguments: it keeps self.n between calls"),
        (InPlace, r"step changes state.hidden in place; expected a new tensor"),
        (Noisy, r"step gives other values for the same arguments: it draws random numbers, .*training=self.training"),
        (Doubles, r"step returned logits of torch.float64; expected torch.float32"),
        (LayersFirst, r"state.unused has the shape \[5, 2, 6\] for 2 sources; .*; transpose axis 1 to the front"),
        (ListInside, r"state.unused is a list; expected a tensor with a row for each source, or None"),
        (Scripted, r"self.output is a torch.jit.ScriptModule, which can't be traced; put the module"),
        (Asks, r"step can't be traced: .*step, line \d+: if token.sum\(\) > 5.*; Python asks for a tensor's value"),
        (Loops, r"encode can't be traced: .*; the function works for the size of the example only"),
        (ListState, r"start returned a list; expected a named tuple of tensors"),
        (Counts, r"state.unused is a int; expected a tensor with a row for each source, or None"),
        (nn.GELU, r"GELU has no function encode and no start and no step; expected"),
        (transformer, r"Transformer holds a torch.nn.Transformer; put it into a s2s_export.TransformerModule"),
    ],
)
@pytest.mark.filterwarnings("ignore:enable_nested_tensor", "ignore:`torch.jit.script` is")
def test_what_can_not_be_exported_is_one_sentence(tmp_path, model, message):
    with pytest.raises(UnsupportedModel, match=message):
        export_module(model(), CONFIG, tmp_path / "b")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            Unmasked,
            r"a source's scores change by [\d.]+ where its batch is padded; give sources of one",
        ),
        (
            Mixes,
            r"a source's scores change by [\d.]+ with the other sources of its batch; compute each row from itself",
        ),
        (Attentive, None),
        (Cached, None),
    ],
)
def test_a_source_has_the_same_scores_in_any_batch(model, message):
    made, read = spread(model()).eval(), sources.Ids(VOCABULARY)
    _, first = interface.probe(made, read, START)
    if model is Mixes:
        with pytest.raises(UnsupportedModel, match=message):
            behaviour.effect_of_padding(made, read, first, PAD)
        return
    found = behaviour.effect_of_padding(made, read, first, PAD)
    assert found is None if message is None else re.match(message, found)


def test_sources_do_not_join_a_batch_whose_states_grow():
    """A state of as many positions as steps has another size for each source of an open batch."""
    changing = {"name": "state_cache", "shape": ["B", "K", "C", 8]}
    kept = {"name": "state_mask", "shape": ["B", "S"]}
    fixed = {"name": "state_hidden", "shape": ["B", "K", 6]}
    outputs = [{"name": "state_cache_out"}, {"name": "state_hidden_out"}]
    assert why_whole_batches({"inputs": [kept, fixed], "outputs": outputs}) is None
    message = why_whole_batches({"inputs": [kept, fixed, changing], "outputs": outputs})
    assert message == "the state 'state_cache' has a size of its own in each batch, C"


def test_layers_of_ones_own_inside_torchs_transformer_are_refused(tmp_path):
    with pytest.raises(UnsupportedModel, match=r"a GELU and a GELU; expected torch's own nn.TransformerEncoder"):
        around((nn.GELU(), nn.GELU()))
    odd = pair()
    odd[1].layers[0].activation = torch.sin
    with pytest.raises(UnsupportedModel, match=r"layer 0 has the activation .*sin.*; expected relu or gelu"):
        export_module(around(odd), CONFIG, tmp_path / "b")
    with pytest.raises(InvalidOption, match=r"positions has shape \[4, 5\]; expected \[P, 16\]"):
        around(pair(), positions=torch.zeros(4, 5))


def test_wrong_arguments(tmp_path):
    with pytest.raises(InvalidOption, match="model is a str; expected a torch.nn.Module"):
        export_module("checkpoint", CONFIG, tmp_path / "b")
    with pytest.raises(InvalidOption, match="config is a dict; expected a s2s_export.ModuleConfig"):
        export_module(Attentive(), {"eos_token_id": 2}, tmp_path / "b")
    with pytest.raises(CheckpointError, match="no such folder; expected one with a tokenizer's files"):
        export_module(Attentive(), CONFIG, tmp_path / "b", tmp_path / "none")
    with pytest.raises(InvalidOption, match="eos_token_id is 'x'; expected a token's id, or several"):
        ModuleConfig(decoder_start_token_id=0, eos_token_id="x")
    with pytest.raises(InvalidOption, match="max_source_length is 0; expected a whole number of at least 1"):
        ModuleConfig(decoder_start_token_id=0, eos_token_id=1, max_source_length=0)


def test_a_search_that_differs_fails_the_export(attentive):
    """The check of beams notices a module that is not the one that was traced."""
    path = attentive[1]
    other = check.ModuleReference(spread(Attentive("GRU"), seed=2), None, sources.Ids(VOCABULARY))
    with pytest.raises(ParityError, match="with 1 beams the graphs give .*, and the module's own functions"):
        check.check_search(s2s_export.load(path).bundle, other)
