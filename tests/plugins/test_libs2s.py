"""libs2s decodes as the Python session does, token for token and score for score, and says what is wrong."""

from __future__ import annotations

import ctypes
import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import text_folders
from text_samples import FRAGMENTS, SPECIALS, TEXTS

import s2s_export
from s2s_export import plugin_sources
from s2s_export.errors import BuildError, InputError
from s2s_export.runtime.text import load as load_tokenizer

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [[2, 30, 40, 0], [3, 50, 0], [2, 7, 9, 11, 13, 15, 0]]
CASES: list[dict[str, Any]] = [
    {"num_beams": 1},
    {},
    {
        "num_beams": 1,
        "encoder_repetition_penalty": 1.4,
        "frequency_penalty": 0.8,
        "min_new_tokens": 9,
        "renormalize_logits": False,
    },
    {
        "num_beams": 1,
        "exponential_decay_length_penalty": [3, 1.2],
        "begin_suppress_tokens": [5, 9],
        "max_length": 17,
        "renormalize_logits": False,
    },
    {
        "num_beams": 4,
        "num_return_sequences": 4,
        "encoder_no_repeat_ngram_size": 2,
        "sequence_bias": [[[7], -1.5], [[4, 3], 2.0], [[5, 4, 3], 0.25], [[7], 0.75]],
        "exponential_decay_length_penalty": [2, 1.1],
        "renormalize_logits": False,
    },
    {
        "num_beams": 3,
        "frequency_penalty": -0.3,
        "encoder_repetition_penalty": 0.7,
        "repetition_penalty": 1.2,
        "begin_suppress_tokens": [3],
        "min_new_tokens": 4,
        "min_length": 30,
        "max_new_tokens": 12,
        "renormalize_logits": False,
    },
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


def compiled(name: str, folder: Path, library: Path, *flags: str) -> Path:
    """A program of examples/decode_cpp with the library."""
    compiler = plugin_sources.module("build").find_compiler("g++", "c++", "clang++")
    source = ROOT / "examples" / "decode_cpp" / f"{name}.cpp"
    command = [compiler, "-std=c++17", *flags, "-I", ROOT / "plugins" / "library", source, library]
    subprocess.run([*command, f"-Wl,-rpath,{library.parent}", "-o", folder / name], check=True)
    return folder / name


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs the example with the library, on SOURCES or what else is given as text."""
    try:
        library = plugin_sources.module("library.build").library()
    except BuildError as missing:  # pragma: no cover
        pytest.skip(str(missing).splitlines()[0])
    return runner(compiled("main", tmp_path_factory.mktemp("decode_cpp"), library))


def runner(program: Path) -> Run:
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
        ({"sequence_bias": [[3, 1.0]]}, None, "a list of [token ids, number] pairs"),
        ({"sequence_bias": [[[3], "much"]]}, None, "a list of [token ids, number] pairs"),
        ({"exponential_decay_length_penalty": [2]}, None, "the number of tokens before the penalty starts"),
        ({"encoder_repetition_penalty": 0}, None, "a number above 0"),
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


def test_cmake_compiles_the_sets_with_the_flags_of_the_build() -> None:
    text = (ROOT / "plugins" / "library" / "CMakeLists.txt").read_text()
    flags = dict(re.findall(r"set\(flags_(\w+) ([^)]*)\)", text))
    of_build = {
        name: words
        for sets in plugin_sources.module("cpu.build").INSTRUCTION_SETS.values()
        for name, words in sets.items()
    }
    for name, expected in of_build.items():
        found = [word for flag in flags.pop(name, "").split() for word in flags_of(flag, text)]
        assert sorted(found) == sorted(expected), name
    assert not flags


def flags_of(word: str, text: str) -> list[str]:
    """A word of CMake, or what the variable that it names was set to."""
    if not word.startswith("${"):
        return [word]
    return re.search(rf"set\({word[2:-1]} ([^)]*)\)", text)[1].split()  # type: ignore[index]


def test_many_threads_may_use_one_model(bundle: Path) -> None:
    with Library(bundle) as model, ThreadPoolExecutor(4) as pool:
        together = list(pool.map(model.decoded, SOURCES * 5))
    session = s2s_export.load(bundle, target="cpu-fp32", threads=1)
    assert together == [session.generate([source])[0][0].token_ids for source in SOURCES] * 5


class Library:
    """A model opened with the library, through its C interface."""

    def __init__(self, bundle: Path, path: Path | None = None) -> None:
        self.c = ctypes.CDLL(str(path or plugin_sources.module("library.build").library()))
        for name in ("open", "generate", "translate", "encode", "decode", "output"):
            getattr(self.c, f"s2s_{name}").restype = ctypes.c_void_p
        for name in ("last_error", "text"):
            getattr(self.c, f"s2s_{name}").restype = ctypes.c_char_p
        found = self.c.s2s_open(os.fsencode(bundle), b"cpu-fp32", os.fsencode(onnxruntime_library()), 1)
        assert found, self.c.s2s_last_error()
        self.model = ctypes.c_void_p(found)

    def __enter__(self) -> Library:
        return self

    def __exit__(self, *_: object) -> None:
        self.c.s2s_close(self.model)

    def decoded(self, source: list[int]) -> list[int]:
        ids, lengths = (ctypes.c_int64 * len(source))(*source), (ctypes.c_int32 * 1)(len(source))
        return self._ids(self.c.s2s_generate(self.model, ids, lengths, 1, None))

    def encode(self, text: str, **options: str) -> list[int]:
        return self._ids(self.c.s2s_encode(self.model, text.encode(), json.dumps(options).encode()))

    def text_of(self, ids: list[int]) -> str | None:
        """None where an id is refused."""
        result = self.c.s2s_decode(self.model, (ctypes.c_int64 * len(ids))(*ids), len(ids))
        if not result:
            assert b"outside the tokenizer's vocabulary" in self.c.s2s_last_error()
            return None
        return self._texts(result, 1)[0]

    def translate(self, texts: list[str], **options: Any) -> list[str]:
        given = (ctypes.c_char_p * len(texts))(*(text.encode() for text in texts))
        result = self.c.s2s_translate(self.model, given, len(texts), json.dumps(options).encode())
        assert result, self.c.s2s_last_error()
        return self._texts(result, len(texts))

    def _texts(self, result: int, n: int) -> list[str]:
        found = [self.c.s2s_text(ctypes.c_void_p(result), i, 0).decode() for i in range(n)]
        self.c.s2s_free(ctypes.c_void_p(result))
        return found

    def _ids(self, result: int) -> list[int]:
        assert result, self.c.s2s_last_error()
        n = ctypes.c_int32()
        found = self.c.s2s_output(ctypes.c_void_p(result), 0, 0, ctypes.byref(n), None)
        out = list((ctypes.c_int64 * n.value).from_address(found)) if n.value else []
        self.c.s2s_free(ctypes.c_void_p(result))
        return out


@pytest.fixture(scope="module")
def with_text() -> None:
    if not plugin_sources.module("library.build").reads_text():
        pytest.skip("sentencepiece's C++ library is not here: apt-get install libsentencepiece-dev")


LINES = [
    "twenty-one",
    "half past three",
    "the third of March 1998",
    "",
    "x" * 30,
    " two  hundred ",
    "caf\u00e9 \U0001f642",
]


def test_translations_are_the_sessions(bundle: Path, with_text: None) -> None:
    session = s2s_export.load(bundle, target="cpu-fp32", threads=1)
    with Library(bundle) as model:
        for options in ({"target_lang": "deu"}, {"target_lang": "fra", "num_beams": 1}):
            assert model.translate(LINES, **options) == session.translate(LINES, **options)
        tagged = [f">>deu<< {line}" for line in LINES]
        assert model.translate(tagged) == session.translate(tagged)


def test_the_example_translates(bundle: Path, with_text: None, tmp_path: Path) -> None:
    translate = runner(compiled("translate", tmp_path, plugin_sources.module("library.build").library()))
    session = s2s_export.load(bundle, target="cpu-int8", threads=1)
    texts = [line for line in LINES * 4 if line]
    found = translate(bundle, "cpu-int8", {"target_lang": "fra"}, "\n".join([*texts, "", "two"]))
    assert found.stdout.splitlines() == [*session.translate(texts, target_lang="fra"), "", "deux"]
    found = translate(bundle, "cpu-int8", {"target_lang": "xyz"}, "two\n")
    assert (found.returncode, found.stdout) == (1, "")
    assert found.stderr == "translate: text 0: the tokenizer has no target language 'xyz'\n"


def test_ids_of_sentencepiece_itself(bundle: Path, with_text: None, tmp_path: Path) -> None:
    """A tokenizer as other toolkits' models have it: the ids of one model, moved."""
    entry = {
        "kind": "sentencepiece", "files": {"model": "m.spm"}, "special_ids": {"eos": 2},
        "template": {"prefix": [], "suffix": [2]}, "languages": {}, "decode": {"skip_ids": [1, 2]},
        "options": {"offset": 1},
    }  # fmt: skip
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "m.spm").write_bytes(text_folders.spm())
    pair = SimpleNamespace(folder=folder, entry=entry, tokenizer=load_tokenizer(folder, entry), size=300)
    compare_text(with_tokenizer(bundle, pair, tmp_path / "other"), pair, random.Random(6), n_random=100)


