"""The worked examples of CONTRIBUTING.md, dropped into a folder as they stand there, are found and used."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import s2s_export
from s2s_export import recipes
from s2s_export.building.build import build
from s2s_export.cli import main
from s2s_export.errors import BackendUnavailable, InvalidOption, UnknownOption
from s2s_export.runtime import backends
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
        "tensorrt", "tensorrt-rtx", "onnxruntime-cuda", "onnxruntime",
    ]  # fmt: skip


def test_every_recipe_has_a_builder_and_a_backend() -> None:
    from s2s_export.building import builders

    for recipe in map(recipes.load, recipes.names()):
        assert builders.find(recipe.flavour)
        assert backends.of_flavour(recipe.flavour)
    with pytest.raises(InvalidOption, match="flavour is 'abacus', expected one of cpu, cuda, tensorrt, tensorrt-rtx"):
        builders.find("abacus")
