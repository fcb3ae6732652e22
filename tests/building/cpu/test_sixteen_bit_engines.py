"""Engines whose weights are stored in 16 bits: cpu-fp32 where no value changes, cpu-fp16 and cpu-bf16 elsewhere."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_whisper
from command_line import s2s
from safetensors.numpy import load_file, save_file

import s2s_export
from s2s_export import engines
from s2s_export.building.build import build
from s2s_export.building.cpu.own import packing, sixteen
from s2s_export.errors import BuildError, EngineError, InvalidOption

SOURCES = [[7, 8, 9, 10], [11, 12], [13, 14, 15, 16, 17, 18]]
CASES = [
    {"num_beams": 1},
    {"num_beams": 4, "num_return_sequences": 3, "no_repeat_ngram_size": 2},
    {"num_beams": 3, "renormalize_logits": True},
]


def rounded(checkpoint: Path, folder: Path, storage: str, chosen: Callable[[str], bool] = lambda name: True) -> Path:
    """A copy of a checkpoint whose chosen weights have values that `storage` holds, still in float32."""
    shutil.copytree(checkpoint, folder)
    file = folder / "model.safetensors"
    weights = {
        name: sixteen.widened(sixteen.narrowed(array, storage), storage) if chosen(name) else array
        for name, array in load_file(file).items()
    }
    save_file(weights, file, {"format": "pt"})
    return folder


def recipe(folder: Path, name: str, precision: str = "fp32", **options: str) -> str:
    lines = [f"{option} = {value}" for option, value in {"kernels": '"own"', **options}.items()]
    path = folder / f"{name}.toml"
    path.write_text("\n".join([f'flavour = "cpu"\nprecision = "{precision}"\n[options]', *lines]))
    return str(path)


def built(checkpoint: Path, folder: Path) -> Path:
    """A bundle with the targets "narrow", where 16 bits are used, and "wide", where all is fp32."""
    bundle = folder / "bundle"
    s2s_export.export(checkpoint, bundle)
    build(bundle, recipe(folder, "narrow"))
    build(bundle, recipe(folder, "wide", sixteen_bits="false"))
    return bundle


def stored(bundle: Path, target: str = "narrow") -> Any:
    return engines.read(bundle / "engines" / target)["stored"]


def numbers(bundle: Path, target: str, search: str = "auto") -> list[Any]:
    session = s2s_export.load(bundle, target=target, threads=1, search=search)
    found = [session.generate(SOURCES, max_new_tokens=20, **case) for case in CASES]
    return [[(one.token_ids, one.score, one.token_scores) for of in case for one in of] for case in found]


@pytest.mark.parametrize(
    ("name", "storage"), [("marian", "fp16"), ("bart", "bf16"), ("t5", "fp16"), ("m2m_100", "bf16")]
)
def test_results_are_those_of_fp32_bit_for_bit(exported, tmp_path, name, storage):
    bundle = built(rounded(exported(name)[0], tmp_path / "checkpoint", storage), tmp_path)
    narrow, wide = stored(bundle), stored(bundle, "wide")
    assert set(narrow) <= {storage, "bf16"} and set(wide) == {"fp32"}
    assert sum(of["bytes"] for of in narrow.values()) * 2 == wide["fp32"]["bytes"]
    assert sum(of["weights"] for of in narrow.values()) == wide["fp32"]["weights"] == len(wide["fp32"]["names"])
    assert not any(of["rounded"] for of in narrow.values())
    sizes = [(bundle / "engines" / target / "weights.bin").stat().st_size for target in ("narrow", "wide")]
    assert sizes[0] < sizes[1]
    expected = numbers(bundle, "wide", "python")
    assert numbers(bundle, "narrow", "python") == expected
    assert numbers(bundle, "narrow") == numbers(bundle, "wide") == expected  # where there is one, by the search in C++
    assert [[ids for ids, *_ in case] for case in expected] == [
        [ids for ids, *_ in case] for case in numbers(bundle, "portable", "python")
    ]


def test_the_native_step_reads_16_bits_itself(exported, tmp_path):
    from s2s_export.runtime.native_graphs import library
    from s2s_export.runtime.native_search import loop

    try:
        library.load()
    except BuildError as missing:
        pytest.skip(str(missing).splitlines()[0])
    bundle = built(rounded(exported("marian")[0], tmp_path / "checkpoint", "bf16"), tmp_path)
    session = s2s_export.load(bundle, target="narrow", threads=1)
    session.generate(SOURCES, max_new_tokens=8, num_beams=2)
    sessions = loop.Sessions.of(session.backend)
    assert sessions.why_not_direct == "" and {opened.by for opened in sessions._sessions.values()} == {loop.DIRECT}


def test_speech_is_that_of_fp32(tmp_path):
    checkpoint = rounded(tiny_whisper.save(tmp_path / "saved"), tmp_path / "checkpoint", "fp16")
    bundle = built(checkpoint, tmp_path)
    assert {of["rounded"] for of in stored(bundle).values()} == {0} and "fp32" not in stored(bundle)
    found = []
    for target in ("narrow", "wide"):
        session = s2s_export.load(bundle, target=target, threads=1)
        transcript = session.transcribe(tiny_whisper.clip(3, 2.0), language="en", temperature=0.0)
        found.append([(segment.tokens, segment.start, segment.avg_logprob) for segment in transcript])
    assert found[0] and found[0] == found[1]


def test_weights_that_16_bits_do_not_hold_stay_fp32(exported, tmp_path):
    """Half of the decoder is exact: each weight is stored by itself, and the results are still fp32's."""
    of_half = rounded(exported("marian")[0], tmp_path / "checkpoint", "fp16", lambda name: "fc" in name)
    bundle = built(of_half, tmp_path)
    found = stored(bundle)
    assert set(found) == {"fp16", "fp32"}
    assert all("fc" in name or "feed" in name for name in found["fp16"]["names"]), found["fp16"]["names"]
    assert numbers(bundle, "narrow") == numbers(bundle, "wide")
    text = s2s("inspect", bundle).stdout
    assert f"weights: {found['fp16']['weights']} in fp16 exactly" in text and "in fp32 (" in text
    assert "how the engines' weights are stored" in s2s("doctor", bundle).stdout


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_other_checkpoints_are_rounded_and_their_agreement_is_told(exported, tmp_path, precision):
    bundle = tmp_path / "bundle"
    shutil.copytree(exported("marian")[1], bundle)
    said = s2s("build", bundle, "--target", recipe(tmp_path, f"cpu-{precision}", precision))
    found = stored(bundle, f"cpu-{precision}")
    assert set(found) == {precision} and found[precision]["rounded"] == found[precision]["weights"]
    assert f"in {precision}, {found[precision]['weights']} of them rounded" in said.stdout + said.stderr
    assert f"{precision} against the portable graphs on" in said.stdout + said.stderr
    states = [
        s2s_export.load(bundle, "onnxruntime", target, threads=1).backend.begin(SOURCES, 2)
        for target in ("portable", f"cpu-{precision}")
    ]
    from s2s_export.runtime.decoding.state import StepQuery

    tokens, query = np.full((3, 2), 5), StepQuery(n_candidates=4, dense=True)
    exact, near = (state.step(tokens, tokens * 0, query).log_probs for state in states)
    error = np.abs(exact - near).max() / np.abs(exact).max()
    assert 0 < error < {"fp16": 2e-3, "bf16": 2e-2}[precision]  # a few roundings of 2**-12 or 2**-9


