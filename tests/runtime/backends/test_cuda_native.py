"""The backend `cuda` on emulated kernels: whole decodes against ONNX Runtime on the CPU, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")

from device_helpers import missing_compiler
from native_decodes import BF16, FP16, INT8, SCORE, SEARCHES, SOURCES, agree, session
from tiny_names import FAMILIES, in_the_long_run

import s2s_export
from s2s_export import bundle, plugin_sources
from s2s_export.building.build import build
from s2s_export.building.native.numpy_model import NumpyModel
from s2s_export.errors import BackendError, BackendUnavailable, EngineError, InvalidOption
from s2s_export.runtime import backends
from s2s_export.runtime.backends import cuda as native
from s2s_export.runtime.backends._cuda_native.backend import NativeBackend
from s2s_export.runtime.backends._cuda_native.encoder import run_length
from s2s_export.runtime.backends._cuda_native.model import Weights
from s2s_export.runtime.cuda import driver
from s2s_export.runtime.cuda.emulation import HostDevice
from s2s_export.runtime.decoding import decode
from s2s_export.runtime.sources import kind_of

if reason := missing_compiler():
    pytest.skip(reason, allow_module_level=True)


@pytest.fixture(scope="module")
def built(bundled: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """built(name, target): a bundle with its engine, made at its first use."""
    root = tmp_path_factory.mktemp("native")

    def make(name: str, target: str = FP16) -> Path:
        path = root / f"{name}.bundle"
        if not path.exists():
            shutil.copytree(bundled(name), path, ignore=shutil.ignore_patterns("engines"))
        build(path, target)
        return path

    return make


SWEPT = [pytest.param(name, marks=() if name in ("marian", "t5-gated") else pytest.mark.slow) for name in FAMILIES]


@pytest.mark.parametrize("name", SWEPT)
def test_decodes_of_families(built: Any, name: str) -> None:
    n_equal, total = agree(built(name), FP16, "device-while")
    assert n_equal >= 0.7 * total


@pytest.mark.parametrize(
    "search", ["host", *(pytest.param(name, marks=pytest.mark.slow) for name in ("device-replay", "device-queue"))]
)
@pytest.mark.parametrize("name", ["t5-gated"])
def test_other_ways_to_search(built: Any, name: str, search: str) -> None:
    path = built(name)
    ours, other = session(path, FP16, search), session(path, FP16, "device-while")
    for options in SEARCHES:
        found = ours.generate(SOURCES, max_new_tokens=6, batch_size=3, **options)
        expected = other.generate(SOURCES, max_new_tokens=6, batch_size=3, **options)
        assert [[h.token_ids for h in of] for of in found] == [[h.token_ids for h in of] for of in expected]
        np.testing.assert_allclose([of[0].score for of in found], [of[0].score for of in expected], atol=1e-5)


RULES: tuple[tuple[dict[str, Any], bool], ...] = (
    ({}, True),
    ({"bad_words_ids": [[5], [7, 8]], "forced_eos_token_id": 3, "suppress_tokens": [11, 12]}, True),
    ({"forced_bos_token_id": 9, "no_repeat_ngram_size": 2, "begin_suppress_tokens": [4, 6]}, True),
    ({"encoder_no_repeat_ngram_size": 2, "min_new_tokens": 4}, True),
    ({"repetition_penalty": 1.3, "bad_words_ids": [[5]]}, False),
)


@pytest.mark.parametrize("case", range(len(RULES)))
@pytest.mark.parametrize("beams", in_the_long_run([1, 3], [3]))
def test_rules_within_the_search_for_candidates(built: Any, case: int, beams: int) -> None:
    """Rules that ban tokens or allow only some are applied by the launch that finds candidates; with others the head
    gives logits. Tokens and scores are the host search's over the same logits."""
    options, finds = RULES[case]
    device = HostDevice()
    ours, host = session(built("marian"), device=device), session(built("marian"), search="host")
    found = ours.generate(SOURCES[:3], num_beams=beams, max_new_tokens=6, batch_size=3, **options)
    expected = host.generate(SOURCES[:3], num_beams=beams, max_new_tokens=6, batch_size=3, **options)
    assert [of[0].token_ids for of in found] == [of[0].token_ids for of in expected]
    np.testing.assert_allclose([of[0].score for of in found], [of[0].score for of in expected], atol=1e-5)
    launched = [kernel.split("_fp16")[0].split("_norm")[0] for kernel in device.launched]
    end = f"finish_{'beam' if beams > 1 else 'row'}_step"
    assert launched.count("head_candidates") == (launched.count(end) if finds else 0)
    assert finds == ("top_of_slices_fp32" not in launched)


