"""Training from a checkpoint, the size of the vocabulary, and what may change when a run is resumed."""

from __future__ import annotations

import pytest
import torch

from s2s_export.errors import CheckpointError, InvalidOption
from s2s_export.reference.checkpoint import load_checkpoint
from s2s_export.training.corpus import Pair, generate_pairs, split
from s2s_export.training.options import DEFAULT_VOCAB_SIZE
from s2s_export.training.tokenizer import Tokenizer, fitting_size, train_tokenizer
from s2s_export.training.trainer import train

OPTIONS = {"batch_tokens": 200, "max_steps": 4, "evaluate_every": 2, "metric_pairs": 0, "device": "cpu"}
SIZES = {"d_model": 16}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def pairs():
    return split(generate_pairs(60, 1), fraction=0.1)


@pytest.fixture(scope="module")
def first(pairs, tmp_path_factory):
    """A checkpoint to begin with, and what its user was told."""
    folder, told = tmp_path_factory.mktemp("first") / "a", []
    train(folder, "gru", pairs.train, pairs.test, sizes=SIZES, options=OPTIONS, on_notice=told.append)
    return folder, told


def test_small_data_gets_a_small_vocabulary_which_is_said(first, pairs):
    folder, (told,) = first
    texts = [text for pair in pairs.train for text in pair]
    size = fitting_size(texts, DEFAULT_VOCAB_SIZE)
    assert load_checkpoint(folder).config.vocab_size <= size < DEFAULT_VOCAB_SIZE
    assert f"at most {size} subwords instead of {DEFAULT_VOCAB_SIZE}" in told and "--vocab-size" in told
    tokenizer = Tokenizer(train_tokenizer(texts, size))
    assert all(tokenizer.decode(tokenizer.encode(text)) == text for text in texts), "every character has its piece"


def test_the_size_grows_with_the_data_up_to_the_largest():
    assert fitting_size(["abc " * 100_000], 2000) == 800
    assert fitting_size(["abc " * 1_000_000], 2000) == 2000
    assert fitting_size([], 2000) > 0


def test_training_goes_on_from_the_weights_of_another_run(first, pairs, tmp_path):
    seen, told = [], []
    report = train(
        tmp_path / "b", None, pairs.train, pairs.test, start=first[0], options={**OPTIONS, "seed": 5},
        on_progress=seen.append, on_notice=told.append,
    )  # fmt: skip
    begun = seen[0].evaluation
    assert begun.step == 0 and begun.validation_loss == pytest.approx(
        train(first[0], None, pairs.train, pairs.test, resume=True).validation_loss
    )
    assert report.model == "gru" and report.steps == 4 and told == []
    assert load_checkpoint(tmp_path / "b").tokenizer == load_checkpoint(first[0]).tokenizer
    more = train(tmp_path / "b", None, pairs.train, pairs.test, resume=True, options={"max_steps": 6})
    assert more.steps == 6 and [line.step for line in more.history] == [0, 2, 4, 6]


def test_a_start_that_training_makes_worse_is_kept(first, pairs, tmp_path):
    wrong = [Pair(pair.source, "x") for pair in pairs.train]
    report = train(
        tmp_path / "b", None, wrong, pairs.test, start=first[0],
        options={**OPTIONS, "learning_rate": 5.0, "warmup_steps": 1},
    )  # fmt: skip
    assert report.best_step == 0
    kept, begun = load_checkpoint(tmp_path / "b").weights, load_checkpoint(first[0]).weights
    assert all(torch.equal(kept[name], begun[name]) for name in begun)


def test_a_run_that_stopped_at_its_start_resumes(first, pairs, tmp_path):
    def stop(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(
            tmp_path / "b", None, pairs.train, pairs.test, start=first[0], options=OPTIONS, on_progress=stop
        )  # fmt: skip
    assert train(tmp_path / "b", None, pairs.train, pairs.test, resume=True).steps == 4


def test_what_a_start_settles(first, pairs, tmp_path):
    with pytest.raises(InvalidOption, match="d_model is 32 and is 16 there; expected its own"):
        train(tmp_path / "b", None, pairs.train, pairs.test, start=first[0], sizes={"d_model": 32}, options=OPTIONS)
    with pytest.raises(CheckpointError, match="holds a model of type 'gru', expected 'lstm'"):
        train(tmp_path / "b", "lstm", pairs.train, pairs.test, start=first[0], options=OPTIONS)
    with pytest.raises(InvalidOption, match="no model is named; expected one of .*transformer"):
        train(tmp_path / "b", None, pairs.train, pairs.test, options=OPTIONS)


def test_letters_that_the_vocabulary_lacks_are_told(first, pairs, tmp_path):
    told = []
    strange = [Pair(pair.source, "ЖЩЮ " + pair.target) for pair in pairs.train]
    train(
        tmp_path / "b", None, strange, pairs.test, start=first[0], options={**OPTIONS, "max_steps": 1},
        on_notice=told.append,
    )  # fmt: skip
    assert "of the tokens of the data are unknown to the vocabulary" in told[0]


def test_a_resumed_run_may_evaluate_at_other_steps(pairs, tmp_path):
    asked = {"sizes": SIZES, "vocab_size": 120}
    train(tmp_path / "a", "gru", pairs.train, pairs.test, options=OPTIONS, **asked)
    changed = {"max_steps": 7, "evaluate_every": 1}
    report = train(tmp_path / "a", "gru", pairs.train, pairs.test, resume=True, options=changed)
    assert [line.step for line in report.history] == [2, 4, 5, 6, 7]
    plain = train(tmp_path / "b", "gru", pairs.train, pairs.test, options={**OPTIONS, "max_steps": 7}, **asked)
    assert report.history[-1].validation_loss == plain.history[-1].validation_loss, "what is learned is the same"