TEXT_KINDS = ["marian/slow", "marian-multilingual/slow", "marian-separate/slow", "m2m100/slow", "m2m100/resaved"]


def with_tokenizer(bundle: Path, pair: Any, other: Path) -> Path:
    """A copy of a bundle that has another tokenizer."""
    shutil.copytree(bundle, other, copy_function=os.link)
    shutil.rmtree(other / "tokenizer")
    shutil.copytree(pair.folder, other / "tokenizer")
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").unlink()
    (other / "manifest.json").write_text(json.dumps({**manifest, "tokenizer": pair.entry}))
    return other


@pytest.mark.parametrize("name", TEXT_KINDS)
def test_tokens_and_texts_are_the_tokenizers(
    bundle: Path, pair_of: Callable[[str], Any], with_text: None, tmp_path: Path, name: str
) -> None:
    pair = pair_of(name)
    compare_text(with_tokenizer(bundle, pair, tmp_path / "other"), pair, random.Random(5), n_random=300)


def compare_text(path: Path, pair: Any, chance: random.Random, n_random: int, library: Path | None = None) -> None:
    parts = (*SPECIALS, *FRAGMENTS)
    made = ("".join(chance.choices(parts, k=chance.randint(1, 12))) for _ in range(n_random))
    with Library(path, library) as model:
        for text in (*TEXTS, *made):
            text = text.replace("\x00", "")  # which ends a text in C
            assert model.encode(text) == pair.tokenizer.encode(text), repr(text)
        for code in list(pair.tokenizer.languages)[:3]:
            given = {"source_lang": code, "target_lang": code}
            assert model.encode("Hello world", **given) == pair.tokenizer.encode("Hello world", **given)
        for _ in range(n_random):
            ids = [chance.randrange(pair.size) for _ in range(chance.randint(0, 9))]
            try:
                expected = pair.tokenizer.decode(ids)
            except InputError:
                expected = None
            assert model.text_of(ids) == expected, ids