def test_launches_of_a_step(built: Any) -> None:
    """Five a layer, the embedding, the head with candidates, the end of the step; with many rows eight a layer."""
    device = HostDevice()
    ours = session(built("marian"), device=device)
    ours.generate(SOURCES[:1], num_beams=2, max_new_tokens=3)
    first, second = [i for i, kernel in enumerate(device.launched) if kernel == "finish_beam_step"][:2]
    step = device.launched[first + 1 : second + 1]
    n_layers = len(ours.backend.loaded.model.decoder.layers)  # type: ignore[attr-defined]
    assert len(step) == 5 * n_layers + 3
    layer = ["skinny_product", "self_block", "cross_block", "skinny_product", "skinny_product"]
    names = ["embed_rows", *layer * n_layers, "head_candidates", "finish_beam_step"]
    # The emulation lets launches begin before those before them, so their order is another.
    assert sorted(kernel.split("_fp16")[0].split("_norm")[0] for kernel in step) == sorted(names)
    device.launched.clear()
    ours.generate([[5, 9, 3]] * 12, num_beams=3, max_new_tokens=3, batch_size=12)
    assert "cross_attention_fp16_r4_w32" in device.launched and "head_candidates_fp16_norm512" not in device.launched


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("target", [BF16, INT8])
def test_decodes_in_lower_precision(built: Any, name: str, target: str) -> None:
    n_equal, total = agree(built(name, target), target, "device-while")
    assert n_equal >= 0.4 * total


@pytest.mark.parametrize("name", ["marian", pytest.param("t5-gated", marks=pytest.mark.slow)])
def test_weights_of_eight_bits_are_those_of_the_definition(built: Any, name: str) -> None:
    """Whole decodes against numpy with the same whole numbers and scales: what is left is fp16's rounding."""
    path = built(name, INT8)
    opened = bundle.read(path)
    numpy_model = NumpyModel(Weights(path / "engines" / INT8, "build it again"))
    ours = session(path, INT8)
    options = ours.options(num_beams=2, max_new_tokens=8)
    kind, sources = kind_of(opened), SOURCES[:3]
    state = numpy_model.begin(kind.prepare(sources), options.n_rows)
    expected = decode(state, sources, options, sparse_sums=False)
    found = ours.decode(sources, options)
    n_equal = sum(a[0].token_ids == b[0].token_ids for a, b in zip(found, expected, strict=True))
    assert n_equal >= 2
    for mine, theirs in zip(found, expected, strict=True):
        assert abs(mine[0].score - theirs[0].score) < SCORE[FP16]
    built(name, FP16)
    sizes = [(path / "engines" / target / "weights.bin").stat().st_size for target in (INT8, FP16)]
    assert sizes[0] < 0.75 * sizes[1]