def test_a_weight_beyond_half_precision_is_not_rounded_to_infinity():
    weight = np.array([[70000.3, 1.1]], np.float32)
    assert packing.to_floats(weight, "fp16", narrows=True).storage == "fp32"
    assert packing.to_floats(weight, "bf16", narrows=True).storage == "bf16"
    assert packing.to_floats(np.array([[3.4e38]], np.float32), "bf16", narrows=True).storage == "fp32"
    assert packing.to_floats(np.array([[np.nan, 1]], np.float32), "fp16", narrows=True).storage == "fp32"
    infinite = packing.to_floats(np.array([[-np.inf, 2049, 2.0**-24]], np.float32), narrows=True)
    assert infinite.storage == "fp32"  # 2049 has 12 bits, and bf16 lacks more
    assert packing.to_floats(np.array([[-np.inf, 2047]], np.float32), narrows=True).storage == "fp16"


@pytest.mark.parametrize(
    ("precision", "options", "reason"),
    [
        ("fp16", {"sixteen_bits": "false"}, "'sixteen_bits', which is for fp32"),
        ("int8", {"sixteen_bits": "true"}, "'sixteen_bits', which is for fp32"),
        ("fp32", {"sixteen_bits": '"yes"'}, "sixteen_bits is 'yes', expected true or false"),
        ("bf16", {"head_bits": "8"}, "has the option 'head_bits'; bf16 has kernels"),
    ],
)
def test_options_that_contradict_the_precision_are_refused(exported, tmp_path, precision, options, reason):
    with pytest.raises(InvalidOption, match=reason):
        build(exported("marian")[1], recipe(tmp_path, "wrong", precision, **options))


def test_16_bits_need_our_own_kernels(exported, tmp_path):
    with pytest.raises(BuildError, match="bf16 on a CPU needs our own kernels.*as the recipe says.*build cpu-fp32"):
        build(exported("marian")[1], recipe(tmp_path, "wrong", "bf16", kernels='"onnxruntime"'))


def test_damaged_engines_are_refused(exported, tmp_path):
    bundle = built(rounded(exported("marian")[0], tmp_path / "checkpoint", "bf16"), tmp_path)
    folder = bundle / "engines" / "narrow"
    weights, record = folder / "weights.bin", folder / "engine.json"
    whole, said = weights.read_bytes(), json.loads(record.read_text())
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(EngineError, match="the engine is damaged"):
        s2s_export.load(bundle, target="narrow")
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(EngineError, match="the file is damaged"):
        s2s_export.load(bundle, target="narrow")
    weights.write_bytes(whole)
    for wrong in ({"bf16": {"weights": -1, "bytes": 0, "rounded": 0}}, {"bf16": 3}, []):
        record.write_text(json.dumps({**said, "stored": wrong}))
        with pytest.raises(EngineError, match="stored"):
            s2s_export.load(bundle, target="narrow")
