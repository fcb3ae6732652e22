"""The worked examples of CONTRIBUTING.md, dropped into a folder as they stand there, are found and used."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import s2s_export
from s2s_export import bundle, recipes
from s2s_export.building.build import build
from s2s_export.cli import main
from s2s_export.errors import BackendUnavailable, BundleError, InputError, InvalidOption, UnknownOption
from s2s_export.runtime import backends, sources
from s2s_export.runtime.decoding import rules
from s2s_export.runtime.decoding.options import resolve
from s2s_export.runtime.device_search.rules import serialise, with_form

SOURCES = [[5, 6, 7, 8, 9], [10, 11], [12, 13, 14]]
GUIDE = Path(__file__).parent.parent / "CONTRIBUTING.md"
Drop = Callable[[ModuleType, str], Path]


def example(name: str) -> str:
    """The block of code that the guide gives for a file of this name."""
    text = GUIDE.read_text(encoding="utf-8")
    found = re.search(rf"{re.escape(name)}`:\n\n```\w+\n(.*?)```", text, re.DOTALL)
    assert found, f"{GUIDE.name} has no example for {name}"
    return found[1]


@pytest.fixture
def drop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Drop]:
    """drop(package, file): the guide's example as a file of a folder that the package has beside its own."""
    dropped: list[str] = []

    def put(package: ModuleType, file: str) -> Path:
        path = tmp_path / file
        path.write_text(example(file), encoding="utf-8")
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
        dropped.append(f"{package.__name__}.{path.stem}")
        return path

    yield put
    for name in dropped:
        if sys.modules.pop(name, None):
            package, _, stem = name.rpartition(".")
            delattr(sys.modules[package], stem)