@pytest.mark.parametrize("target", [INT8, *(pytest.param(name, marks=pytest.mark.slow) for name in (FP16, BF16))])
def test_a_trained_model_gives_the_cpus_tokens(number_words: Path, tmp_path: Path, target: str) -> None:
    """Where a model is sure, rounding decides nothing: all tokens are equal, with every number of beams."""
    path = shutil.copytree(number_words, tmp_path / "words.bundle", ignore=shutil.ignore_patterns("engines"))
    report = build(path, target)
    assert report.engine["agreement"]["equal"] == report.engine["agreement"]["sources"]
    reference, ours = s2s_export.load(path, backend="onnxruntime", threads=1), session(path, target)
    texts = ["three hundred and twelve", "seven", "nine thousand four hundred and eleven", "twenty-one"]
    for beams in (1, 4):
        assert ours.translate(texts, num_beams=beams) == reference.translate(texts, num_beams=beams)
    told = [part for part in ours.stream(texts[0])]
    assert "".join(told) == reference.translate(texts[:1])[0]


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a tiny random Whisper."""
    import tiny_whisper

    folder = tmp_path_factory.mktemp("speech")
    s2s_export.export(tiny_whisper.save(folder / "checkpoint", 3), folder / "bundle")
    return folder / "bundle"


@pytest.mark.parametrize("target", [FP16, *(pytest.param(name, marks=pytest.mark.slow) for name in (BF16, INT8))])
def test_sound(speech: Path, target: str) -> None:
    """Convolutions, an encoder without a mask, searches on the device and on the host."""
    from tiny_whisper import IDS, clip

    assert build(speech, target).engine["agreement"]["equal"] >= (4 if target == FP16 else 0)
    reference = s2s_export.load(speech, backend="onnxruntime", threads=1)
    device, sources = HostDevice(), [clip(i, 0.2 + 0.2 * i) for i in range(4)]
    ours = session(speech, target, device=device)
    prompt = [IDS[f"<|{name}|>"] for name in ("startoftranscript", "en", "transcribe", "notimestamps")]
    # Without a prompt the language is found first, by a step of the search on the host.
    for where in ({}, {"decoder_input_ids": prompt}):
        for options in SEARCHES:
            device.launched.clear()
            found, expected = (
                one.generate(sources, max_new_tokens=6, batch_size=3, **options, **where) for one in (ours, reference)
            )
            equal = [
                a.token_ids == b.token_ids
                for of, to in zip(found, expected, strict=True)
                for a, b in zip(of, to, strict=True)
            ]
            assert sum(equal) >= (1.0 if target == FP16 else 0.4) * len(equal)
            for of, to in zip(found, expected, strict=True):
                assert abs(of[0].score - to[0].score) < SCORE[target]
            assert f"finish_{'row' if options['num_beams'] == 1 else 'beam'}_step" in device.launched
    assert any(kernel.startswith("input_windows") for kernel in device.launched)
    if target == FP16:
        given = {"language": "en", "temperature": 0, "compression_ratio_threshold": None, "logprob_threshold": None}
        told, wanted = (one.transcribe(clip(9, 1.9), **given).finish().segments for one in (ours, reference))
        assert wanted
        assert [(one.start, one.end, one.text) for one in told] == [(one.start, one.end, one.text) for one in wanted]


TIMED: tuple[dict[str, Any], ...] = (
    {"num_beams": 1},
    {"num_beams": 3},
    {"num_beams": 2, "prompt_ids": [263, 40, 41], "condition_on_prev_tokens": True},
)


def on_device(path: Path, search: str = "device-while") -> Any:
    """A session that can't search on the host."""
    found = session(path, search=search)
    found.backend.begin = lambda *given: pytest.fail("a search on the host")
    return found


@pytest.mark.parametrize("case", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in range(1, len(TIMED)))])
def test_times_are_searched_on_the_device(speech: Path, case: int) -> None:
    """Clips of one window and of several, in a batch: tokens, times and scores are the CPU's."""
    from tiny_whisper import IDS, clip

    options = {"return_timestamps": True, "language": "en", "batch_size": 3, "max_new_tokens": 12, **TIMED[case]}
    sources = [clip(i, seconds) for i, seconds in enumerate((0.3, 0.8, 1.7, 2.9))]
    build(speech, FP16)
    ours, reference = on_device(speech), s2s_export.load(speech, backend="onnxruntime", threads=1)
    found, expected = (one.generate(sources, **options) for one in (ours, reference))
    assert [of[0].token_ids for of in found] == [of[0].token_ids for of in expected]
    cut = [[[(one.start, one.end, one.tokens) for one in of[0].segments] for of in each] for each in (found, expected)]
    assert cut[0] == cut[1]
    times = [token for of in found for token in of[0].token_ids if token > IDS["<|notimestamps|>"]]
    assert len(times) > 8
    np.testing.assert_allclose([of[0].score for of in found], [of[0].score for of in expected], atol=SCORE[FP16])


