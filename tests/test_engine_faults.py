"""engine.json and manifest.json that are wrong: each is refused in one sentence that names the place."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

import s2s_export
from s2s_export import bundle, engines
from s2s_export.building.build import build
from s2s_export.errors import BundleError, EngineError, S2SError

SOURCE = [[5, 6, 7]]


@pytest.fixture(scope="module")
def with_engine(exported: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = shutil.copytree(exported("t5")[1], tmp_path_factory.mktemp("engine") / "bundle")
    recipe = path.parent / "mine.toml"
    recipe.write_text('flavour = "cpu"\nprecision = "fp32"\n[options]\nkernels = "onnxruntime"\n')
    build(path, str(recipe))
    return path


@pytest.fixture
def copy(with_engine: Path, tmp_path: Path) -> Path:
    return shutil.copytree(with_engine, tmp_path / "bundle")


def document(file: Path, place: tuple[Any, ...], value: Any) -> None:
    """Write `value` at a place in a JSON file; DELETED removes it."""
    data = inner = json.loads(file.read_text())
    for key in place[:-1]:
        inner = inner[key]
    if value is DELETED:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    file.write_text(json.dumps(data))


DELETED = object()
ENGINE: list[tuple[tuple[Any, ...], Any, str]] = [
    (("graphs", "decoder_step", "inputs", 2, "name"), 3, r"graphs\.decoder_step\.inputs\[2\]\.name is 3, expected te"),
    (("graphs", "encoder"), DELETED, r"lacks graphs\.encoder;"),
    (("graphs", "encoder", "file"), "a\0b", r"graphs\.encoder\.file is 'a\\x00b', expected the name of a file"),
    (("graphs", "encoder", "file"), "other.onnx", r"graphs\.encoder\.file is 'other\.onnx', expected one of the names"),
    (("graphs", "encoder", "inputs", 0, "dtype"), "string", "dtype is 'string', expected one of float32"),
    (("graphs", "encoder", "inputs", 0, "shape"), ["B", 1.5], r"shape\[1\] is 1\.5, expected a size or one of the"),
    (("passes",), {"decoder_step": ["x"]}, r"passes\.decoder_step\[0\] is 'x', expected an object"),
    (("passes",), {"decoder_step": [{"left": 3}]}, r"passes\.decoder_step\[0\]\.left is 3, expected an object"),
    (("graphs", "decoder_step", "max_rows"), 1, r"graphs\.decoder_step\.max_rows is there"),
    (("files", "encoder.onnx", "bytes"), "7", r"files\.encoder\.onnx\.bytes is '7', expected a whole number"),
    (("files",), [], "files is a list, expected an object"),
    (("made_from",), DELETED, "lacks made_from;"),
    (("flavour",), None, "flavour is null, expected text"),
    (("onnxruntime",), 1.32, "onnxruntime is 1.32, expected text"),
    (("weights",), "elsewhere", "weights is 'elsewhere', expected one of engine, bundle"),
    (("shared",), {"encoder": {"w": {"dtype": "float32", "shape": [2], "offset": -1}}}, "offset is -1, expected"),
    (("operators",), 3, "operators is 3, expected sources of operators"),
    (("format_version",), 3, "engine format 3, but this version reads up to 2; upgrade"),
]  # fmt: skip


@pytest.mark.parametrize(("place", "value", "message"), ENGINE, ids=[case[2] for case in ENGINE])
def test_an_engine_is_checked_at_the_door(copy: Path, place: tuple[Any, ...], value: Any, message: str) -> None:
    document(copy / "engines/mine/engine.json", place, value)
    with pytest.raises(EngineError, match=rf"engines/mine/engine\.json: .*{message}"):
        s2s_export.load(copy, "onnxruntime", "mine")
    assert s2s_export.load(copy, target="portable").generate(SOURCE)


MANIFEST: list[tuple[tuple[Any, ...], Any, str]] = [
    (("sizes", "vocabulary_size"), "40", r"sizes\.vocabulary_size is '40', expected a whole number of at least (0|1)"),
    (("limits", "max_source_length"), 0, r"limits\.max_source_length is 0, expected a whole number of at least 1"),
    (("source",), {}, r"lacks source\.pad_token_id;"),
    (("generation",), 3, "generation is 3, expected an object"),
    (("decoder",), "other", "decoder is 'other', expected one of attention, recurrent"),
    (("graphs", "encoder", "outputs"), {}, r"graphs\.encoder\.outputs is an object, expected a list"),
    (("graphs", "encoder", "file"), "a\0b", r"graphs\.encoder\.file is .*, expected the name of a file"),
    (("files", "weights.bin", "sha256"), None, r"files\.weights\.bin\.sha256 is null, expected text"),
    (("tokenizer",), [], "tokenizer is a list, expected an object"),
]  # fmt: skip


@pytest.mark.parametrize(("place", "value", "message"), MANIFEST, ids=[case[2] for case in MANIFEST])
def test_a_manifest_is_checked_at_the_door(copy: Path, place: tuple[Any, ...], value: Any, message: str) -> None:
    document(copy / "manifest.json", place, value)
    with pytest.raises(BundleError, match=rf"manifest\.json: {message}.*export the bundle again"):
        s2s_export.load(copy)


def pipe(file: Path) -> None:
    os.mkfifo(file)


def device(file: Path) -> None:
    file.symlink_to("/dev/zero")


def link_to_itself(file: Path) -> None:
    file.symlink_to(file.name)


def folder(file: Path) -> None:
    file.mkdir()


def nested(file: Path) -> None:
    file.write_text("[" * 100_000)


def nested_a_little(file: Path) -> None:
    file.write_text('{"a":' * 200 + "1" + "}" * 200)


def no_utf8(file: Path) -> None:
    file.write_bytes(b'"\xff"')


NOT_JSON = [pipe, device, link_to_itself, folder, nested, nested_a_little, no_utf8]


@pytest.mark.parametrize("name", ["manifest.json", "engines/mine/engine.json"])
@pytest.mark.parametrize("make", NOT_JSON)
def test_what_is_no_json_document_is_refused_and_never_waited_for(copy: Path, name: str, make: Any) -> None:
    (copy / name).unlink()
    make(copy / name)
    with pytest.raises((BundleError, EngineError), match=rf"{name}: not readable as JSON \(.*\); "):
        s2s_export.load(copy, "onnxruntime", "mine")


def test_hidden_folders_are_no_engines(copy: Path) -> None:
    shutil.copytree(copy / "engines/mine", copy / "engines/.mine.abc")
    assert list(engines.engines(bundle.read(copy))) == ["mine"]
    with pytest.raises(S2SError, match=r"known: mine, portable") as caught:
        s2s_export.load(copy, "onnxruntime", "nothing-like-it")
    assert ".mine" not in str(caught.value)


def test_an_engine_without_a_version_and_without_later_keys_is_read(copy: Path) -> None:
    """As the first ones were written."""
    for key in ("format_version", "shared", "operators", "summary", "bytes", "seconds"):
        document(copy / "engines/mine/engine.json", (key,), DELETED)
    assert s2s_export.load(copy, target="mine").generate(SOURCE) == s2s_export.load(copy, target="portable").generate(
        SOURCE
    )


@pytest.mark.parametrize("side", ["inputs", "outputs"])
@pytest.mark.parametrize("graph", ["encoder", "cross_kv_init", "decoder_step"])
@pytest.mark.parametrize("file", ["manifest.json", "engines/mine/engine.json"])
def test_a_value_that_a_description_leaves_out_is_named(copy: Path, file: str, graph: str, side: str) -> None:
    entries = json.loads((copy / file).read_text())["graphs"][graph][side]
    target = "portable" if file == "manifest.json" else "mine"
    rebind(copy, file)
    for index, entry in enumerate(entries):
        kept = (copy / file).read_text()
        document(copy / file, ("graphs", graph, side, index), DELETED)
        with pytest.raises(BundleError, match=rf"{graph}.onnx: the graph has the {side[:-1]} '{entry['name']}', which"):
            s2s_export.load(copy, "onnxruntime", target)
        if target == "portable":
            with pytest.raises(BundleError, match=f"the graph has the {side[:-1]} '{entry['name']}', which"):
                s2s_export.load(copy, "torch")
        (copy / file).write_text(kept)


def rebind(copy: Path, file: str) -> None:
    """Nothing else may be at fault."""
    assert s2s_export.load(copy, "onnxruntime", "portable" if file == "manifest.json" else "mine").generate(SOURCE)


def test_a_type_or_a_size_that_differs_is_named(copy: Path) -> None:
    file = copy / "engines/mine/engine.json"
    kept = file.read_text()
    document(file, ("graphs", "encoder", "inputs", 0, "dtype"), "float32")
    with pytest.raises(BundleError, match=r"the graph's input 'input_ids' is int64, its description says float32"):
        s2s_export.load(copy, target="mine")
    file.write_text(kept)
    document(file, ("graphs", "encoder", "inputs", 0, "shape"), ["B", "K"])
    with pytest.raises(BundleError, match=r"'input_ids' has shape \[B, S\], its description says \[B, K\]"):
        s2s_export.load(copy, target="mine")
    file.write_text(kept)
    document(file, ("graphs", "encoder", "outputs", 0, "shape"), ["B", "S", 7])
    with pytest.raises(
        BundleError, match=r"'encoder_states' has shape \[B, S, \d+\], its description says \[B, S, 7\]"
    ):
        s2s_export.load(copy, target="mine")


WRONG: list[Any] = [
    None,
    True,
    -1,
    0,
    3,
    1.5,
    10**30,
    2**62,
    "",
    "x",
    "\0",
    "\ud800",
    [],
    [[]],
    {},
    {"a": 1},
    ["B"],
    DELETED,
]


def places(document: Any) -> list[tuple[Any, ...]]:
    items = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    return [place for key, value in items for place in [(key,), *((key, *rest) for rest in places(value))]]


@pytest.mark.parametrize("name", ["manifest.json", "engines/mine/engine.json"])
def test_whatever_is_written_there_no_other_exception_comes_out(copy: Path, name: str) -> None:
    """A hundred random changes: it works as before, or it is one of our errors."""
    file = copy / name
    whole = file.read_text()
    chance, where = random.Random(name), places(json.loads(whole))
    for _ in range(100):
        place, value = chance.choice(where), chance.choice(WRONG)
        document(file, place, value)
        try:
            session = s2s_export.load(copy, "onnxruntime", "mine", verify=False)
            session.generate(SOURCE, num_beams=2, max_new_tokens=4)
        except S2SError as error:
            assert str(error).isprintable(), (place, value)
        except Exception as error:
            pytest.fail(f"{place} = {value!r}: {type(error).__name__}: {error}")
        file.write_text(whole)