def test_a_backend_in_a_folder_is_found_and_used(drop: Drop, bundled: Any, capsys: pytest.CaptureFixture[str]) -> None:
    name = "onnxruntime-single"
    usual = s2s_export.load(bundled("t5")).generate(SOURCES, num_beams=3, max_new_tokens=8)
    with pytest.raises(UnknownOption, match=f"unknown backend '{name}'"):
        s2s_export.load(bundled("t5"), backend=name)
    drop(backends, "onnxruntime_single.py")
    session = s2s_export.load(bundled("t5"), backend=name, threads=3)
    assert session.backend.name == name and session.backend.threads == 1
    assert session.generate(SOURCES, num_beams=3, max_new_tokens=8) == usual
    assert s2s_export.load(bundled("t5"), backend=name, workers=None).workers >= 1
    with pytest.raises(BackendUnavailable, match=f"{name}: runs the portable graphs only"):
        s2s_export.load(bundled("t5"), backend=name, target="cpu-fp32")
    assert name not in [backend.name for backend in backends.by_preference()]
    with pytest.raises(SystemExit, match="0"):
        main(["doctor", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert report["backends"][name] is None and report["searches"][name] == "on the host"
    with pytest.raises(SystemExit, match="0"):
        main(["doctor"])
    assert re.search(rf"^  {name} +works$", capsys.readouterr().out, re.MULTILINE)


def test_a_rule_in_a_folder_is_found_and_used(drop: Drop, bundled: Any) -> None:
    session = s2s_export.load(bundled("t5"))
    with pytest.raises(UnknownOption, match="unknown generation option 'preferred_tokens'"):
        session.generate(SOURCES, preferred_tokens=[7])
    drop(rules, "preferred_tokens.py")
    limit = {"num_beams": 2, "max_new_tokens": 8}
    preferred = session.generate(SOURCES, preferred_tokens=[7, 9], **limit)
    assert preferred == session.generate(SOURCES, sequence_bias={(7,): 2.0, (9,): 2.0}, **limit)
    assert preferred != session.generate(SOURCES, **limit)
    size = session.bundle.vocabulary_size
    with pytest.raises(InvalidOption, match=f"preferred_tokens has {size}, expected token ids from 0 to {size - 1}"):
        session.generate(SOURCES, preferred_tokens=[size])
    with pytest.raises(InvalidOption, match="preferred_tokens is 'x', expected a list of token ids"):
        session.generate(SOURCES, preferred_tokens="x")
    given = {"preferred_tokens": [7], "decoder_start_token_id": 0}
    assert resolve(given, {}, vocabulary_size=size).preferred_tokens == (7,)  # from a checkpoint's configuration


def test_a_rule_in_a_folder_has_its_form_for_a_gpu(drop: Drop) -> None:
    drop(rules, "preferred_tokens.py")
    assert "preferred_tokens" in with_form()
    options = resolve({}, {"preferred_tokens": [4, 8], "decoder_start_token_id": 0}, vocabulary_size=40)
    serialised = serialise(options, 40)
    assert serialised.n_rules == 1
    assert serialised.ids.tolist() == [4, 8] and serialised.amounts.tolist() == [2.0, 2.0]


def read_vectors(path: Path) -> None:
    """Gives a bundle an encoder that hands its input on: the source is what the encoder computed before."""
    import onnx

    old = onnx.load(path / "encoder.onnx", load_external_data=False)
    (states,) = old.graph.output
    fed = onnx.ValueInfoProto()
    fed.CopyFrom(states)
    fed.name = "vectors"
    node = onnx.helper.make_node("Identity", ["vectors"], [states.name])
    graph = onnx.helper.make_graph([node], "encoder", [fed], [states])
    model = onnx.helper.make_model(graph, opset_imports=old.opset_import, ir_version=old.ir_version)
    onnx.save_model(model, path / "encoder.onnx")
    manifest = json.loads((path / "manifest.json").read_text())
    entry = manifest["graphs"]["encoder"]
    entry["inputs"] = [{**entry["outputs"][0], "name": "vectors"}]
    manifest["source"] = {"kind": "vectors", "pad_token_id": None}
    manifest["files"] = bundle.describe_files(path)
    bundle.write_manifest(path, manifest)


@pytest.mark.parametrize("backend", ["onnxruntime", "torch"])
def test_a_kind_of_source_in_a_folder_is_found_and_used(drop: Drop, copied: Any, backend: str) -> None:
    path, search = copied("t5"), {"num_beams": 3, "max_new_tokens": 8}
    before = s2s_export.load(path, backend="onnxruntime")
    usual = before.generate(SOURCES, alignments=True, **search)
    given = [before.backend.encode([ids])["encoder_states"][0] for ids in SOURCES]  # type: ignore[attr-defined]
    read_vectors(path)
    with pytest.raises(
        BundleError, match="of the kind 'vectors', but this version knows audio_features, .*token_ids, .*; upgrade"
    ):
        s2s_export.load(path, backend=backend)
    drop(sources, "vectors.py")
    session = s2s_export.load(path, backend=backend)
    assert session.kind.name == "vectors"
    session.warm_up([4], n_sources=2, **search)
    found = session.generate(given, alignments=True, **search)
    assert [best[0].token_ids for best in found] == [best[0].token_ids for best in usual]
    for (best, *_), (expected, *_) in zip(found, usual, strict=True):  # cut to the length of the source
        np.testing.assert_allclose(best.alignment, expected.alignment, atol=1e-5)
    with pytest.raises(InputError, match=r"source 0: the source has shape \[3\]; expected vectors of"):
        session.generate([[1.0, 2.0, 3.0]])
    with pytest.raises(InvalidOption, match="encoder_no_repeat_ngram_size is 2, but the model's sources have no token"):
        session.generate(given, encoder_no_repeat_ngram_size=2)
    with pytest.raises(InputError, match="the model reads 'vectors'"):
        session.encode("a text")


def test_a_kind_of_source_has_its_field_in_json_lines(drop: Drop, copied: Any, tmp_path: Path) -> None:
    drop(sources, "vectors.py")
    path = copied("t5")
    read_vectors(path)
    width = bundle.read(path).manifest["graphs"]["encoder"]["inputs"][0]["shape"][2]
    vectors = np.random.default_rng(1).standard_normal((5, width)).round(3).tolist()
    lines = [{"vectors": vectors}, {"input_ids": [5, 6]}, {"text": "x"}, {"vectors": []}, {}]
    file, out = tmp_path / "cases.jsonl", tmp_path / "out.jsonl"
    file.write_text("".join(json.dumps({**line, "max_new_tokens": 5}) + "\n" for line in lines))
    with pytest.raises(SystemExit, match="1"):
        main(["generate", str(path), "--input", str(file), "--output", str(out), "--quiet"])
    found = [json.loads(line) for line in out.read_text().splitlines()]
    expected = s2s_export.load(path).generate([vectors], max_new_tokens=5)[0][0].token_ids
    assert found[0]["outputs"][0]["token_ids"] == expected
    assert [line["error"].split(";")[0] for line in found[1:]] == [
        "this bundle takes no 'input_ids'", "this bundle takes no 'text'", "the source has shape [0]", "found none",
    ]  # fmt: skip


def test_a_kind_of_source_runs_on_a_gpu(drop: Drop, copied: Any, tmp_path: Path) -> None:
    """A target's engine, built with samples of the kind, on a device of host memory: padded to buckets there."""
    from fake_tensorrt import FakeDevice, fake_library
    from fake_tensorrt import build as build_fake
    from small import recipe

    from s2s_export.runtime.backends._tensorrt.backend import TensorRTBackend
    from s2s_export.runtime.session import Session

    drop(sources, "vectors.py")
    path = copied("t5")
    read_vectors(path)
    opened, search = bundle.read(path), {"num_beams": 3, "max_new_tokens": 8}
    folder = build_fake(opened, recipe("fp32"), tmp_path)
    device = FakeDevice()
    backend = TensorRTBackend("tensorrt-rtx", opened, folder, fake_library(device), device)
    session, portable = Session(opened, backend, search="host"), s2s_export.load(path, backend="onnxruntime")
    rng = np.random.default_rng(2)
    given = [portable.kind.random(rng, length) for length in (3, 9, 1, 12)]
    found, expected = session.generate(given, **search), portable.generate(given, **search)
    assert [best[0].token_ids for best in found] == [best[0].token_ids for best in expected]


def test_a_kind_of_source_is_searched_on_a_gpu(drop: Drop, copied: Any) -> None:
    """With the emulation of the kernels, on the CPU's memory."""
    from device_helpers import missing_compiler

    from s2s_export.runtime.backends import onnxruntime_cuda
    from s2s_export.runtime.session import Session

    if reason := missing_compiler():
        pytest.skip(reason)
    drop(sources, "vectors.py")
    path = copied("t5")
    read_vectors(path)
    opened, search = bundle.read(path), {"num_beams": 3, "max_new_tokens": 8}
    backend = onnxruntime_cuda.OnnxRuntimeCudaBackend(opened, *onnxruntime_cuda._choose(opened, None), device="cpu")
    session, host = Session(opened, backend), s2s_export.load(path, backend="onnxruntime")
    assert session.searcher.where == "device"
    given = [host.kind.random(np.random.default_rng(2), length) for length in (3, 9, 1)]
    found, expected = (
        used.generate(given, alignments=True, no_repeat_ngram_size=2, **search) for used in (session, host)
    )
    assert [best[0].token_ids for best in found] == [best[0].token_ids for best in expected]
    for (best, *_), (other, *_) in zip(found, expected, strict=True):
        np.testing.assert_allclose(best.alignment, other.alignment, atol=1e-5)


def test_a_target_in_a_folder_is_found_and_used(tmp_path: Path, copied: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    name, path = "cpu-fp32-plain", copied("t5")
    (tmp_path / "engines").mkdir()
    (tmp_path / "engines" / f"{name}.toml").write_text(example(f"{name}.toml"))
    monkeypatch.setattr(recipes, "folder", lambda: tmp_path / "engines")
    assert recipes.names() == [name]
    assert build(path, name).engine["operators"] is None
    portable, built = (
        s2s_export.load(path, target=target).generate(SOURCES, num_beams=3, max_new_tokens=8)
        for target in ("portable", name)
    )
    assert [best[0].token_ids for best in built] == [best[0].token_ids for best in portable]


def test_every_backend_declares_another_name_and_place() -> None:
    found = list(backends.declared().values())
    places = [backend.preference for backend in found if backend.preference is not None]
    assert len(set(places)) == len(places)
    flavours = [flavour for backend in found for flavour in backend.flavours]
    assert len(set(flavours)) == len(flavours)
    assert [backend.name for backend in backends.by_preference()] == [
        "tensorrt", "tensorrt-rtx", "cuda", "onnxruntime-cuda", "onnxruntime",
    ]  # fmt: skip


def test_every_recipe_has_a_builder_and_a_backend() -> None:
    from s2s_export.building import builders

    for recipe in map(recipes.load, recipes.names()):
        assert builders.find(recipe.flavour)
        assert backends.of_flavour(recipe.flavour)
    known = "cpu, cuda, cuda-native, tensorrt, tensorrt-rtx"
    with pytest.raises(InvalidOption, match=f"flavour is 'abacus', expected one of {known}"):
        builders.find("abacus")