@pytest.mark.parametrize("search", ["device-while", pytest.param("device-replay", marks=pytest.mark.slow)])
def test_a_transcription_is_searched_on_the_device(speech: Path, search: str) -> None:
    """Thresholds that ask how likely silence is, draws where a text is not likely enough, and the text before: all as
    the search on the host finds them with the same logits."""
    from tiny_whisper import clip

    build(speech, FP16)
    given = {"language": "en", "logprob_threshold": -1.5, "temperature": (0.0, 0.6), "seed": 3, "max_new_tokens": 10}
    ours, host = on_device(speech, search), session(speech, search="host")
    drawn = 0
    for i, more in enumerate(({}, {"batched": True, "batch_size": 2}, {"timestamps": "none", "task": "translate"})):
        sound = clip(20 + i, 1.5)
        told, wanted = (one.transcribe(sound, **given, **more).finish().segments for one in (ours, host))
        assert wanted
        for mine, theirs in zip(told, wanted, strict=True):
            drawn += theirs.temperature > 0
            for name in ("start", "end", "tokens", "temperature"):
                assert getattr(mine, name) == getattr(theirs, name)
            for name in ("avg_logprob", "no_speech_prob"):
                np.testing.assert_allclose(getattr(mine, name), getattr(theirs, name), 1e-4, 1e-6)
    assert drawn


@pytest.mark.parametrize("search", ["device-while", pytest.param("host", marks=pytest.mark.slow)])
def test_alignments(built: Any, search: str) -> None:
    """Of the last layer and of all heads; then without, in the same slot; the graph finds the same tokens in all."""
    path = built("marian")
    ours, reference = (session(path, search=search), s2s_export.load(path, backend="onnxruntime", threads=1))
    n_equal = 0
    for alignments in (True, "heads", False):
        given = {"num_beams": 2, "max_new_tokens": 6, "alignments": alignments}
        for of, to in zip(ours.generate(SOURCES[:3], **given), reference.generate(SOURCES[:3], **given), strict=True):
            if of[0].token_ids != to[0].token_ids:
                continue
            n_equal += 1
            for mine, wanted in ((of[0].alignment, to[0].alignment), (of[0].alignment_heads, to[0].alignment_heads)):
                assert (mine is None) == (wanted is None)
                if mine is not None:
                    np.testing.assert_allclose(mine, wanted, atol=3e-3)
    assert n_equal >= 7


WORDS = ({"num_beams": 1}, {"num_beams": 3}, {"num_beams": 1, "temperature": 0.7, "seed": 3})


@pytest.mark.parametrize("case", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in range(1, len(WORDS)))])
def test_times_of_words(speech: Path, case: int) -> None:
    """From the weights of a search on the device, as from those of the host's; both are about the CPU's."""
    from tiny_whisper import clip

    build(speech, FP16)
    given = {"language": "en", "temperature": 0, "compression_ratio_threshold": None, "logprob_threshold": None}
    given |= {"timestamps": "word", "max_new_tokens": 10, **WORDS[case]}
    found = []
    for one in (on_device(speech), session(speech, search="host"), s2s_export.load(speech, backend="onnxruntime")):
        segments = one.transcribe(clip(9, 1.9), **given).finish().segments
        found.append([(word.word, word.start, word.end) for part in segments for word in part.words])
    device, host, cpu = found
    assert device and device == host
    if not given["temperature"]:
        assert [word for word, *_ in device] == [word for word, *_ in cpu]
        # A random model's attention is nearly even, so that fp16 may move a word's edge.
        near = [abs(a[1] - b[1]) + abs(a[2] - b[2]) < 0.05 for a, b in zip(device, cpu, strict=True)]
        assert sum(near) >= 0.8 * len(near)


