"""Prepare on one machine, compile on another that has neither onnx nor ONNX Runtime."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import fake_tensorrt
import pytest
from fake_builder import full_tensorrt
from small import recipe

from s2s_export import bundle, engines
from s2s_export.building import build as building
from s2s_export.building import prepared, trial
from s2s_export.building.builders import tensorrt as tensorrt_builder
from s2s_export.building.changes import Changes
from s2s_export.cli import main
from s2s_export.errors import BuildError, BundleError, InvalidOption
from s2s_export.recipes import Range
from s2s_export.runtime.backends._tensorrt import library as libraries
from s2s_export.runtime.backends._tensorrt.backend import TensorRTBackend
from s2s_export.runtime.backends.onnxruntime import OnnxRuntimeBackend
from s2s_export.runtime.cuda import driver

SMALL = "[ranges]\nT = { min = 1, opt = 8, max = 16 }\n[options]\nn_samples = 2\nn_steps = 4\n"
RTX = 'flavour = "tensorrt-rtx"\nprecision = "fp16"\ncompute_capabilities = ["8.9"]\n' + SMALL
ORIN = 'flavour = "tensorrt"\nprecision = "fp16"\ncompute_capabilities = ["8.7"]\nplugins = true\n' + SMALL
DEVICE = """
import sys
for name in ("onnx", "onnxruntime", "torch", "transformers", "ml_dtypes", "tokenizers", "sentencepiece"):
    sys.modules[name] = None
from s2s_export.cli import main
main(sys.argv[1:])
"""


def write(tmp_path: Path, text: str) -> str:
    (tmp_path / "mine.toml").write_text(text)
    return str(tmp_path / "mine.toml")


@pytest.fixture
def ready(copied, tmp_path):
    """A bundle in which the target `mine` was prepared for TensorRT-RTX."""
    path = copied("bart")
    building.prepare(path, write(tmp_path, RTX))
    return path


def test_what_was_prepared_is_data_and_no_engine(ready):
    found = prepared.read(bundle.read(ready), "mine")
    assert {"encoder.onnx", "decoder_step.onnx", "samples.npz"} <= set(found.record["files"])
    assert engines.names(bundle.read(ready)) == []
    assert not str(found.record).count(str(ready.parent)), "no path of the machine that prepared it"


def test_the_device_compiles_without_onnx_and_onnxruntime(ready, trt):
    root = Path(building.__file__).parents[2]
    run = subprocess.run(
        [sys.executable, "-c", DEVICE, "build", str(ready), "--target", "mine", "--json"],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(root)}, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    if driver.unavailable() is not None:
        assert not found["has_run"] and "not run here" in found["summary"][-1]
    assert found["graphs"]["decoder_step"]["layers"]["KV_CACHE_UPDATE"] > 0
    assert engines.names(bundle.read(ready)) == ["mine"]


@pytest.mark.parametrize("version", ["10.3.0", "10.7.0"])
def test_full_tensorrt_is_asked_for_what_was_prepared(copied, tmp_path, monkeypatch, version):
    monkeypatch.setattr(tensorrt_builder, "_copy_kernels", lambda recipe, folder: (folder / "a.fatbin").touch())
    monkeypatch.setattr(tensorrt_builder, "_register_plugins", lambda library: None)
    path = copied("bart")
    said = building.prepare(path, write(tmp_path, ORIN), changes=Changes(max_batch=2)).record["summary"]
    assert sum(line.startswith("trtexec --onnx=") for line in said) == 3
    assert any("--preview=+aliasedPluginIO1003" in line and "--maxShapes=" in line for line in said)
    library, asked = full_tensorrt(version)
    monkeypatch.setattr(libraries, "load", lambda flavour: library)
    monkeypatch.setattr(driver, "Device", lambda: SimpleNamespace(name="Orin", capability="8.7", cuda_version="12.6"))
    monkeypatch.setattr(driver, "unavailable", lambda: "no GPU in this test")
    for name in ("onnx", "onnxruntime", "ml_dtypes"):
        monkeypatch.setitem(sys.modules, name, None)
    report = building.build(path, "mine")
    assert [Path(build["path"]).stem for build in asked] == list(bundle.GRAPHS)
    assert all(build["flags"] == 2 and build["config"].features == ["aliased"] for build in asked)
    assert asked[0]["config"].profiles[0].shapes["input_ids"][2][0] == 2
    assert report.engine["built_with"]["library"] == f"tensorrt {version}"
    assert report.engine["recipe"]["ranges"]["B"]["max"] == 2
    assert (report.path / "a.fatbin").is_file()


def test_a_laptop_is_told_to_prepare_here_and_compile_there(copied, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(SystemExit) as caught:
        main(["build", str(copied("bart")), "--target", "jetson-orin-fp16"])
    said = capsys.readouterr().err
    assert caught.value.code == 1
    assert "--prepare jetson-orin-fp16" in said and "bart.bundle --target jetson-orin-fp16" in said
    assert "pip install" not in said


def test_a_laptop_that_has_prepared_is_told_to_compile_there(copied, monkeypatch, tmp_path):
    path = copied("bart")
    building.prepare(path, write(tmp_path, ORIN.replace("plugins = true", "plugins = false")))
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(BuildError) as caught:
        building.build(path, "mine")
    said, _, on_the_device = str(caught.value).partition("; if this is the device: ")
    assert said.endswith("copy the bundle to the device, and run there: s2s build bart.bundle --target mine")
    assert on_the_device.startswith("TensorRT can't be imported")


def test_a_cpu_target_needs_no_preparation(copied):
    with pytest.raises(InvalidOption, match="nothing is to be prepared; run: s2s build"):
        building.prepare(copied("bart"), "cpu-int8")


# What was prepared and can't be used


def _changed(ready: Path, **values: object) -> None:
    file = ready / "prepared" / "mine" / "prepared.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"made_from": {}}, "from another version of this bundle"),
        ({"prepared_with": "0.0.1"}, "prepared by s2s_export 0.0.1"),
        ({"graphs": {}}, "lacks graphs.encoder"),
        ({"recipe": {"flavour": "tensorrt-rtx", "precision": "fp17"}}, "fp17"),
    ],
)
def test_a_stale_or_damaged_one_says_how_to_prepare_it_again(ready, values, reason):
    _changed(ready, **values)
    with pytest.raises(BuildError, match=f"{reason}.*s2s build bart.bundle --prepare mine"):
        building.build(ready, "mine")


def test_a_name_that_leads_out_of_the_bundle_is_refused(ready):
    _changed(ready, files={"../x": {"bytes": 1, "sha256": ""}})
    with pytest.raises(BundleError, match="leads out of the bundle"):
        building.build(ready, "mine")


def test_a_changed_file_is_found(ready):
    file = ready / "prepared" / "mine" / "encoder.onnx"
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(BuildError, match=r"encoder\.onnx: is not what was prepared"):
        building.build(ready, "mine")


# The trial on the device


@pytest.fixture
def running(copied, tmp_path, monkeypatch):
    """An engine on host memory, and samples that the portable graphs decoded."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    opened = bundle.read(copied("bart"))
    folder = fake_tensorrt.build(opened, recipe("fp32"), tmp_path)
    library, device = fake_tensorrt.fake_library(), fake_tensorrt.FakeDevice()
    backend = TensorRTBackend("x", opened, folder, library, device)
    backend.lacks_device_search = lambda: "host memory has no kernels"
    file = tmp_path / "samples.npz"
    limits = {"K": 4, "S": 16, "T": 24}
    assert trial.write(opened, OnnxRuntimeBackend(opened, 1), [[5, 6, 2], [7, 8, 9, 2]], limits, file) == 2
    return opened, backend, file


