"""Mutated bundles, engines and tokenizers: no other exception, no crash, no hang, nothing on stderr.

A few hundred of each in the fast tests, all of them in the slow ones. Which case was at fault is in the report that a
failure names; FOLDER holds its files when only that case is run.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import ctranslate2_files
import fairseq_files
import folder_mutations
import marian_files
import opennmt_files
import pytest
import survivor
import text_folders
import tiny_decoders
import tiny_encoders
import tiny_models
import tiny_pictures
import tiny_whisper

import s2s_export
from s2s_export import plugin_sources
from s2s_export.building.build import build
from s2s_export.errors import BuildError
from s2s_export.exporting.tokenizers import write as text_assets

SCRIPT = Path(__file__).parent / "helpers" / "folder_mutations.py"
# A bundle with text, one with relative positions, one that is recurrent; engines with either kind of kernels.
PORTABLE = ("marian-text", "t5", "attention")
ENGINES = (("marian-text", "fp32", "own"), ("t5", "int8", "own"), ("t5", "fp32", "onnxruntime"))
ENVIRONMENT = {"OMP_NUM_THREADS": "1"}
pytestmark = pytest.mark.skipif(os.name != "posix", reason="timers and signals as POSIX has them")


@pytest.fixture(scope="module")
def bases(bundled, tmp_path_factory):
    root = tmp_path_factory.mktemp("bases")
    found = []
    for name in PORTABLE:
        path = _with_text(root) if name == "marian-text" else bundled(name)
        shutil.copytree(path, root / name, ignore=shutil.ignore_patterns("engines"))
        found.append({"path": str(root / name), "target": "portable"})
    for name, precision, kernels in ENGINES:
        path = shutil.copytree(root / name, root / f"{name}-{precision}-{kernels}")
        recipe = root / f"cpu-{precision}.toml"
        recipe.write_text(f'flavour = "cpu"\nprecision = "{precision}"\n[options]\nkernels = "{kernels}"\n')
        try:
            build(path, str(recipe))
        except BuildError:  # without a compiler there is nothing of ours to try
            continue
        found.append({"path": str(path), "target": recipe.stem, "own": kernels == "own"})
    return found


def _with_text(root):
    """A tiny Marian model with a tokenizer of its size."""
    checkpoint = root / "checkpoint"
    text_folders.slow_marian(checkpoint)
    vocabulary = json.loads((checkpoint / "vocab.json").read_text())
    pad = vocabulary["<pad>"]
    config = tiny_models.CONFIGS["marian"]()
    for name, value in {
        "vocab_size": len(vocabulary), "decoder_vocab_size": len(vocabulary), "pad_token_id": pad,
        "decoder_start_token_id": pad,
    }.items():  # fmt: skip
        setattr(config, name, value)
    model = __import__("transformers").MarianMTModel(config).eval()
    model.generation_config.pad_token_id = model.generation_config.decoder_start_token_id = pad
    model.save_pretrained(checkpoint)
    s2s_export.export(checkpoint, root / "with-text.bundle")
    return root / "with-text.bundle"


@pytest.fixture(scope="module")
def other_kinds(tmp_path_factory):
    """Bundles that read sound, pictures, prompts, and an encoder alone; each as exported and with an engine."""
    root = tmp_path_factory.mktemp("kinds")
    made = {
        "sound": tiny_whisper.save(root / "sound"),
        "picture": tiny_pictures.save(root / "picture"),
        "ids": tiny_decoders.save("llama", root / "ids"),
        "encoder": tiny_encoders.save("bert", root / "encoder", "ForSequenceClassification"),
    }
    tiny_encoders.save_tokenizer(made["encoder"])
    tiny_pictures.write_tokenizer(made["picture"])
    found = []
    for use, checkpoint in made.items():
        path = root / f"{use}.bundle"
        s2s_export.export(checkpoint, path)
        build(path, "cpu-fp32")
        for target in ("portable", "cpu-fp32"):
            folder_mutations.USES[use](path, target)  # undamaged, it is served
            found.append({"path": str(path), "target": target, "use": use})
    return found


@pytest.fixture(scope="module")
def toolkits(tmp_path_factory):
    """Checkpoints as other toolkits write them."""
    root = tmp_path_factory.mktemp("toolkits")
    made = [
        ctranslate2_files.save(root / "ctranslate2"),
        ctranslate2_files.save(root / "ctranslate2-int8", version=4, quantise="int8"),
        marian_files.save(root / "marian"),
        marian_files.save_recurrent(root / "marian-recurrent"),
        fairseq_files.save(root / "fairseq"),
        opennmt_files.save(root / "opennmt"),
    ]
    return [{"path": str(path)} for path in made]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")
    found = []
    for family, make in text_folders.SLOW.items():
        make(root / family / "slow")
        text_folders.resaved(root / family / "slow", root / family / "resaved")
        for style in ("slow", "resaved"):
            folder = root / family / f"{style}-bundle"
            entry = text_assets.write_tokenizer(root / family / style, folder)
            found.append({"path": str(folder), "entry": entry})
    return found


def run(kind, bases, tmp_path, n, seed, **environment):
    (tmp_path / "bases.json").write_text(json.dumps(bases))
    report = tmp_path / "report"
    arguments = (kind, tmp_path / "bases.json", tmp_path / "work", seed)
    counts = survivor.run(SCRIPT, arguments, 0, n, report, **ENVIRONMENT, **environment)
    print(dict(counts))
    bad = survivor.faults(report)
    assert not bad, f"{len(bad)} of {n}: {json.dumps(counts, indent=1)}\n" + "\n".join(bad[:20])
    assert sum(counts.values()) == n and counts[survivor.REFUSED] > n // 4 and counts[survivor.SERVED] > n // 50


def test_mutated_bundles(bases, tmp_path):
    run("bundles", bases, tmp_path, 100, seed=0)


def test_mutated_tokenizers(tokenizers, tmp_path):
    run("tokenizers", tokenizers, tmp_path, 200, seed=0)


def test_mutated_lines(bases, tmp_path):
    """tests/runtime/test_lines.py has the kinds of lines one by one."""
    run("lines", bases[:1], tmp_path, 300, seed=0)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_many_mutated_checkpoints(bases, exported, bundled, tmp_path):
    bundled("attention")
    paths = [Path(bases[0]["path"]).parent / "checkpoint", exported("t5")[0], bundled("attention").with_suffix("")]
    run("checkpoints", [{"path": str(path)} for path in paths], tmp_path, 120, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_many_mutated_checkpoints_of_toolkits(toolkits, tmp_path):
    run("checkpoints", toolkits, tmp_path, 1000, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_many_mutated_bundles_of_other_kinds(other_kinds, tmp_path):
    run("bundles", other_kinds, tmp_path, 2000, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_many_mutated_lines(bases, tmp_path):
    run("lines", bases[:1], tmp_path, 10_000, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_many_mutated_bundles(bases, tmp_path):
    run("bundles", bases, tmp_path, 10_000, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_many_mutated_tokenizers(tokenizers, tmp_path):
    run("tokenizers", tokenizers, tmp_path, 4_000, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_mutated_engines_under_sanitizers(bases, tmp_path):
    """Our operators with what mutated engines feed them; the sanitizers see every byte that is read."""
    own = [{**base, "sanitized": True} for base in bases if base.get("own")]
    if not own:
        pytest.skip("no C++ compiler that builds our operators")
    compiler = plugin_sources.module("build").find_compiler(*plugin_sources.module("cpu.build").COMPILERS)
    asks = [[compiler, f"-print-file-name={name}"] for name in ("libasan.so", "libstdc++.so.6")]
    runtimes = [subprocess.run(ask, capture_output=True, text=True).stdout.strip() for ask in asks]
    if not all(Path(runtime).is_file() for runtime in runtimes):
        pytest.skip(f"{compiler} has no libasan.so or no libstdc++.so.6")
    options = "detect_leaks=0:detect_stack_use_after_return=0:allocator_may_return_null=1:max_allocation_size_mb=4096"
    plugin_sources.module("cpu.build").library(sanitize=True)
    run(
        "bundles", own, tmp_path, 1000, seed=2, LD_PRELOAD=":".join(runtimes), ASAN_OPTIONS=options,
        UBSAN_OPTIONS="halt_on_error=1", PYTHONMALLOC="malloc",
    )  # fmt: skip
