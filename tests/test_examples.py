"""The examples run as written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name, *arguments):
    done = subprocess.run([sys.executable, EXAMPLES / name, *map(str, arguments)], capture_output=True, timeout=1200)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def test_export_and_translate():
    out = run("02_export_and_translate.py")
    assert "neunzehnhundertachtundneunzig" in out and "le trois mars 1998" in out.replace("|", "")


@pytest.mark.slow
def test_cross_attention_cache():
    out = run("04_cross_attention_cache.py", "--steps", 8)
    assert "K and V once per source" in out and "K and V at every step" in out


@pytest.mark.slow
def test_train_number_translator(tmp_path):
    run("01_train_number_translator.py", "--steps", 4, "--out", tmp_path / "model")
    assert (tmp_path / "model" / "model.safetensors").stat().st_size < 3 * 2**20


@pytest.mark.slow
def test_length_experiment(tmp_path):
    run(
        "03_length_experiment.py", "--steps", 4, "--test-size", 2, "--work", tmp_path / "w", "--results", tmp_path / "r"
    )
    assert (tmp_path / "r" / "length.png").is_file()


@pytest.mark.slow
def test_read(tmp_path):
    out = run("08_read.py", tmp_path)
    n_right, n_equal = (int(part.split()[-1]) for part in (out.split(" of 200")[0], out.split(" as transformers")[0]))
    assert n_right > 180 and n_equal == 200
