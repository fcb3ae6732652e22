"""The lexical shortlist: its alignment and file, the rewritten steps, and decoding with it through the command line."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import s2s
from random_searches import random_options

from s2s_export import export, load
from s2s_export.building.build import build
from s2s_export.building.shortlist import alignment
from s2s_export.building.shortlist.making import Options, make
from s2s_export.errors import BundleError, EngineError, InputError, InvalidOption
from s2s_export.reference import build as build_model
from s2s_export.reference.checkpoint import Checkpoint, save_checkpoint, weights_of
from s2s_export.reference.config import ReferenceConfig
from s2s_export.runtime.backends.onnxruntime import OnnxRuntimeBackend
from s2s_export.runtime.shortlist import state
from s2s_export.runtime.shortlist.lists import Lists
from s2s_export.runtime.shortlist.state import _ids_in

VOCABULARY = 61
ATTENTION = ("marian", "marian-two-vocabularies", "bart", "m2m_100", "t5", "t5-gated")
SEARCHES = ({"num_beams": 1}, {"num_beams": 3, "num_return_sequences": 2})
TRAINED = Path(__file__).parents[3] / "examples" / "models" / "number-words"


@pytest.fixture
def bundle(exported, tmp_path):
    """bundle(name) -> a copy that a test may change."""

    def copy(name: str) -> Path:
        shutil.copytree(exported(name)[1], tmp_path / name)
        return tmp_path / name

    return copy


def write_pairs(folder: Path, rows: list[tuple[list[int], list[int]]]) -> str:
    path = folder / "pairs.tsv"
    path.write_text("".join(f"{' '.join(map(str, s))}\t{' '.join(map(str, t))}\n" for s, t in rows))
    return str(path)


def some_sources(n: int, low: int = 3, high: int = 50) -> list[list[int]]:
    rng = np.random.default_rng(3)
    return [rng.integers(low, high, size=int(length)).tolist() for length in rng.integers(2, 9, size=n)]


# Alignment and file


def test_alignment_finds_a_planted_dictionary() -> None:
    rng = np.random.default_rng(0)
    dictionary = rng.permutation(30)
    sources = [rng.integers(0, 30, size=6) for _ in range(400)]
    pairs = [(source.tolist(), rng.permutation(dictionary[source]).tolist()) for source in sources]
    assert [ids[0] for ids in alignment.fit(pairs, 30, 30).best(30, 1)] == dictionary.tolist()


def test_alignment_shares_sum_to_one() -> None:
    pairs = [([1, 2, 2], [4, 5]), ([2], [5, 5]), ([], [3]), ([1], [])]
    found = alignment.fit(pairs, 6, 6)
    for source in np.unique(found.source):
        assert found.probability[found.source == source].sum() == pytest.approx(1.0)
    assert found.best(6, 2)[2] == [5, 4]
    assert found.best(6, 2)[0] == [], "a token that never occurred has no list"


def test_most_frequent_tokens() -> None:
    assert alignment.most_frequent([[1, 2, 2], [2, 5, 1]], 2, 8) == [2, 1]
    assert alignment.most_frequent([[1]], 9, 8) == [1]


def test_lists_come_back_from_their_file(tmp_path) -> None:
    lists = Lists.make([[3, 1], [], [3, 9]], [0, 4], 10)
    lists.write(tmp_path / "lists.bin")
    again = Lists.read(tmp_path / "lists.bin", 3, 10)
    assert [again.of(i).tolist() for i in range(3)] == [[1, 3], [], [3, 9]]
    assert again.union([[0, 2]], [7]).tolist() == [0, 1, 3, 4, 7, 9]
    for n_source, n_target in ((4, 10), (3, 9)):
        with pytest.raises(BundleError, match="damaged, or was made for another model"):
            Lists.read(tmp_path / "lists.bin", n_source, n_target)


# Decoding


def assert_nothing_changes(path: Path, folder: Path) -> None:
    """With lists of the whole vocabulary, tokens and scores are those without a shortlist."""
    size = load(path, "onnxruntime").bundle.vocabulary_size
    everything = write_pairs(folder, [([3], list(range(size)))])
    make(path, everything, Options(best=1, frequent=size, n_measured=0))
    plain, cut = load(path, "onnxruntime"), load(path, "onnxruntime", shortlist=True)
    sources = some_sources(7, high=38)
    for options in SEARCHES:
        expected = plain.generate(sources, max_new_tokens=8, **options)
        found = cut.generate(sources, max_new_tokens=8, **options)
        assert [[h.token_ids for h in of] for of in found] == [[h.token_ids for h in of] for of in expected]
        scores = ([h.score for of in outputs for h in of] for outputs in (expected, found))
        np.testing.assert_allclose(*scores, atol=1e-4)


@pytest.mark.parametrize("name", ATTENTION)
def test_a_list_of_everything_changes_nothing(bundle, tmp_path, name) -> None:
    assert_nothing_changes(bundle(name), tmp_path)


def test_only_listed_tokens_come_out_and_options_add_theirs(bundle, tmp_path) -> None:
    path = bundle("bart")
    make(path, write_pairs(tmp_path, [([3], [10, 11])]), Options(frequent=2, n_measured=0))
    session = load(path, "onnxruntime", shortlist=True)
    sources = some_sources(4)
    allowed = {token for source in sources for token in source} | {10, 11} | set(range(64))
    found = session.generate(sources, num_beams=2, max_new_tokens=6)
    assert all(set(of[0].token_ids) <= allowed for of in found)
    options = session.options(forced_eos_token_id=57, bad_words_ids=[[58, 59]], suppress_tokens=[60])
    assert {57, 58, 59, 60} <= set(session.shortlist.ids_of(sources, options).tolist())
    forced = session.generate(sources, max_new_tokens=4, forced_bos_token_id=None, forced_eos_token_id=57, min_length=5)
    assert all(of[0].token_ids[-1] == 57 for of in forced)


def test_a_list_is_of_its_batch(bundle, tmp_path) -> None:
    """With a vocabulary larger than the fewest tokens a list has, lists differ."""
    path = bundle("marian")
    make(path, write_pairs(tmp_path, [([5], [30]), ([6], [40])]), Options(best=1, frequent=0, n_measured=0))
    shortlist = load(path, "onnxruntime", shortlist=True).shortlist
    assert shortlist.lists.union([[5]]).tolist() == [30]
    assert shortlist.lists.union([[5, 6]]).tolist() == [30, 40]


def test_rules_that_read_everything_agree(bundle, tmp_path) -> None:
    path = bundle("t5")
    make(path, write_pairs(tmp_path, [([3], list(range(VOCABULARY)))]), Options(frequent=VOCABULARY, n_measured=0))
    plain, cut = load(path, "onnxruntime"), load(path, "onnxruntime", shortlist=True)
    options = {"top_k": 9, "do_sample": True, "seed": 4, "repetition_penalty": 1.3, "max_new_tokens": 7}
    expected, found = (session.generate(some_sources(3), **options) for session in (plain, cut))
    assert [of[0].token_ids for of in found] == [of[0].token_ids for of in expected]


@pytest.mark.parametrize("model", ["gru", "attention"])
def test_recurrent_models_have_one_too(tmp_path, model) -> None:
    torch.manual_seed(1)
    config = ReferenceConfig(vocab_size=40, d_model=24, max_source_length=30, max_target_length=30, model=model)
    save_checkpoint(tmp_path / "checkpoint", Checkpoint(config, weights_of(build_model(config).eval())))
    path = tmp_path / "bundle"
    export(tmp_path / "checkpoint", path)
    assert_nothing_changes(path, tmp_path)


# Targets and faults


def test_engines_are_served_and_newer_ones_ask(bundle, tmp_path) -> None:
    path = bundle("marian")
    make(path, write_pairs(tmp_path, [([3], list(range(VOCABULARY)))]), Options(frequent=VOCABULARY, n_measured=0))
    build(path, "cpu-int8")
    with pytest.raises(EngineError, match="built after the shortlist; run `s2s shortlist"):
        load(path, "onnxruntime", "cpu-int8", shortlist=True)
    record = make(path, None)
    assert set(record["targets"]) == {"portable", "cpu-int8"}
    found = load(path, "onnxruntime", "cpu-int8", shortlist=True).generate(some_sources(3), max_new_tokens=6)
    assert all(of[0].token_ids for of in found)


@pytest.mark.parametrize("target", ["cpu-fp32", "cpu-int8"])
def test_the_loop_in_cpp_gives_numpys_numbers(bundle, tmp_path, monkeypatch, target) -> None:
    """Short lists, so that a step has fewer candidates than the search asks for, and rules probe what is not listed."""
    path = bundle("marian")
    build(path, target)
    make(path, write_pairs(tmp_path, [([5], [30]), ([6], [40, 41])]), Options(best=2, frequent=4, n_measured=0))
    monkeypatch.setattr(state, "FEWEST", 5)
    sessions = [load(path, "onnxruntime", target, threads=1, shortlist=True, search=s) for s in ("host", "python")]
    if sessions[0].backend.operators is None or sessions[0].searcher.native.why_python:
        pytest.skip("this machine has no compiler or no fast instruction set for our own operators")
    with monkeypatch.context() as patched:  # all of numpy's by ONNX Runtime
        patched.setattr(OnnxRuntimeBackend, "native", lambda self, name: None)
        patched.setattr(state._Steps, "native", lambda self, name: None)
        through_onnx_runtime = load(path, "onnxruntime", target, threads=1, shortlist=True)
        assert through_onnx_runtime.generate([[5, 6, 7]]) == sessions[0].generate([[5, 6, 7]])
    sizes = set()
    for seed in range(60):
        chance = random.Random(seed)
        options = random_options(chance, VOCABULARY)
        sources = [[chance.randrange(4, VOCABULARY) for _ in range(chance.randint(1, 6))] for _ in range(1 + seed % 3)]
        sizes.add(len(sessions[0].shortlist.ids_of(sources, options)))
        found, wanted = (session.decode_batch(sources, options) for session in sessions)
        for ours, theirs in zip(found, wanted, strict=True):
            told = [[(one.token_ids, one.score, one.token_scores) for one in of] for of in (ours, theirs)]
            assert told[0] == told[1]
    counts = sessions[0].searcher.native.counts
    # Sums that are imprecise are searched once more, over the whole distribution and step by step.
    assert counts["C++ loop"] > 30 and counts["Python"] < 5
    assert min(sizes) < 16 and len(sizes) > 5


def test_faults_are_named(bundle, tmp_path) -> None:
    path = bundle("t5")
    with pytest.raises(InvalidOption, match="has no shortlist; make one with"):
        load(path, "onnxruntime", shortlist=True)
    with pytest.raises(InvalidOption, match="give a parallel text with --data"):
        make(path, None)
    for text, error, words in (
        ("3 4\n", InputError, "line 1: found 0 tabs"),
        ("3\t4\n3\tcat\n", InputError, "line 2: holds text, but the bundle has no tokenizer"),
        ("3\t99\n", InputError, "an id outside the vocabulary"),
        ("\n", InvalidOption, "holds no pairs"),
    ):
        (tmp_path / "bad.tsv").write_text(text)
        with pytest.raises(error, match=words):
            make(path, str(tmp_path / "bad.tsv"))
        assert not (path / "shortlist").exists()
    make(path, write_pairs(tmp_path, [([3], [4])]), Options(n_measured=0))
    (path / "shortlist" / "lists.bin").write_bytes(b"")
    with pytest.raises(BundleError, match=r"lists\.bin: is missing or has another size"):
        load(path, "onnxruntime", shortlist=True)


def test_ids_of_options() -> None:
    options = {
        "max_new_tokens": 7, "eos_token_id": (1, 2), "bad_words_ids": ((3, 4), (5,)), "suppress_tokens": [6],
        "sequence_bias": (((8, 9), -1.0),), "do_sample": True, "pad_token_id": None,
    }  # fmt: skip
    assert _ids_in(options) == {1, 2, 3, 4, 5, 6, 8, 9}


# The command line


@pytest.mark.slow
@pytest.mark.skipif(not (TRAINED / "model.safetensors").is_file(), reason="the trained model is not there")
def test_trained_model_keeps_its_translations(tmp_path) -> None:
    from s2s_export.training.corpus import generate_pairs

    bundle, pairs = tmp_path / "bundle", generate_pairs(900, 5)
    data = tmp_path / "pairs.tsv"
    data.write_text("".join(f"{pair.source}\t{pair.target}\n" for pair in pairs))
    s2s("export", TRAINED, bundle, "-q")
    record = json.loads(s2s("shortlist", bundle, "--data", data, "--measure", "60", "--json", "-q").stdout)
    assert record["n_pairs"] == 840
    for entry in record["accuracy"]:
        assert entry["n_sources"] == 60 and entry["mean_tokens"] < 388 / 2
        assert entry["equal"] >= 0.9, "tokens are the same in all but a small share of sentences"
    texts = [pair.source for pair in pairs[:20]]
    plain, cut = (
        s2s("translate", bundle, "--num-beams", "2", flag, stdin="\n".join(texts)).stdout.splitlines()
        for flag in ("--no-shortlist", "--shortlist")
    )
    assert sum(a == b for a, b in zip(plain, cut, strict=True)) >= 18
    cases = tmp_path / "cases.jsonl"
    cases.write_text("".join(json.dumps({"text": text, "num_beams": 2}) + "\n" for text in texts))
    s2s("generate", bundle, "--input", cases, "--output", tmp_path / "out.jsonl", "--shortlist", "-q")
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["outputs"][0]["text"] for line in lines] == cut
