"""The device's half on Python 3.10, which JetPack 6 has: a real interpreter, with the wheel, numpy and TensorRT-RTX.

Slow, as an environment is made for it by pip. It is skipped where there is no Python 3.10.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from s2s_export.building import build as building
from s2s_export.exporting.export import export

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
MODEL = ROOT / "examples" / "models" / "number-words"
TARGETS = ("rtx-fp16", "rtx-bf16", "rtx-int8", "rtx-fp16-plugins")
ABSENT = ("onnx", "onnxruntime", "torch", "transformers")
# Full TensorRT as versions 10.3 and 10.7 name things; test_prepare.py checks what it is asked for.
STAND_IN = """
import sys
from pathlib import Path
from types import SimpleNamespace
sys.path.insert(0, sys.argv[3])
from fake_builder import full_tensorrt
from s2s_export.building import build as building
from s2s_export.building.builders import tensorrt as builder
from s2s_export.runtime.backends._tensorrt import library as libraries
from s2s_export.runtime.cuda import device, driver
builder._copy_kernels = lambda recipe, folder: None
builder._register_plugins = lambda library: None
library, asked = full_tensorrt(sys.argv[2])
libraries.load = lambda flavour: library
driver.Device = lambda: SimpleNamespace(name="Orin", capability="8.7", cuda_version="12.6")
driver.unavailable = lambda: "no GPU in this test"
report = building.build(Path(sys.argv[1]), "jetson-orin-fp16", force=True)
print(report.engine["built_with"]["library"], len(asked))
"""
EVERYTHING = """
import importlib, pkgutil
import s2s_export.runtime as runtime
for module in pkgutil.walk_packages(runtime.__path__, runtime.__name__ + "."):
    if not module.name.rpartition(".")[2].startswith("_torch"):
        importlib.import_module(module.name)
"""


def _python310() -> str | None:
    """An interpreter: of the variable S2S_PYTHON310, on the path, or pyenv's."""
    places = [os.environ.get("S2S_PYTHON310"), shutil.which("python3.10")]
    places += [str(path) for path in sorted(Path.home().glob(".pyenv/versions/3.10.*/bin/python"))]
    for place in places:
        if place and subprocess.run([place, "--version"], capture_output=True).returncode == 0:
            return place
    return None


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The trained model of the examples, prepared here for every target that is compiled there."""
    path = tmp_path_factory.mktemp("prepared") / "bundle"
    export(MODEL, path)
    for target in (*TARGETS, "jetson-orin-fp16"):
        building.prepare(path, target)
    return path


@pytest.fixture(scope="module")
def device(tmp_path_factory):
    """The bin folder of an environment with Python 3.10 that has no more than a device needs."""
    python = _python310()
    if python is None:
        pytest.skip("there is no Python 3.10; name one in S2S_PYTHON310")
    folder = tmp_path_factory.mktemp("device")
    settings = {**os.environ, "S2S_EXPORT_KERNELS": "none"}
    _run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder], cwd=ROOT, env=settings)
    [wheel] = folder.glob("*.whl")
    _run([python, "-m", "venv", folder / "venv"])
    pip = [folder / "venv" / "bin" / "python", "-m", "pip", "install", "-q"]
    _run([*pip, "numpy==1.26.4", "click", "tomli", "tensorrt-rtx-cu13"])
    _run([*pip, "--no-deps", wheel, "tokenizers", "sentencepiece"])
    return folder / "venv" / "bin"


def _run(command, **settings):
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=900, **{"cwd": "/", **settings}
    )
    assert done.returncode == 0, done.stderr
    return done


def test_it_has_nothing_that_only_the_other_machine_needs(device):
    done = _run(
        [device / "python", "-c", f"import importlib.util as u; print([n for n in {ABSENT} if u.find_spec(n)])"]
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("target", TARGETS)
def test_it_compiles_what_was_prepared(device, prepared, target):
    done = _run([device / "s2s", "build", prepared, "--target", target, "--json"])
    found = json.loads(done.stdout)
    assert found["graphs"]["decoder_step"]["layers"]
    engine = json.loads((prepared / "engines" / target / "engine.json").read_text())
    assert engine["built_with"]["library"].startswith("tensorrt")


@pytest.mark.parametrize("version", ["10.3.0", "10.7.0"])
def test_full_tensorrt(device, prepared, version):
    done = _run([device / "python", "-c", STAND_IN, prepared, version, ROOT / "tests" / "helpers"])
    assert done.stdout.split() == ["tensorrt", version, "3"]


def test_every_command_can_be_asked(device, prepared):
    """Nothing that a command imports before it looks at its arguments needs a newer Python."""
    sections = _run([device / "s2s", "--help"]).stdout.partition("--help  Show this message and exit.")[2]
    names = [line.split()[0] for line in sections.splitlines() if line.startswith("  ")]
    assert "build" in names and "transcribe" in names
    for name in names:
        assert "Usage:" in _run([device / "s2s", name, "--help"]).stdout
    assert "tensorrt-rtx" in _run([device / "s2s", "doctor"]).stdout
    assert "decoder_step" in _run([device / "s2s", "inspect", prepared]).stdout
    _run([device / "python", "-c", EVERYTHING])
