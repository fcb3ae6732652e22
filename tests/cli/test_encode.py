"""`s2s encode`: what is printed, in which order, and what is refused."""

from __future__ import annotations

import json
import shutil
import sys

import numpy as np
import pytest
import tiny_encoders
from command_line import run_here, s2s

import s2s_export
from s2s_export.bundle import read
from s2s_export.errors import BundleError

TEXTS = ("The cat sat on the house.", "a red dog", "", "he is not in !")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """Of an embedding, a classifier and a classifier of tokens, with their tokenizer."""
    root = tmp_path_factory.mktemp("encode")
    made = {}
    for head in tiny_encoders.HEADS:
        folder = tiny_encoders.save("bert", root / f"bert{head}", head)
        tiny_encoders.save_tokenizer(folder)
        if not head:
            prompts = {"prompts": {"query": "the "}}
            tiny_encoders.save_modules(folder, {"pooling_mode_mean_tokens": True}, normalize=True, **prompts)
        made[head] = s2s_export.export(folder, root / f"bert{head}.bundle").path
    return made


def lines_of(*arguments, status=0):
    out, err = run_here("encode", *arguments, "--quiet", status=status)
    return out.splitlines(), err


def test_an_embedding_is_a_line_of_numbers(bundles):
    found, _ = lines_of(bundles[""], *TEXTS)
    wanted = s2s_export.load_encoder(bundles[""]).encode(TEXTS)
    np.testing.assert_allclose([json.loads(line) for line in found], wanted, atol=1e-6)


def test_options_of_an_embedding(bundles):
    session = s2s_export.load_encoder(bundles[""])
    given = ("--pooling", "cls", "--no-normalize", "--prompt-name", "query")
    found, _ = lines_of(bundles[""], TEXTS[1], *given)
    wanted = session.encode(["the a red dog"], pooling="cls", normalize=False)
    np.testing.assert_allclose(json.loads(found[0]), wanted[0], atol=1e-6)
    assert abs(np.linalg.norm(json.loads(found[0])) - 1) > 0.1


def test_labels_and_entities(bundles):
    found, _ = lines_of(bundles["ForSequenceClassification"], *TEXTS)
    ranked = s2s_export.load_encoder(bundles["ForSequenceClassification"]).classify(TEXTS)
    assert found == [f"{best[0].label}\t{best[0].score:.4f}" for best in ranked]
    found, _ = lines_of(bundles["ForTokenClassification"], TEXTS[0], "--json")
    record = json.loads(found[0])
    assert record["source"] == TEXTS[0] and record["backend"] == "onnxruntime"
    assert [TEXTS[0][t["start"] : t["end"]].lower() for t in record["tokens"]] == [t["token"] for t in record["tokens"]]
    assert record["entities"][0]["start"] == 0 and record["entities"][-1]["end"] == len(TEXTS[0])


def test_lines_come_out_in_order_and_one_that_fails_affects_no_other(bundles, tmp_path):
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(tiny_encoders.WORDS, rng.integers(1, 25))) for _ in range(90)]
    lines = [text.encode() for text in texts]
    lines[7], lines[40] = b"\xff", b"the " * 60
    (tmp_path / "in.txt").write_bytes(b"\n".join(lines) + b"\n")
    given = (bundles[""], "--input", tmp_path / "in.txt", "--batch-size", 4)
    found, err = lines_of(*given, "--json", status=1)
    assert "line 8: byte 0 of the input" in err and "line 41: the source has 62 tokens" in err
    records = [json.loads(line) for line in found]
    assert [i for i, record in enumerate(records) if "error" in record] == [7, 40]
    good = [i for i in range(90) if i not in (7, 40)]
    wanted = s2s_export.load_encoder(bundles[""]).encode([texts[i] for i in good])
    np.testing.assert_allclose([records[i]["embedding"] for i in good], wanted, atol=1e-6)
    lines_of(*given, "--truncate", "--output", tmp_path / "out.npy", status=1)
    array = np.load(tmp_path / "out.npy")
    assert np.isnan(array).any(axis=1).nonzero()[0].tolist() == [7]
    np.testing.assert_allclose(array[good], wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("head", "arguments", "status", "message"),
    [
        ("ForTokenClassification", ("--pooling", "cls"), 2, "--pooling is for embeddings, but the model is for token"),
        ("", ("--prompt-name", "quary"), 2, "did you mean 'query'"),
        ("", ("--prompt", "a", "--prompt-name", "query"), 2, "found prompt and prompt_name; expected one of them"),
        ("", ("--output", "x.npy", "--json"), 2, "writes an array; leave out --json"),
        ("", ("--backend", "torch"), 2, "encoders run on 'onnxruntime'"),
        ("", ("--target", "cpu-fp16"), 1, "no cpu engine for target 'cpu-fp16'"),
    ],
)
def test_what_can_not_be_is_refused(bundles, head, arguments, status, message):
    _, err = run_here("encode", bundles[head], "a text", *arguments, status=status)
    assert message in err.replace("\n", " ")


