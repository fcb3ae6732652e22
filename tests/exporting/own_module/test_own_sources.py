"""Modules of one's own that read float features and pictures: tokens are those of the module's own functions."""

from __future__ import annotations

import json
from typing import NamedTuple

import numpy as np
import pytest
import torch
from own_modules import END, START, VOCABULARY, spread
from torch import Tensor, nn

import s2s_export
from s2s_export import Features, ModuleConfig, Pictures, export_module, recipes
from s2s_export.building.gpu import dimensions
from s2s_export.cli import main
from s2s_export.errors import InputError, InvalidOption, UnsupportedModel

OF_VIT = {"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 12}}


def config(source):
    return ModuleConfig(START, END, max_target_length=20, source=source)


class Memory(NamedTuple):
    states: Tensor
    mask: Tensor


class State(NamedTuple):
    hidden: Tensor
    states: Tensor
    mask: Tensor


class Reader(nn.Module):
    """A decoder with attention; subclasses encode."""

    def __init__(self) -> None:
        super().__init__()
        self.target, self.cell = nn.Embedding(VOCABULARY, 8), nn.GRUCell(16, 8)
        self.output = nn.Linear(8, VOCABULARY)

    def start(self, memory: Memory) -> State:
        return State((memory.states * memory.mask[..., None]).sum(1), *memory)

    def step(self, token: Tensor, state: State) -> tuple[Tensor, State, Tensor | None]:
        scores = torch.einsum("ru,rsu->rs", state.hidden, state.states)
        weights = scores.masked_fill(state.mask == 0, -1e9).softmax(-1)
        context = torch.einsum("rs,rsu->ru", weights, state.states)
        hidden = self.cell(torch.cat([self.target(token), context], -1), state.hidden)
        return self.output(hidden), state._replace(hidden=hidden), self.shown(weights)

    def shown(self, weights: Tensor) -> Tensor | None:
        return None


class Hears(Reader):
    """A convolution with strides, unpadded: half as many states as vectors, less one, and the mask in floats."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(6, 8, 4, stride=2)

    def encode(self, features: Tensor, source_mask: Tensor) -> Memory:
        states = torch.tanh(self.convolution(features.transpose(1, 2))).transpose(1, 2)
        mask = 1.0 - (1 - source_mask[:, 3::2])
        return Memory(states * mask[..., None], mask)


class Sees(Reader):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)

    def encode(self, pixel_values: Tensor) -> Memory:
        states = torch.tanh(self.patches(pixel_values)).flatten(2).transpose(1, 2)
        return Memory(states, torch.ones_like(states[..., 0]))

    def shown(self, weights: Tensor) -> Tensor | None:
        return weights[:, None, None]


def greedy(model, *source, n=12):
    found = [START]
    model.eval()
    with torch.no_grad():
        state = model.start(model.encode(*source))
        while len(found) < n and found[-1] != END:
            logits, state, _ = model.step(torch.tensor(found[-1:]), state)
            found.append(int(logits.argmax()))
    return found


@pytest.fixture(scope="module")
def hearing(tmp_path_factory):
    model, path = spread(Hears()), tmp_path_factory.mktemp("hears") / "bundle"
    export_module(model, config(Features(6, least=4)), path)
    return model, path


def test_features_of_unequal_length_share_a_batch(hearing):
    model, path = hearing
    session = s2s_export.load(path, threads=1)
    rng = np.random.default_rng(0)
    sources = [session.kind.random(rng, length) for length in (9, 4, 14, 1)]
    assert [len(source) for source in sources] == [9, 4, 14, 4]
    found = session.generate(sources, num_beams=1, max_new_tokens=11)
    for source, hypotheses in zip(sources, found, strict=True):
        values = torch.from_numpy(source)[None]
        expected = greedy(model, values, torch.ones(1, len(source), dtype=torch.int64))
        assert list(hypotheses[0].token_ids) == expected
    assert "has a length that follows from the source's" in session.backend.why_no_open_batch()
    with pytest.raises(InvalidOption, match="states that have a length of their own, for which engines have no range"):
        dimensions.check(session.bundle, recipes.load("rtx-fp16"))


def test_features_in_json_lines(hearing, tmp_path):
    values = np.random.default_rng(1).standard_normal((5, 6)).astype(np.float32)
    np.save(tmp_path / "a.npy", values)
    (tmp_path / "bad.npy").write_bytes(b"no array")
    lines = [
        values.tolist(),
        str(tmp_path / "a.npy"),
        str(tmp_path / "bad.npy"),
        [[1, 2]],
        [["x"]],
        values[:2].tolist(),
    ]
    cases = tmp_path / "cases.jsonl"
    cases.write_text("".join(json.dumps({"id": str(i), "features": line}) + "\n" for i, line in enumerate(lines)))
    with pytest.raises(SystemExit, match="1"):
        main(["generate", str(hearing[1]), "--input", str(cases), "--output", str(tmp_path / "out"), "--quiet"])
    out = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    assert out[0]["outputs"] == out[1]["outputs"]
    messages = (
        "be read as a .npy file",
        "has the shape [1, 2]; expected features [S, 6]",
        "no array of num",
        "takes 4",
    )
    for line, message in zip(out[2:], messages, strict=True):
        assert message in line["error"]


def test_pictures(tmp_path):
    model = spread(Sees())
    export_module(model, config(Pictures(8, 12, preprocessor=OF_VIT)), tmp_path / "b")
    session = s2s_export.load(tmp_path / "b", threads=1)
    picture = np.random.default_rng(2).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    prepared = session.kind.prepare([session.kind.check(picture)])["pixel_values"]
    assert prepared.shape == (1, 3, 8, 12) and prepared.min() < -0.5
    found = session.generate([picture], num_beams=1, max_new_tokens=11)[0][0]
    assert list(found.token_ids) == greedy(model, torch.from_numpy(prepared))
    with pytest.raises(InputError, match="expected"):
        session.generate([[1, 2]])


def test_wrong_sources(tmp_path):
    for source, message in (
        (80, "source is 80; expected s2s_export.Features"),
        (Features(0), "source.width is 0; expected a whole number of at least 1"),
        (Pictures(8, 12, channels=True), "source.channels is True"),
    ):
        with pytest.raises(InvalidOption, match=message):
            config(source)
    with pytest.raises(InvalidOption, match="source_vocabulary_size is given beside Features"):
        ModuleConfig(START, END, source=Features(3), source_vocabulary_size=9)
    with pytest.raises(InvalidOption, match="source.preprocessor is 3; expected an image processor"):
        export_module(Sees(), config(Pictures(8, 12, preprocessor=3)), tmp_path / "b")
    with pytest.raises(UnsupportedModel, match=r"encode failed when it was run on tensors \[2, 5, 7\]"):
        export_module(Hears(), config(Features(7)), tmp_path / "b")
