"""libs2s decodes as the Python session does, token for token and score for score, and says what is wrong."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import s2s_export
from s2s_export import plugin_sources
from s2s_export.errors import BuildError

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [[2, 30, 40, 0], [3, 50, 0], [2, 7, 9, 11, 13, 15, 0]]
CASES: list[dict[str, Any]] = [
    {"num_beams": 1},
    {},
    {
        "num_beams": 4,
        "num_return_sequences": 3,
        "length_penalty": 0.6,
        "max_new_tokens": 20,
        "renormalize_logits": False,
    },
    {
        "num_beams": 3,
        "num_return_sequences": 3,
        "early_stopping": True,
        "min_length": 6,
        "max_length": 15,
        "renormalize_logits": False,
    },
    {
        "num_beams": 2,
        "early_stopping": "never",
        "no_repeat_ngram_size": 2,
        "max_length": 18,
        "renormalize_logits": False,
    },
    {
        "num_beams": 1,
        "repetition_penalty": 1.7,
        "suppress_tokens": [30, 31],
        "max_length": 12,
        "renormalize_logits": False,
    },
    {
        "num_beams": 4,
        "bad_words_ids": [[390], [30, 31], [0, 5, 6]],
        "forced_bos_token_id": 44,
        "max_length": 12,
        "renormalize_logits": False,
    },
]
# Without renormalize_logits where rules may leave too little probability for it, which the library refuses.
Run = Callable[..., "subprocess.CompletedProcess[str]"]


def onnxruntime_library() -> Path:
    import onnxruntime

    found = sorted((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.1*"))
    if not found:
        pytest.skip("the package onnxruntime has no libonnxruntime.so")
    return found[0]


@pytest.fixture(scope="module")
def bundle(number_words: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from s2s_export.building.build import build

    path = tmp_path_factory.mktemp("libs2s") / "number-words"
    shutil.copytree(number_words, path)
    for target in ("cpu-fp32", "cpu-int8"):
        build(path, target)
    if s2s_export.load(path, target="cpu-fp32").backend.operators is None:  # type: ignore[attr-defined]
        pytest.skip("this machine has no fast instruction set for our own operators")
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs the example with the library, on SOURCES or what else is given as text."""
    folder = tmp_path_factory.mktemp("decode_cpp")
    try:
        library = plugin_sources.module("library.build").library()
        compiler = plugin_sources.module("build").find_compiler("g++", "c++", "clang++")
    except BuildError as missing:  # pragma: no cover
        pytest.skip(str(missing).splitlines()[0])
    program = folder / "decode_cpp"
    subprocess.run(
        [compiler, "-std=c++17", "-I", ROOT / "plugins" / "library", ROOT / "examples" / "decode_cpp" / "main.cpp",
         library, f"-Wl,-rpath,{library.parent}", "-o", program], check=True,
    )  # fmt: skip
    onnxruntime = onnxruntime_library()

    def call(bundle: Path, target: str, options: Any, text: str | None = None) -> subprocess.CompletedProcess[str]:
        given = options if isinstance(options, str) else json.dumps(options)
        text = "\n".join(" ".join(map(str, ids)) for ids in SOURCES) + "\n" if text is None else text
        command = [program, bundle, target, onnxruntime, given]
        return subprocess.run(command, input=text, capture_output=True, text=True, check=False)

    return call


def read(out: str) -> list[tuple[int, float, list[int]]]:
    return [(int(b), float(score), [int(i) for i in ids]) for b, score, *ids in map(str.split, out.splitlines())]


@pytest.mark.parametrize("target", ["cpu-fp32", "cpu-int8"])
def test_results_are_the_sessions(bundle: Path, run: Run, target: str) -> None:
    session = s2s_export.load(bundle, target=target, threads=1)
    for options in CASES:
        found = run(bundle, target, options)
        assert found.returncode == 0, found.stderr
        expected = session.generate(SOURCES, **options)
        outputs = [(b, one.score, one.token_ids) for b, of_source in enumerate(expected) for one in of_source]
        assert read(found.stdout) == outputs, options


@pytest.mark.parametrize(
    ("options", "text", "said"),
    [
        ({"top_k": 3}, None, "does not have the option 'top_k'"),
        ({"num_beams": 0}, None, "num_beams is not as expected"),
        ({"num_beams": 2, "num_return_sequences": 3}, None, "expected at most num_beams"),
        ({"max_new_tokens": 3000}, None, "the decoder has 256 positions"),
        ({"suppress_tokens": [391]}, None, "token ids from 0 to 390"),
        ("{", None, "not JSON"),
        ("[" * 1000, None, "too many levels"),
        ({}, "3 391 0\n", "source 0 has the id 391"),
        ({}, "\n", "source 0 has no tokens"),
        ({}, "5 " * 300 + "\n", "the model allows 256"),
    ],
    ids=lambda value: None,
)
def test_bad_calls_are_one_sentence(bundle: Path, run: Run, options: Any, text: str | None, said: str) -> None:
    found = run(bundle, "cpu-fp32", options, text)
    assert found.returncode == 1
    assert said in found.stderr and found.stderr.count("\n") == 1


