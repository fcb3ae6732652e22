"""Training runs: they learn, they repeat, they resume exactly, they stop when they should."""

from __future__ import annotations

import json
import math
import os
import signal
from dataclasses import asdict

import pytest
import safetensors.torch
import torch

from s2s_export.errors import CheckpointError, InvalidOption, TrainingError
from s2s_export.reference.checkpoint import load_checkpoint
from s2s_export.training import run as run_module
from s2s_export.training.corpus import Pair, generate_pairs
from s2s_export.training.metrics import mean_loss, score_texts, translate
from s2s_export.training.options import TrainingOptions
from s2s_export.training.tokenizer import Tokenizer
from s2s_export.training.trainer import train

MODELS = ("lstm", "gru", "attention", "transformer")
# All of them in the long run.
each_model = pytest.mark.parametrize(
    "model", [pytest.param(name, marks=pytest.mark.slow if name in ("lstm", "attention") else ()) for name in MODELS]
)
SIZES = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 2}
OPTIONS = {"max_steps": 12, "batch_tokens": 200, "evaluate_every": 4, "metric_pairs": 0, "warmup_steps": 5}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def pairs():
    return generate_pairs(40, 1, languages=["de"])


def fit(folder, pairs, model="gru", resume=False, on_progress=lambda p: None, sizes=SIZES, **options):
    asked = {"sizes": sizes, "vocab_size": 120, "options": {**OPTIONS, **options}}
    if resume:
        asked = {"options": options}
    return train(folder, model, pairs[8:], pairs[:8], resume=resume, on_progress=on_progress, **asked)


def contents(folder):
    """All that a run leaves, byte by byte, without the options it was called with last."""
    state = json.loads((folder / "training_state.json").read_text())
    del state["options"]
    files = {
        name: (folder / name).read_bytes() for name in sorted(os.listdir(folder)) if name.endswith((".model", "ors"))
    }
    return files, state


@each_model
def test_twenty_pairs_are_learned_by_heart(model, tmp_path):
    pairs = generate_pairs(20, 1, languages=["de"])
    report = train(
        tmp_path / "a",
        model,
        pairs,
        pairs,
        sizes={"d_model": 48, "encoder_layers": 1, "decoder_layers": 1, "dropout": 0.0},
        vocab_size=100,
        options={
            "max_steps": 250 if model == "lstm" else 150,
            "batch_tokens": 300,
            "learning_rate": 1e-2,
            "warmup_steps": 20,
            "evaluate_every": 250,
            "label_smoothing": 0.0,
            "metric_pairs": 20,
        },
    )
    assert report.scores.exact_match == 1.0
    assert report.scores.bleu > 99.9
    # And so says the checkpoint, read back.
    checkpoint = load_checkpoint(tmp_path / "a", expected=model)
    tokenizer = Tokenizer(checkpoint.tokenizer)
    cpu = torch.device("cpu")
    assert translate(checkpoint.model(), tokenizer, pairs, cpu) == [pair.target for pair in pairs]
    assert translate(checkpoint.model(), tokenizer, pairs, cpu, num_beams=3) == [pair.target for pair in pairs]


@each_model
def test_a_seed_repeats_bit_for_bit(model, pairs, tmp_path):
    first, again = (fit(tmp_path / name, pairs, model, metric_pairs=3, max_steps=8) for name in "ab")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert asdict(first)["history"] == asdict(again)["history"]
    fit(tmp_path / "c", pairs, model, seed=2, max_steps=8)
    assert contents(tmp_path / "a") != contents(tmp_path / "c")