@pytest.mark.parametrize(
    "command",
    [
        ("translate", "{}", "a text"), ("generate", "{}", "--input", "{}/manifest.json", "--output", "-"),
        ("read", "{}", "x.png"), ("transcribe", "{}", "x.wav"), ("score", "{}", "--data", "{}/manifest.json"),
        ("shortlist", "{}", "--data", "{}/manifest.json"), ("bench", "{}"),
        ("evaluate", "{}", "--data", "{}/manifest.json"), ("triton", "{}", "{}/../repository"),
        ("build", "{}", "--prepare", "rtx-fp16"),
    ],
    ids=lambda command: command[0],
)  # fmt: skip
def test_every_other_command_refuses_an_encoder_by_name(bundles, command):
    _, err = run_here(*[part.format(bundles[""]) for part in command], status=1)
    assert "holds an encoder alone (model type 'bert')" in err and "s2s encode" in err


def test_it_is_not_served(bundles):
    assert "holds an encoder alone" in s2s("serve", bundles[""], "--port", 0, status=1).stderr


def test_targets_for_gpus_are_refused(bundles):
    _, err = run_here("build", bundles[""], "--target", "cuda-fp16", status=1)
    assert "the flavour 'cuda' of target 'cuda-fp16' is for encoder-decoders; build cpu-fp32 or cpu-int8" in err


def test_an_encoder_decoder_is_refused(bundled):
    _, err = run_here("encode", bundled("marian"), "a text", status=1)
    assert "holds an encoder-decoder (model type 'marian')" in err and "s2s generate" in err


def test_an_encoder_is_verified_and_inspected(bundles):
    out, _ = run_here("verify", bundles[""], "--checkpoint", bundles[""].with_suffix(""), "--quiet")
    assert "encoder_states" in out and "ok" in out
    out, _ = run_here("inspect", bundles[""])
    assert "embedding; pooling=mean, normalize=True" in out and "prompts: query" in out


def test_the_wrong_method_names_the_right_one(bundles):
    from s2s_export.errors import InputError, UsageError

    session = s2s_export.load_encoder(bundles[""])
    with pytest.raises(UsageError, match="for embedding; use `encode`"):
        session.classify(["a text"])
    with pytest.raises(UsageError, match=r"write \[text\]"):
        session.encode("a text")
    with pytest.raises(InputError, match="source 1: the source has the id 99; expected ids from 0 to 60"):
        session.encode([[1], [99]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["head"].update(labels=["x"]), "gives 3 logits, but head.labels has 1"),
        (lambda m: m["head"].update(task="embedding", pooling="mean", normalize=True), "gives no encoder_states"),
        (lambda m: m["head"].update(task="haiku"), "head.task is 'haiku', expected one of embedding, "),
        (lambda m: m["head"].pop("labels"), "lacks head.labels"),
        (lambda m: m.update(kind="poem"), "kind is 'poem', expected one of encoder-decoder, encoder"),
    ],
    ids=["labels", "output", "task", "missing", "kind"],
)
def test_a_damaged_manifest_is_one_sentence(bundles, tmp_path, change, message):
    copy = tmp_path / "bundle"
    shutil.copytree(bundles["ForSequenceClassification"], copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    change(manifest)
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=message):
        s2s_export.load_encoder(copy)


def test_no_torch_is_imported(bundles):
    import subprocess

    code = (
        "import sys, s2s_export; s2s_export.load_encoder(sys.argv[1]).encode(['a cat']); "
        "assert not {'torch', 'transformers', 'onnx'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(bundles[""])], check=True, timeout=120)


def test_a_kind_is_read_by_those_who_ask_for_it(bundles):
    assert read(bundles[""], kinds=("encoder",)).kind == "encoder"
    with pytest.raises(BundleError, match="expected an encoder-decoder"):
        s2s_export.load(bundles[""])