def test_a_trial_compares_tokens(running):
    opened, backend, file = running
    found = trial.run(opened, backend, file, 24)
    assert found == {"n_sources": 2, "searches": [{"num_beams": 1, "equal": 1.0}, {"num_beams": 4, "equal": 1.0}]}
    assert "100.0% with 1 beam(s)" in trial.line(found)


def test_a_low_agreement_says_what_it_means():
    said = trial.line({"n_sources": 4, "searches": [{"num_beams": 1, "equal": 0.5}]})
    assert "50.0%" in said and "chose another token" in said and "--samples" in said


def test_an_engine_that_computes_something_else_is_refused(running, monkeypatch):
    opened, backend, file = running
    decode = trial._decode
    wrong = lambda *given: {k: [[*ids, 1] for ids in found] for k, found in decode(*given).items()}  # noqa: E731
    monkeypatch.setattr(trial, "_decode", wrong)
    with pytest.raises(BuildError, match="computes something else"):
        trial.run(opened, backend, file, 24)


def test_samples_that_are_no_npz(running):
    opened, backend, file = running
    file.write_bytes(b"PK not really")
    with pytest.raises(BuildError, match="not readable as samples"):
        trial.run(opened, backend, file, 24)


# Limits in place of a recipe of one's own


def test_limits_replace_the_recipes():
    changed = Changes(max_batch=2, max_beams=2, max_source_length=4).apply(recipe(), {"B": Range(1, 1, 1)})
    assert changed.ranges["B"] == Range(1, 1, 2)
    assert changed.ranges["K"] == Range(1, 2, 2)
    assert changed.ranges["S"] == Range(1, 4, 4)


def test_a_target_that_takes_any_shape_has_no_limits(copied):
    with pytest.raises(InvalidOption, match="serves any batch.*leave out"):
        building.build(copied("bart"), "cpu-fp32", changes=Changes(max_batch=2))


def test_samples_that_are_not_there(copied):
    with pytest.raises(InvalidOption, match=r"none\.txt: no such file"):
        building.build(copied("bart"), "cpu-int8", changes=Changes(samples="none.txt"))


def test_a_library_in_a_prepared_folder_is_never_taken(ready, trt):
    """Recorded with the right hash as it may be: what is copied beside an engine is *.fatbin, which the GPU reads."""
    folder = ready / "prepared" / "mine"
    shutil.copyfile(shutil.which("true"), folder / "libplugin.so")
    record = json.loads((folder / "prepared.json").read_text())
    _changed(ready, files={**record["files"], **bundle.describe_files(folder)} | {})
    files = json.loads((folder / "prepared.json").read_text())["files"]
    files.pop("prepared.json")
    _changed(ready, files=files)
    with pytest.raises(BuildError, match=r"libplugin\.so.*never loaded"):
        building.build(ready, "mine")