@each_model
@pytest.mark.parametrize("stop", [2, 4, 7])  # before, at and after an evaluation; an epoch has 5 or 6 batches
def test_an_interrupted_run_resumes_to_the_same_weights(model, stop, pairs, tmp_path):
    fit(tmp_path / "whole", pairs, model)

    def interrupt(progress):
        if progress.step == stop:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match=f"keeps the checkpoint of step {stop}"):
        fit(tmp_path / "parts", pairs, model, on_progress=interrupt)
    assert json.loads((tmp_path / "parts/training_state.json").read_text())["step"] == stop
    load_checkpoint(tmp_path / "parts").model()  # a whole checkpoint meanwhile
    torch.manual_seed(99)  # the surroundings' random state does not matter
    fit(tmp_path / "parts", pairs, model, resume=True)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_a_killed_run_resumes_from_its_last_evaluation(pairs, tmp_path):
    fit(tmp_path / "whole", pairs)

    class KilledError(Exception):
        pass

    def die(progress):
        if progress.step == 7:
            raise KilledError

    with pytest.raises(KilledError):
        fit(tmp_path / "parts", pairs, on_progress=die)
    assert json.loads((tmp_path / "parts/training_state.json").read_text())["step"] == 4
    fit(tmp_path / "parts", pairs, resume=True)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_more_steps_can_be_asked_for(pairs, tmp_path):
    fit(tmp_path / "whole", pairs, max_steps=12)
    fit(tmp_path / "parts", pairs, max_steps=8)
    report = fit(tmp_path / "parts", pairs, resume=True, max_steps=12)
    assert report.steps == 12
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    assert fit(tmp_path / "parts", pairs, resume=True).steps == 12  # nothing left to do


def test_the_handler_of_ctrl_c_is_put_back(pairs, tmp_path):
    before = signal.getsignal(signal.SIGINT)
    fit(tmp_path / "a", pairs, max_steps=2)
    assert signal.getsignal(signal.SIGINT) is before


def test_the_surroundings_random_state_is_left_alone(pairs, tmp_path):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    fit(tmp_path / "a", pairs, max_steps=2)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_checkpoint(pairs, tmp_path, monkeypatch):
    fit(tmp_path / "good", pairs, max_steps=4)
    honest, calls = run_module.loss_sum, []

    def loss_sum(*arguments):
        calls.append(1)
        return honest(*arguments) * (math.nan if len(calls) == 7 else 1)

    monkeypatch.setattr(run_module, "loss_sum", loss_sum)
    with pytest.raises(
        TrainingError, match=r"loss is nan at step 7, expected a finite.*keeps the checkpoint of step 4"
    ):
        fit(tmp_path / "a", pairs)
    assert contents(tmp_path / "a") == contents(tmp_path / "good")
    monkeypatch.undo()
    report = fit(tmp_path / "a", pairs, resume=True, learning_rate=1e-4)
    assert report.steps == 12