def test_what_is_no_engine_is_one_sentence(bundle: Path, run: Run, tmp_path: Path) -> None:
    for folder, target, said in ((tmp_path, "cpu-fp32", "can't be read"), (bundle, "../x", "expected a name"),
                                 (bundle, "cpu-fp16", "can't be read")):  # fmt: skip
        found = run(folder, target, {})
        assert found.returncode == 1 and said in found.stderr and found.stderr.count("\n") == 1
    other = tmp_path / "other"
    shutil.copytree(bundle, other)
    record = other / "engines" / "cpu-fp32" / "engine.json"
    engine = json.loads(record.read_text())
    engine["operators"]["sources"] = "0" * 20
    record.write_text(json.dumps(engine))
    found = run(other, "cpu-fp32", {})
    assert found.returncode == 1 and "built for other operators" in found.stderr


def test_damaged_records_never_crash_it(bundle: Path, run: Run, tmp_path: Path) -> None:
    chance = random.Random(7)
    for at in range(12):
        other = tmp_path / str(at)
        shutil.copytree(bundle, other, copy_function=os.link)
        name = chance.choice(["manifest.json", "engines/cpu-int8/engine.json"])
        data = bytearray((other / name).read_bytes())
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(len(data))] = chance.choice(b'0123456789{}[]",x')
        (other / name).unlink()
        (other / name).write_bytes(data)
        found = run(other, "cpu-int8", {})
        assert found.returncode in (0, 1), found
        assert found.returncode == 0 or found.stderr.count("\n") == 1


def test_the_hash_of_the_operators_without_python() -> None:
    made = subprocess.run(["sh", ROOT / "plugins" / "library" / "operators_hash"], capture_output=True, text=True)
    cpu = plugin_sources.module("cpu.build")
    assert made.stdout.strip().split(",") == [cpu.sources(), *cpu.EARLIER]


def test_many_threads_may_use_one_model(bundle: Path, run: Run) -> None:
    import ctypes
    from concurrent.futures import ThreadPoolExecutor

    library = ctypes.CDLL(str(plugin_sources.module("library.build").library()))
    for name in ("s2s_open", "s2s_generate", "s2s_output"):
        getattr(library, name).restype = ctypes.c_void_p
    library.s2s_last_error.restype = ctypes.c_char_p
    model = library.s2s_open(os.fsencode(bundle), b"cpu-fp32", os.fsencode(onnxruntime_library()), 1)
    assert model, library.s2s_last_error()

    def decode(source: list[int]) -> list[int]:
        ids, lengths = (ctypes.c_int64 * len(source))(*source), (ctypes.c_int32 * 1)(len(source))
        result = library.s2s_generate(ctypes.c_void_p(model), ids, lengths, 1, None)
        assert result, library.s2s_last_error()
        n = ctypes.c_int32()
        found = library.s2s_output(ctypes.c_void_p(result), 0, 0, ctypes.byref(n), None)
        out = list((ctypes.c_int64 * n.value).from_address(found))
        library.s2s_free(ctypes.c_void_p(result))
        return out

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(decode, SOURCES * 5))
    library.s2s_close(ctypes.c_void_p(model))
    session = s2s_export.load(bundle, target="cpu-fp32", threads=1)
    assert together == [session.generate([source])[0][0].token_ids for source in SOURCES] * 5


@pytest.mark.slow
def test_cmake_builds_and_installs_it(bundle: Path, tmp_path: Path) -> None:
    cmake = shutil.which("cmake")
    if cmake is None:
        pytest.skip("there is no cmake; pip install cmake")
    made, prefix, example = tmp_path / "made", tmp_path / "prefix", tmp_path / "example"
    for command in (
        [cmake, "-S", ROOT / "plugins" / "library", "-B", made],
        [cmake, "--build", made],
        [cmake, "--install", made, "--prefix", prefix],
        [cmake, "-S", ROOT / "examples" / "decode_cpp", "-B", example, f"-DCMAKE_PREFIX_PATH={prefix}"],
        [cmake, "--build", example],
    ):
        subprocess.run(command, check=True, capture_output=True)
    command = [example / "decode_cpp", bundle, "cpu-int8", onnxruntime_library()]
    found = subprocess.run(command, input="2 30 40 0\n", capture_output=True, text=True, check=False)
    session = s2s_export.load(bundle, target="cpu-int8", threads=1)
    assert read(found.stdout)[0][2] == session.generate([[2, 30, 40, 0]])[0][0].token_ids
