"""Recurrent models on the backend `cuda`, on emulated kernels: whole decodes against ONNX Runtime on the CPU."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")

from device_helpers import missing_compiler
from native_decodes import BF16, FP16, INT8, SCORE, SOURCES, agree, session

import s2s_export
from s2s_export import bundle, engines
from s2s_export.building.build import build
from s2s_export.building.native.recurrent.numpy_model import NumpyRecurrent
from s2s_export.errors import BackendError, EngineError
from s2s_export.measuring.gpu_check import native as timing
from s2s_export.runtime.backends._cuda_native import state
from s2s_export.runtime.backends._cuda_native.backend import NativeBackend
from s2s_export.runtime.backends._cuda_native.model import Weights
from s2s_export.runtime.cuda.emulation import HostDevice
from s2s_export.runtime.decoding import decode
from s2s_export.runtime.sources import kind_of

if reason := missing_compiler():
    pytest.skip(reason, allow_module_level=True)

# Every kind of cell, score and encoder. Units of 20 and 24 are filled up, the directions' 10 and 12 each by themselves.
VARIANTS: dict[str, dict[str, Any]] = {
    "lstm": {"model": "lstm"},
    "gru": {"model": "gru", "hidden_size": 20},
    "additive": {"model": "attention", "tie_embeddings": True},
    "dot lstm": {"model": "attention", "score": "dot", "cell": "lstm", "encoder_layers": 1, "hidden_size": 20},
    "general": {"model": "attention", "score": "general", "decoder_layers": 1},
    "forward lstm": {"model": "lstm", "reverse_source": False, "encoder_layers": 1, "decoder_layers": 1},
    "dot": {"model": "attention", "score": "dot", "hidden_size": 32},
}
FAST = ("lstm", "gru", "additive", "dot lstm")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """built(variant, target): a bundle with its engine, made at its first use. Weights are doubled, so that
    distributions are not flat."""
    import torch

    from s2s_export.reference import build as make_model
    from s2s_export.reference.checkpoint import Checkpoint, save_checkpoint, weights_of
    from s2s_export.reference.config import ReferenceConfig

    root = tmp_path_factory.mktemp("recurrent")

    def make(variant: str, target: str = FP16) -> Path:
        folder = root / variant.replace(" ", "-")
        path = folder.with_suffix(".bundle")
        if not path.exists():
            torch.manual_seed(5)
            config = ReferenceConfig(
                vocab_size=40, d_model=24, max_source_length=30, max_target_length=30, **VARIANTS[variant]
            )
            model = make_model(config).eval()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(2.0)
            save_checkpoint(folder, Checkpoint(config, weights_of(model)))
            s2s_export.export(folder, path)
        build(path, target)
        return path

    return make


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in VARIANTS])
def test_decodes(built: Any, name: str) -> None:
    """Greedy, beams with an n-gram rule, n-best; sources of several lengths, and each token's log-probability."""
    n_equal, total = agree(built(name), FP16, "device-while")
    assert n_equal >= 0.9 * total


@pytest.mark.parametrize("target", [BF16, INT8])
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) for n in VARIANTS])
def test_decodes_in_lower_precision(built: Any, name: str, target: str) -> None:
    n_equal, total = agree(built(name, target), target, "device-while")
    assert n_equal >= 0.4 * total


@pytest.mark.parametrize("search", ["device-replay", "device-queue", "host"])
def test_other_ways_to_search(built: Any, search: str) -> None:
    path = built("additive")
    ours, other = session(path, FP16, search), session(path, FP16, "device-while")
    for options in ({}, {"num_beams": 3, "num_return_sequences": 2}):
        found = ours.generate(SOURCES, max_new_tokens=6, batch_size=3, **options)
        expected = other.generate(SOURCES, max_new_tokens=6, batch_size=3, **options)
        assert [[h.token_ids for h in of] for of in found] == [[h.token_ids for h in of] for of in expected]
        np.testing.assert_allclose([of[0].score for of in found], [of[0].score for of in expected], atol=1e-5)


@pytest.mark.parametrize("name", ["gru", "dot lstm"])
def test_rules(built: Any, name: str) -> None:
    """Those that the launch for candidates applies, others, a prompt, and draws: the host's tokens and scores."""
    ours, host = session(built(name)), session(built(name), search="host")
    for options in (
        {"bad_words_ids": [[5], [7, 8]], "suppress_tokens": [11, 12], "min_new_tokens": 4},
        {"repetition_penalty": 1.3, "num_beams": 3, "decoder_input_ids": [1, 9, 4]},
        {"do_sample": True, "top_k": 7, "seed": 3},
    ):
        found, expected = (one.generate(SOURCES, max_new_tokens=6, batch_size=5, **options) for one in (ours, host))
        assert [of[0].token_ids for of in found] == [of[0].token_ids for of in expected]
        np.testing.assert_allclose([of[0].score for of in found], [of[0].score for of in expected], atol=1e-5)


def test_streams_and_batches_that_follow(built: Any) -> None:
    """A slot's next batch begins with its own sources' states, not with those that the last one left."""
    ours = session(built("lstm"))
    first = ours.generate(SOURCES[:1], num_beams=2, max_new_tokens=8)
    ours.generate([[6, 2, 8, 9]], num_beams=2, max_new_tokens=8)
    assert ours.generate(SOURCES[:1], num_beams=2, max_new_tokens=8) == first
    greedy = ours.generate(SOURCES[:1], max_new_tokens=8)[0][0].token_ids
    told = [token for part in ours.searcher.stream(SOURCES[0], ours.options(max_new_tokens=8)) for token in part]
    assert told == list(greedy)[-len(told) :] and len(told) >= 8