@pytest.mark.parametrize("name", in_the_long_run(["marian", "t5"], ["marian"]))
def test_long_sources_are_split(built: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks share a source, with the norm before and behind; tokens and scores are those of one block."""
    path, device = built(name), HostDevice()
    whole = session(path).generate(SOURCES, num_beams=3, max_new_tokens=5, batch_size=3)
    monkeypatch.setattr(plugin_sources.module("transformer.launches"), "MOST_BLOCK_POSITIONS", 8)
    monkeypatch.setattr(plugin_sources.module("transformer.launches"), "SPLIT_POSITIONS", 5)
    split = session(path, device=device).generate(SOURCES, num_beams=3, max_new_tokens=5, batch_size=3)
    assert "merge_cross_fp16" in device.launched
    assert [[h.token_ids for h in of] for of in split] == [[h.token_ids for h in of] for of in whole]
    np.testing.assert_allclose([of[0].score for of in split], [of[0].score for of in whole], atol=SCORE[FP16])


def test_many_rows_and_growing_caches(built: Any) -> None:
    """More rows than a skinny product takes, on the device; more positions than a cache begins with, on the host."""
    path = built("t5")
    reference = s2s_export.load(path, backend="onnxruntime", threads=1)
    sources = [[5 + i, 9, 3 + i] for i in range(9)]
    found = session(path).generate(sources, num_beams=4, max_new_tokens=3, batch_size=9)
    expected = reference.generate(sources, num_beams=4, max_new_tokens=3, batch_size=9)
    assert sum(a[0].token_ids == b[0].token_ids for a, b in zip(found, expected, strict=True)) >= 7
    long = {"num_beams": 1, "max_new_tokens": 70, "min_new_tokens": 70}
    on_host = session(path, search="host").generate(SOURCES[:2], **long)
    on_device = session(path).generate(SOURCES[:2], **long)
    assert [of[0].token_ids for of in on_host] == [of[0].token_ids for of in on_device]
    assert len(on_host[0][0].token_ids) == 71


def test_options_of_the_hosts_search(built: Any) -> None:
    """Sources leave the batch as they end, and groups of beams are of the host's search alone."""
    path = built("marian")
    found = session(path, search="host").generate(SOURCES, num_beams=4, num_beam_groups=2, diversity_penalty=0.5)
    reference = s2s_export.load(path, backend="onnxruntime", threads=1)
    expected = reference.generate(SOURCES, num_beams=4, num_beam_groups=2, diversity_penalty=0.5)
    assert sum(a[0].token_ids == b[0].token_ids for a, b in zip(found, expected, strict=True)) >= 4


def test_a_batch_of_the_last_ones_shape_uses_its_graphs(built: Any) -> None:
    ours = session(built("marian"))
    first = ours.generate(SOURCES[:1], max_new_tokens=6)
    (slot,) = ours.searcher._idle  # type: ignore[attr-defined]
    executor = slot.slot._last[2]
    graphs = dict(next(iter(slot.search._kept.values()))._graphs)
    ours.generate([[6, 2, 8, 9]], max_new_tokens=6)  # another length, run as the same
    assert slot.slot._last[2] is executor and next(iter(slot.search._kept.values()))._graphs == graphs
    assert ours.generate(SOURCES[:1], max_new_tokens=6) == first
    ours.searcher.release()
    assert ours.generate(SOURCES[:1], max_new_tokens=6) == first


def test_lengths_that_are_run() -> None:
    assert [run_length(n, None) for n in (1, 16, 17, 100)] == [16, 16, 32, 128]
    assert [run_length(n, 48) for n in (1, 33, 48)] == [16, 48, 48]
    assert run_length(5, 8) == 8


# What it refuses


def test_alignments_of_heads_that_are_not_named(built: Any) -> None:
    for search in ("device", "host"):
        one = session(built("marian"), search=search)
        one.backend.loaded.aligned = None
        with pytest.raises(BackendError, match="the backend cuda gives no cross-attention weights of this model"):
            one.generate(SOURCES[:1], max_new_tokens=3, alignments=True)


def test_a_text_beyond_the_models_positions(built: Any) -> None:
    path = built("marian")
    ours = session(path, search="host")
    state = ours.backend.begin(SOURCES[:1], 1)
    state._t = 48  # type: ignore[attr-defined]
    from s2s_export.runtime.decoding import StepQuery

    with pytest.raises(BackendError, match="the decoder has no position 48: the model's limit is 48 tokens"):
        state.step(np.zeros((1, 1), np.int64), np.zeros((1, 1), np.int64), StepQuery())


def test_too_little_memory(built: Any) -> None:
    path = built("marian")
    with pytest.raises(BackendError, match=rf"no room for the weights of {FP16}: 0\.1 MiB asked for, 0\.0 MiB are fr"):
        session(path, device=HostDevice(memory_limit=50_000))
    n_bytes = (path / "engines" / FP16 / "weights.bin").stat().st_size
    ours = session(path, device=HostDevice(memory_limit=n_bytes + 100_000))
    with pytest.raises(BackendError, match=r"no room for .* lower the batch size"):
        ours.generate(SOURCES * 20, num_beams=8, batch_size=100)
    assert ours.generate(SOURCES[:1], num_beams=1, max_new_tokens=3)  # and the session goes on


CHANGES: list[tuple[tuple[Any, ...], Any, str]] = [
    (("version",), 1, r"packed weights of version 1, but this version of s2s-export has kernels for version 3; run: "),
    (("version",), None, "packed weights of version null"),
    (("element",), "fp8", "element is 'fp8', expected one of fp16, bf16, int8"),
    (("encoder", "width"), 33, "a stack has width 33 and head size 16, expected multiples of 16"),
    (
        ("encoder", "layers", 0, "self_attention", "scale"),
        "x",
        r"layers\[0\]\.self_attention\.scale is 'x', expected a",
    ),
    (
        ("decoder", "layers", 1, "feed_forward", "gated"),
        1,
        r"layers\[1\]\.feed_forward\.gated is 1, expected true or f",
    ),
    (("decoder", "layers"), {}, r"decoder\.layers is an object, expected a list"),
    (("element",), "int8", "tensors.encoder.embedding has the layout 'fragments', expected bytes"),
    (("decoder", "layers"), [], "a stack without layers"),
    (("head", "weight"), "nothing", "it names the tensor 'nothing', which tensors does not have"),
    (("head", "inputs"), 48, r"expected \[64, 32\]"),
    (("vocabulary",), 1000, "it has a vocabulary beyond its head"),
]


@pytest.mark.parametrize("case", range(len(CHANGES)))
def test_descriptions_that_are_wrong(built: Any, tmp_path: Path, case: int) -> None:
    place, value, message = CHANGES[case]
    path = shutil.copytree(built("marian"), tmp_path / "bundle")
    file = path / "engines" / FP16 / "model.json"
    document = json.loads(file.read_text())
    inner = document
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    file.write_text(json.dumps(document))
    record = file.with_name("engine.json")
    engine = json.loads(record.read_text())
    engine["files"]["model.json"]["bytes"] = file.stat().st_size  # so that it is not refused for its size
    record.write_text(json.dumps(engine))
    opened = bundle.read(path, verify=False)
    with pytest.raises(EngineError, match=message):
        NativeBackend(opened, file.parent, HostDevice())


def test_other_files_than_were_built(built: Any, tmp_path: Path) -> None:
    path = shutil.copytree(built("marian"), tmp_path / "bundle")
    folder = path / "engines" / FP16
    weights = bytearray((folder / "weights.bin").read_bytes())
    weights[1000] ^= 1
    (folder / "weights.bin").write_bytes(weights)
    with pytest.raises(EngineError, match=r"weights\.bin: is not what was built"):
        NativeBackend(bundle.read(path), folder, HostDevice())
    (folder / "weights.bin").write_bytes(weights[:-256])
    with pytest.raises(
        EngineError, match=r"the engine is damaged; run: s2s build .* --target cuda-native-fp16 --force"
    ):
        NativeBackend(bundle.read(path), folder, HostDevice())


def test_machines_that_lack_something(built: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `s2s doctor` says, and what a session raises: the driver and the kernels, each by name."""
    plugins = plugin_sources.module("build")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setattr(driver, "unavailable", lambda: "no CUDA driver on this machine")
    said = backends.declared()["cuda"].unavailable() or ""
    assert said.startswith("no CUDA driver on this machine; and no nvcc to compile GPU kernels with")
    with pytest.raises(BackendUnavailable, match="cuda: no CUDA driver on this machine; and no nvcc"):
        s2s_export.load(built("marian"), target=FP16)
    monkeypatch.setattr(plugins, "lacks_binary", lambda folder: None)
    assert backends.declared()["cuda"].unavailable() == "no CUDA driver on this machine"
    monkeypatch.setattr(driver, "unavailable", lambda: None)
    old = type("Old", (), {"name": "Tesla V100", "capability": "7.0"})()
    monkeypatch.setattr(driver, "device", lambda: old)
    assert "Tesla V100 has compute capability 7.0; expected 7.5" in (native.unavailable() or "")


def test_bundles_without_an_engine(bundled: Any) -> None:
    opened = bundle.read(bundled("marian"))
    said = native.incompatible_reason(opened, FP16)
    assert said is not None and f"--target {FP16}" in said
    with pytest.raises(InvalidOption, match="threads is 0"):
        native.open(opened, FP16, 0)
