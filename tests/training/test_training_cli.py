"""`s2s train` as a command: its flags, what it prints where, and that it needs torch only when it runs."""

from __future__ import annotations

import importlib.util
import io
import json
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner

from s2s_export.cli.train import command
from s2s_export.errors import InvalidOption, MissingExtra, TrainingError
from s2s_export.training.corpus import generate_pairs
from s2s_export.training.progress import ProgressBar
from s2s_export.training.run import Evaluation, Progress

SMALL = ["--d-model=16", "--vocab-size=120", "--batch-tokens=200", "--max-steps=4", "--evaluate-every=2"]
SMALL += ["--metric-pairs=2"]


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "pairs.tsv"
    path.write_text("".join(f"{a}\t{b}\n" for a, b in generate_pairs(60, 1)), encoding="utf-8")
    return str(path)


def s2s_train(*arguments):
    return CliRunner().invoke(command, [str(a) for a in arguments], catch_exceptions=False)


def test_result_on_stdout_progress_on_stderr(data, tmp_path):
    result = s2s_train("--model", "gru", "--data", data, "--threads", 1, *SMALL, tmp_path / "a")
    assert result.exit_code == 0
    assert "gru model" in result.stdout and "validation pairs: exact" in result.stdout
    assert result.stderr.count("validation loss") == 2
    assert (tmp_path / "a/model.safetensors").exists()
    quiet = s2s_train("--model", "gru", "--data", data, "--threads", 1, "--quiet", "--json", *SMALL, tmp_path / "b")
    assert quiet.stderr == ""
    report = json.loads(quiet.stdout)
    assert (report["steps"], report["model"], len(report["history"])) == (4, "gru", 2)
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()


def test_resume_remembers_the_options(data, tmp_path):
    s2s_train("--model", "lstm", "--data", data, "--threads", 1, *SMALL, tmp_path / "a")
    more = ("--model", "lstm", "--data", data, "--threads", 1, "--resume", "--max-steps", 6, "--json", tmp_path / "a")
    assert json.loads(s2s_train(*more).stdout)["steps"] == 6
    with pytest.raises(InvalidOption, match="d_model is 32 and was 16"):
        s2s_train(*more, "--d-model", 32)


def test_the_built_in_corpus(tmp_path):
    result = s2s_train("--model", "gru", "--languages", "fr", "--n-pairs", 60, "--threads", 1, *SMALL, tmp_path / "a")
    assert result.exit_code == 0
    with pytest.raises(InvalidOption, match="--data is given"):
        s2s_train("--model", "gru", "--data", "x.tsv", "--languages", "fr", tmp_path / "b")


def test_wrong_data_is_an_error(tmp_path):
    (tmp_path / "pairs.tsv").write_text("a\tb\nno tab\n")
    with pytest.raises(TrainingError, match="line 2 has 1 column"):
        s2s_train("--model", "gru", "--data", tmp_path / "pairs.tsv", tmp_path / "a")


def test_usage_errors():
    with pytest.raises(InvalidOption, match="found no --model; expected one of lstm"):
        s2s_train("checkpoint")
    assert s2s_train("--model", "rnn", "checkpoint").exit_code == 2
    help_text = s2s_train("--help").stdout
    assert "--label-smoothing" in help_text and "[default: 0.1]" in help_text


def test_a_missing_extra(monkeypatch, tmp_path):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "sacrebleu" else find(name, *a))
    with pytest.raises(MissingExtra, match=r"sacrebleu.*s2s-export\[train\]"):
        s2s_train("--model", "gru", tmp_path / "a")


def test_the_command_imports_without_torch():
    code = "import sys, s2s_export.cli.train as t; bad = {'torch', 'transformers', 'sacrebleu'} & set(sys.modules); "
    code += "sys.exit(str(bad) if bad or t.command.name != 'train' else 0)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_bar_moves_on_a_terminal_only():
    steps = [Progress(1, 4, 2.0, 1e-3, 1000.0), Progress(2, 4, 2.0, 1e-3, 1000.0, Evaluation(2, 1.5, 2.0, None))]
    for stream, bars in ((Terminal(), 1), (io.StringIO(), 0)):
        bar = ProgressBar(stream)
        for step in steps:
            bar(step)
        assert stream.getvalue().count("[######.................") == bars
        assert stream.getvalue().count("step 2: training loss 2.000, validation loss 1.500") == 1