def test_texts_that_are_refused_are_one_sentence(
    bundle: Path, pair_of: Callable[[str], Any], with_text: None, tmp_path: Path
) -> None:
    with Library(bundle) as model:
        for text, options, said in (
            (b"a\xff", b"{}", "byte 1 of the text is not UTF-8"),
            (b"\xed\xa0\x80", b"{}", "byte 0 of the text is not UTF-8"),
            (b"a", b'{"target_lang": "xyz"}', "no target language 'xyz'"),
            (b">>fra<< a", b'{"target_lang": "deu"}', "name the target language once"),
            (b"a", b'{"num_beams": 2}', "does not have the option 'num_beams'"),
        ):
            assert not model.c.s2s_encode(model.model, text, options)
            assert said in model.c.s2s_last_error().decode()
    with Library(with_tokenizer(bundle, pair_of("bart/resaved"), tmp_path / "other")) as model:
        assert not model.c.s2s_encode(model.model, b"a", None)
        assert b"a tokenizer of kind 'fast', which this library does not read" in model.c.s2s_last_error()


def test_without_sentencepiece_it_says_so(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = plugin_sources.module("library.build")
    monkeypatch.setattr(built, "reads_text", lambda: False)
    with Library(bundle, built.library()) as model:
        assert model.decoded(SOURCES[0])
        assert not model.c.s2s_encode(model.model, b"a", None)
        assert b"built without sentencepiece" in model.c.s2s_last_error()


@pytest.mark.slow
def test_text_with_the_source_of_the_python_package(
    bundle: Path, pair_of: Callable[[str], Any], tmp_path: Path
) -> None:
    """sentencepiece as its package on PyPI has it in C++, for machines whose system has none."""
    cmake = shutil.which("cmake")
    if cmake is None:
        pytest.skip("there is no cmake; pip install cmake")
    download = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "-d", tmp_path]
    done = subprocess.run([*download, "--no-build-isolation", "sentencepiece==0.2.0"], capture_output=True, text=True)
    archives = list(tmp_path.glob("sentencepiece-*.tar.gz"))
    if not archives:
        pytest.skip(f"sentencepiece's source can't be downloaded: {done.stderr.splitlines()[-1:]}")
    shutil.unpack_archive(archives[0], tmp_path)
    prefix, made = tmp_path / "prefix", tmp_path / "made"
    source = next(tmp_path.glob("sentencepiece-*/sentencepiece"))
    for command in (
        [cmake, "-S", source, "-B", made, f"-DCMAKE_INSTALL_PREFIX={prefix}", "-DCMAKE_INSTALL_LIBDIR=lib"],
        [cmake, "--build", made, "--parallel", "2", "--target", "install"],
    ):
        subprocess.run(command, check=True, capture_output=True)
    library = plugin_sources.module("library.build").library(prefix)
    for number, name in enumerate(TEXT_KINDS):
        pair = pair_of(name)
        path = with_tokenizer(bundle, pair, tmp_path / str(number))
        compare_text(path, pair, random.Random(number), n_random=2000, library=library)