@pytest.mark.parametrize("name", ["additive", "lstm"])
def test_many_rows(built: Any, name: str) -> None:
    """More rows than a skinny product takes, which blocks of 32 rows share."""
    path, device = built(name), HostDevice()
    reference = s2s_export.load(path, backend="onnxruntime", threads=1)
    sources = [[5 + i, 9, 3 + i] for i in range(9)]
    found = session(path, device=device).generate(sources, num_beams=4, max_new_tokens=4, batch_size=9)
    expected = reference.generate(sources, num_beams=4, max_new_tokens=4, batch_size=9)
    assert [of[0].token_ids for of in found] == [of[0].token_ids for of in expected]
    assert any(kernel.endswith("g4") for kernel in device.launched)


def test_growing_tables(built: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the host's search, states are taken over where tables of positions grow."""
    monkeypatch.setattr(state, "FIRST_CAPACITY", 3)
    for name in ("dot lstm", "gru"):
        options = {"num_beams": 2, "max_new_tokens": 14, "min_new_tokens": 14}
        found, expected = (
            session(built(name), search=search).generate(SOURCES[:3], batch_size=3, **options)
            for search in ("host", "device-while")
        )
        assert [of[0].token_ids for of in found] == [of[0].token_ids for of in expected]


STEPS = {
    "additive": ["skinny_product", "source_scores", "source_context", "recurrent_cell", "recurrent_cell"],
    "lstm": ["recurrent_cell", "recurrent_cell"],
}


@pytest.mark.parametrize("name", STEPS)
def test_launches_of_a_step(built: Any, name: str) -> None:
    """One a layer, what the step begins and ends with, and three of attention."""
    device = HostDevice()
    session(built(name), device=device).generate(SOURCES[:1], num_beams=2, max_new_tokens=3)
    first, second = [i for i, kernel in enumerate(device.launched) if kernel == "finish_beam_step"][:2]
    found = sorted(kernel.split("_fp16")[0] for kernel in device.launched[first + 1 : second + 1])
    readout = ["skinny_product"] if name == "additive" else []
    assert found == sorted(["begin_step", *STEPS[name], *readout, "head_candidates", "finish_beam_step"])


@pytest.mark.parametrize("name", ["gru", "additive"])
def test_weights_of_eight_bits_are_those_of_the_definition(built: Any, name: str) -> None:
    """Whole decodes against numpy with the same whole numbers and scales: what is left is fp16's rounding."""
    path = built(name, INT8)
    definition = NumpyRecurrent(Weights(path / "engines" / INT8, "build it again"))
    ours = session(path, INT8)
    options, sources = ours.options(num_beams=2, max_new_tokens=8), SOURCES[:3]
    begun = definition.begin(kind_of(bundle.read(path)).prepare(sources), options.n_rows)
    expected, found = decode(begun, sources, options, sparse_sums=False), ours.decode(sources, options)
    assert sum(a[0].token_ids == b[0].token_ids for a, b in zip(found, expected, strict=True)) >= 2
    for mine, theirs in zip(found, expected, strict=True):
        assert abs(mine[0].score - theirs[0].score) < SCORE[FP16]


@pytest.mark.slow
def test_steps_are_timed(built: Any) -> None:
    """As gpu_check times them on a GPU."""
    path = built("additive")
    opened = bundle.read(path)
    backend = NativeBackend(opened, engines.folder_of(opened, FP16), HostDevice())
    (found,) = timing.step_times(backend, [(1, 2)])
    assert found["launches"] == 8 and found["candidates_us"] is not None and found["weight_bytes"] > 20_000


def test_alignments_are_refused_by_name(built: Any) -> None:
    for search in ("device", "host"):
        with pytest.raises(BackendError, match="gives no cross-attention weights of this model, .* it is recurrent"):
            session(built("additive"), search=search).generate(SOURCES[:1], max_new_tokens=3, alignments=True)


CHANGES: list[tuple[tuple[Any, ...], Any, str]] = [
    (("kind",), "other", r"model\.json: cross is missing"),
    (("decoder", 1, "units"), 48, "the decoder's layers differ, or have several directions"),
    (("encoder", 0, "kind"), "rnn", "a layer has 16 units of kind 'rnn' in 2 directions, expected lstm or gru"),
    (("encoder", 0, "directions"), 1, r"is \[128, 32\], expected \[64, 32\]"),
    (("score", "energy"), None, "attention reads an encoder of one direction, or has a query without energies"),
    (("score", "key"), {}, r"score\.key\.weight is missing"),
    (("initial",), None, "the decoder starts from the encoder's states, but has other layers"),
    (("readout", "outputs"), 32, r"readout\.weight has shape \[64, 96\], expected \[32, 96\]"),
    (("target", "vocabulary"), 0, "a table has 0 rows of 32"),
    (("decoder",), [], "a stack without layers"),
    (("head", "inputs"), 64, r"expected \[48, 32\]"),
]


@pytest.mark.parametrize("case", range(len(CHANGES)))
def test_descriptions_that_are_wrong(built: Any, tmp_path: Path, case: int) -> None:
    place, value, message = CHANGES[case]
    shutil.copytree(built("additive") / "engines" / FP16, tmp_path / "engine")
    file = tmp_path / "engine" / "model.json"
    document = json.loads(file.read_text())
    inner = document
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    file.write_text(json.dumps(document))
    with pytest.raises(EngineError, match=message):
        Weights(file.parent, "build it again")
