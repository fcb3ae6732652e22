"""Bad targets, stale and damaged engines, recipes that ask for what there is not."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess

import pytest
from command_line import s2s

import s2s_export
from s2s_export import plugin_sources
from s2s_export.building.build import build
from s2s_export.errors import BackendUnavailable, BuildError, EngineError, InvalidOption, S2SError, UnknownOption


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
    recipe.write_text('flavour = "cpu"\nprecision = "fp8"\n')
    with pytest.raises(InvalidOption, match="fp32 or fp16 or bf16 or int8"):
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


def own_operators(copy, tmp_path):
    """An engine whose graphs use our operators, whatever this processor is."""
    recipe = tmp_path / "cpu-fp32.toml"
    recipe.write_text('flavour = "cpu"\nprecision = "fp32"\n[options]\nkernels = "own"\n')
    try:
        return build(copy, str(recipe), force=True)
    except BuildError as error:
        pytest.skip(str(error).splitlines()[0])


def test_an_engine_is_data_only(copy, tmp_path):
    report = own_operators(copy, tmp_path)
    assert set(report.engine["operators"]) == {"sources"}
    files = {path.name for path in (copy / "engines/cpu-fp32").iterdir()}
    assert files == {*report.engine["files"], "engine.json"}
    assert not [name for name in files if not name.endswith((".onnx", ".bin", ".json"))]


def test_operators_of_other_sources_are_refused(copy, tmp_path):
    own_operators(copy, tmp_path)
    change(copy, operators={"sources": "0" * 20})
    with pytest.raises(EngineError, match=r"built for operators '0{20}'.* --target cpu-fp32 --force"):
        s2s_export.load(copy)


def test_operators_that_can_not_be_compiled_here(copy, tmp_path, monkeypatch):
    own_operators(copy, tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(BackendUnavailable, match=r"wheel .* no C\+\+ compiler.*'portable'"):
        s2s_export.load(copy)


EVIL = """
#include <cstdio>
#include <cstdlib>
__attribute__((constructor)) void run() { std::fclose(std::fopen(std::getenv("EVIL"), "w")); }
extern "C" __attribute__((visibility("default"))) void* RegisterCustomOps(void*, void*) { run(); return nullptr; }
"""


@pytest.mark.parametrize("way", ["named as operators", "beside graphs", "in place of a graph", "named nowhere"])
def test_code_that_a_bundle_brings_never_runs(copy, tmp_path, monkeypatch, way):
    """A library with right hashes everywhere, put where versions before this one loaded one, and elsewhere."""
    own_operators(copy, tmp_path)
    maker = plugin_sources.module("build")
    (tmp_path / "evil.cpp").write_text(EVIL)
    library = tmp_path / "operators.so"
    compiler = maker.find_compiler("g++", "c++", "clang++")
    subprocess.run([compiler, "-shared", "-fPIC", tmp_path / "evil.cpp", "-o", library], check=True)
    monkeypatch.setenv("EVIL", str(tmp_path / "it ran"))
    folder = copy / "engines/cpu-fp32"
    file = json.loads((folder / "engine.json").read_text())
    name = file["graphs"]["encoder"]["file"] if way == "in place of a graph" else "operators.so"
    shutil.copyfile(library, folder / name)
    entry = {"bytes": library.stat().st_size, "sha256": hashlib.sha256(library.read_bytes()).hexdigest()}
    changes = {} if way == "named nowhere" else {"files": {**file["files"], name: entry}}
    if way == "named as operators":
        changes |= {"operators": "operators.so", "format_version": 1}
    change(copy, **changes)
    with pytest.raises(S2SError, match="never loaded from a bundle"):
        s2s_export.load(copy)
    assert not (tmp_path / "it ran").exists()


def test_no_engines_opens_none(copy, tmp_path):
    (copy / "engines/cpu-fp32/engine.json").write_text("no JSON")
    cases = tmp_path / "cases.jsonl"
    cases.write_text('{"id": "1", "input_ids": [5, 6, 7]}\n')
    command = ["generate", str(copy), "--input", str(cases), "--output", "-"]
    s2s(*command, status=1)
    assert json.loads(s2s(*command, "--no-engines").stdout)["outputs"]