@pytest.mark.slow
def test_damaged_bundles_and_options_under_sanitizers(bundle: Path, tmp_path: Path) -> None:
    """600 damaged files and 200 damaged options: a result or a sentence, and no fault of memory."""
    build = plugin_sources.module("build")
    library = plugin_sources.module("library.build").library(sanitize=True)
    decode = runner(compiled("main", tmp_path, library, *build.SANITIZE_FLAGS))
    translate = runner(compiled("translate", tmp_path, library, *build.SANITIZE_FLAGS))
    chance = random.Random(11)
    names = ["manifest.json", "engines/cpu-int8/engine.json", "tokenizer/vocab.json", "tokenizer/source.spm"]
    for at in range(600):
        other = tmp_path / str(at)
        shutil.copytree(bundle, other, copy_function=os.link)
        name = chance.choice(names[: None if at % 2 else 2])
        data = damaged((other / name).read_bytes(), chance)
        (other / name).unlink()
        (other / name).write_bytes(data)
        found = translate(other, "cpu-int8", {}, ">>deu<< two\n") if at % 2 else decode(other, "cpu-int8", {})
        assert found.returncode in (0, 1) and "Sanitizer" not in found.stderr, (name, found.stderr[-3000:])
        assert found.returncode == 0 or found.stderr.count("\n") == 1, found.stderr
        shutil.rmtree(other)
    for _ in range(200):
        options = damaged(json.dumps(chance.choice(CASES)).encode(), chance).decode("latin-1").replace("\0", "")
        found = decode(bundle, "cpu-int8", options)
        assert found.returncode in (0, 1) and "Sanitizer" not in found.stderr, (options, found.stderr[-3000:])


def damaged(data: bytes, chance: random.Random) -> bytes:
    """Bytes changed, left out or put in, a number made another, or the end cut off."""
    out = bytearray(data)
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(max(1, len(out)))
        kind = chance.randrange(4)
        if kind == 0 and out:
            out[at] = chance.choice(b'0123456789{}[]",x\xff\x00-')
        elif kind == 1:
            del out[at : at + chance.randint(1, 30)]
        elif kind == 2:
            numbers = list(re.finditer(rb"\d+", bytes(out)))
            if numbers:
                number = chance.choice(numbers)
                values = (b"-1", b"0", b"1", b"3", b"4096", b"2147483648", b"1e308", b"9" * 30)
                out[number.start() : number.end()] = chance.choice(values)
        elif chance.random() < 0.2:
            del out[at:]
    return bytes(out)


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
    assert (example / "translate").exists()
    command = [example / "decode_cpp", bundle, "cpu-int8", onnxruntime_library()]
    found = subprocess.run(command, input="2 30 40 0\n", capture_output=True, text=True, check=False)
    session = s2s_export.load(bundle, target="cpu-int8", threads=1)
    assert read(found.stdout)[0][2] == session.generate([[2, 30, 40, 0]])[0][0].token_ids
