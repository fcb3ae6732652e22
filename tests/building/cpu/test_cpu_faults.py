"""Bad targets, stale and damaged engines, recipes that ask for what there is not."""

from __future__ import annotations

import json
import shutil

import pytest

import s2s_export
from s2s_export.building.build import build
from s2s_export.errors import BackendUnavailable, BuildError, EngineError, InvalidOption, UnknownOption


@pytest.fixture()
def copy(built, tmp_path):
    return shutil.copytree(built("marian", "cpu-fp32"), tmp_path / "bundle")


def change(path, **facts):
    file = path / "engines/cpu-fp32/engine.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **facts}))


def test_an_unknown_target_names_those_that_are_built(copy):
    with pytest.raises(BackendUnavailable, match=r"no cpu engine for target 'cpu-int9'.*s2s build"):
        s2s_export.load(copy, "onnxruntime", "cpu-int9")
    with pytest.raises(BackendUnavailable, match="portable"):
        s2s_export.load(copy, "onnxruntime", "nothing-like-it")


def test_an_engine_of_another_kind_is_refused(copy):
    change(copy, flavour="cuda")
    with pytest.raises(BackendUnavailable, match="flavour 'cuda'"):
        s2s_export.load(copy, "onnxruntime", "cpu-fp32")


def test_another_library_version_says_how_to_rebuild(copy):
    change(copy, onnxruntime="1.2.3")
    with pytest.raises(EngineError, match=r"1\.2\.3.*s2s build .* --target cpu-fp32"):
        s2s_export.load(copy)
    assert s2s_export.load(copy, target="portable").backend.target is None


def test_an_engine_of_another_bundle_is_refused(copy):
    change(copy, made_from={"weights.bin": "0"})
    with pytest.raises(EngineError, match="another version of this bundle"):
        s2s_export.load(copy)


def test_operators_of_another_processor_are_refused(copy):
    change(copy, processor="riscv64")
    with pytest.raises(EngineError, match=r"compiled for riscv64.*s2s build"):
        s2s_export.load(copy)


def test_a_file_that_is_cut_is_noticed(copy):
    file = copy / "engines/cpu-fp32/decoder_step.onnx"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(EngineError, match="decoder_step.onnx"):
        s2s_export.load(copy)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ("speed = 3", UnknownOption, "speed"),
        ('encoder = "blocks"', InvalidOption, "channel or block"),
        ("narrow_rows = -1", InvalidOption, "narrow_rows"),
        ("head_bits = 3", InvalidOption, "8 or 4"),
        ('embedding = "yes"', InvalidOption, "true or false"),
        ('samples = "nowhere.tsv"', InvalidOption, "no such file"),
        ('kernels = "fast"', InvalidOption, "auto, own, onnxruntime"),
        ('kernels = "own"\nhead_bits = 4', InvalidOption, "head_bits is an option of ONNX Runtime's"),
    ],
)
def test_options_are_checked_before_work_begins(copy, tmp_path, options, error, words):
    recipe = tmp_path / "mine.toml"
    recipe.write_text(f'flavour = "cpu"\nprecision = "int8"\n[options]\n{options}\n')
    with pytest.raises(error, match=words):
        build(copy, str(recipe))
    assert not (copy / "engines/mine").exists()


def test_precisions_that_a_cpu_lacks(copy, tmp_path):
    recipe = tmp_path / "mine.toml"
    recipe.write_text('flavour = "cpu"\nprecision = "fp16"\n')
    with pytest.raises(InvalidOption, match="fp32 or int8"):
        build(copy, str(recipe))


def test_four_bits_and_a_target_of_ones_own(copy, tmp_path):
    recipe = tmp_path / "mine.toml"
    recipe.write_text('flavour = "cpu"\nprecision = "int8"\n[options]\nhead_bits = 4\nstep = "block"\n')
    assert build(copy, str(recipe)).engine["target"] == "mine"
    assert s2s_export.load(copy, target="mine").generate([[5, 6, 7]], num_beams=2)[0][0].token_ids


def test_without_a_compiler_it_says_whose_kernels_are_taken(copy, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    report = build(copy, "cpu-fp32", force=True)
    assert report.engine["operators"] is None
    assert report.engine["summary"][0].startswith("kernels: ONNX Runtime's (no C++ compiler; expected one of g++")
    assert s2s_export.load(copy).generate([[5, 6, 7]])[0][0].token_ids
    recipe = tmp_path / "mine.toml"
    recipe.write_text('flavour = "cpu"\nprecision = "fp32"\n[options]\nkernels = "own"\n')
    with pytest.raises(BuildError, match="no C\\+\\+ compiler"):
        build(copy, str(recipe))


def test_operators_that_are_damaged_are_not_loaded(copy):
    file = copy / "engines/cpu-fp32/operators.so"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 255
    file.write_bytes(data)
    with pytest.raises(EngineError, match=r"operators.so: .*damaged.*s2s build"):
        s2s_export.load(copy)