def test_a_gradient_that_is_no_number(pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(run_module.torch.nn.utils, "clip_grad_norm_", lambda *a: torch.tensor(math.inf))
    with pytest.raises(TrainingError, match=r"gradient's norm is inf at step 1.*nothing was saved"):
        fit(tmp_path / "a", pairs)
    assert not (tmp_path / "a").exists()


def test_early_stopping_keeps_the_best(pairs, tmp_path, monkeypatch):
    losses = iter([3.0, 2.0, 2.5, 2.0, 2.1, 9.0])
    monkeypatch.setattr(run_module, "mean_loss", lambda *a: next(losses))
    report = fit(tmp_path / "a", pairs, max_steps=100, patience=3)
    assert (report.stopped, report.steps, report.best_step, report.validation_loss) == ("patience", 20, 8, 2.0)
    monkeypatch.undo()
    fit(tmp_path / "b", pairs, max_steps=8)
    best = safetensors.torch.load_file(tmp_path / "a/model.safetensors")
    expected = safetensors.torch.load_file(tmp_path / "b/training_state.safetensors")
    for name, value in best.items():
        torch.testing.assert_close(value, expected[f"model.{name}"], atol=0, rtol=0)


def test_the_reported_loss_is_that_of_the_checkpoint(pairs, tmp_path):
    report = fit(tmp_path / "a", pairs)
    checkpoint = load_checkpoint(tmp_path / "a")
    from s2s_export.training.data import encode_pairs

    examples, _ = encode_pairs(pairs[:8], Tokenizer(checkpoint.tokenizer), 128, 128)
    assert mean_loss(checkpoint.model(), examples, torch.device("cpu")) == pytest.approx(
        report.validation_loss, rel=1e-6
    )


def test_what_a_resumed_run_must_keep(pairs, tmp_path):
    fit(tmp_path / "a", pairs, max_steps=4)
    with pytest.raises(InvalidOption, match=r"seed is 5 and was 1; label_smoothing is 0.3 and was 0.1"):
        fit(tmp_path / "a", pairs, resume=True, seed=5, label_smoothing=0.3)
    with pytest.raises(TrainingError, match="trained on other pairs"):
        fit(tmp_path / "a", pairs[::-1], resume=True)
    with pytest.raises(CheckpointError, match="holds a model of type 'gru', expected 'lstm'"):
        fit(tmp_path / "a", pairs, "lstm", resume=True)
    with pytest.raises(CheckpointError, match="is not a folder"):
        fit(tmp_path / "b", pairs, resume=True)


@pytest.mark.parametrize(
    "damage",
    [
        lambda f: (f / "training_state.json").unlink(),
        lambda f: (f / "training_state.json").write_text("{}"),
        lambda f: (f / "training_state.safetensors").write_bytes(b"x"),
        lambda f: safetensors.torch.save_file(
            {n: v for n, v in safetensors.torch.load_file(f / "training_state.safetensors").items() if n[:3] != "exp"},
            f / "training_state.safetensors",
        ),
    ],
)
def test_a_damaged_training_state(damage, pairs, tmp_path):
    fit(tmp_path / "a", pairs, max_steps=4)
    damage(tmp_path / "a")
    load_checkpoint(tmp_path / "a").model()  # the model itself is not hurt
    with pytest.raises(CheckpointError, match="training_state"):
        fit(tmp_path / "a", pairs, resume=True)


def test_data_that_can_not_be_trained_on(pairs, tmp_path):
    with pytest.raises(TrainingError, match="--batch-tokens"):
        fit(tmp_path / "a", pairs, batch_tokens=100000)
    with pytest.raises(TrainingError, match="validation"):
        train(tmp_path / "a", "gru", pairs, [], vocab_size=120, sizes=SIZES, options=OPTIONS)
    with pytest.raises(TrainingError, match="no training pairs"):
        train(tmp_path / "a", "gru", [], pairs, vocab_size=120, sizes=SIZES, options=OPTIONS)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("mine")
    with pytest.raises(TrainingError, match="exists, expected a new folder"):
        fit(tmp_path / "full", pairs)
    assert (tmp_path / "full/file").read_text() == "mine"
    assert not (tmp_path / "a").exists()


def test_long_pairs_are_left_out_and_counted(pairs, tmp_path):
    long = [*pairs, Pair("one " * 40, "eins " * 40)]
    sizes = {**SIZES, "max_source_length": 30, "max_target_length": 30}
    assert fit(tmp_path / "a", long, sizes=sizes, max_steps=2).n_skipped >= 1
    with_long_validation = [pairs[0], Pair("two " * 40, "zwei " * 40), *pairs[1:]]
    assert fit(tmp_path / "b", with_long_validation, sizes=sizes, max_steps=2).n_skipped >= 1


def test_options_are_checked_together():
    with pytest.raises(InvalidOption) as error:
        TrainingOptions(max_steps=0, learning_rate=-1, label_smoothing=1.0, patience=-1)
    for name in ("max_steps", "learning_rate", "label_smoothing", "patience"):
        assert name in str(error.value)


def test_the_learning_rate_rises_and_falls():
    options = TrainingOptions(learning_rate=0.5, warmup_steps=100)
    assert [round(options.rate_at(step), 4) for step in (1, 50, 100, 400)] == [0.005, 0.25, 0.5, 0.25]


def test_an_unknown_device(pairs, tmp_path):
    with pytest.raises(InvalidOption, match="device 'gpu'"):
        fit(tmp_path / "a", pairs, device="gpu")


def test_scores():
    scores = score_texts(["a b c d e", "x"], ["a b c d e", "y"])
    assert scores.exact_match == 0.5
    assert 0 < scores.bleu < 100
    assert score_texts(["eins zwei drei vier"], ["eins zwei drei vier"]).chrf == pytest.approx(100)
