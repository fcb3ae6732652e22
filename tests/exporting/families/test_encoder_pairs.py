"""Encoders that read two texts, and embeddings with layers after their pooling, against transformers and torch."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_encoders
import torch
import transformers
from command_line import run_here

import s2s_export
from s2s_export.building.build import build
from s2s_export.errors import BundleError, CheckpointError, InputError, UnsupportedModel, UsageError
from s2s_export.exporting.tokenizers.pairs import pair_template
from s2s_export.runtime.encoding.pairs import shares

PAIRS = [
    ("the cat sat on a red house .", "a small dog is bad !"),
    ("is it ?", "the the dog ran in very good house and was not bad , he sat ."),
    ("", "it was"),
    ("you", ""),
]
READERS = ["bert", "electra", "albert", "deberta-v2-one-term", "distilbert", "modernbert", "modernbert-biases"]
FAST = ("bert", "albert", "modernbert-biases")
HEAD = "ForSequenceClassification"


def reader(folder: Path, name: str = "bert", **options: Any) -> Path:
    """A classifier with a tokenizer."""
    checkpoint = tiny_encoders.save(name, folder / "checkpoint", HEAD, **options)
    tiny_encoders.save_tokenizer(checkpoint)
    return checkpoint


def scores_of(checkpoint: Path, pairs: Any, **options: Any) -> list[np.ndarray]:
    """transformers' probabilities of each pair alone, as a list of one, in which an empty second text is one too."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(checkpoint).eval()
    known = inspect.signature(model.forward).parameters
    found = []
    for first, second in pairs:
        inputs = {k: v for k, v in tokenizer([first], [second], return_tensors="pt", **options).items() if k in known}
        with torch.no_grad():
            found.append(model(**inputs).logits[0].softmax(-1).numpy())
    return found


def assert_scores(session: Any, pairs: Any, wanted: Any, tolerance: float = 5e-6, **options: Any) -> None:
    for of_pair, ranked in zip(wanted, session.classify(pairs, **options), strict=True):
        by_name = {one.label: one.score for one in ranked}
        found = [by_name[tiny_encoders.LABELS[i]] for i in range(len(of_pair))]
        np.testing.assert_allclose(found, of_pair, atol=tolerance)


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in READERS])
def test_two_texts_give_the_labels_of_transformers(tmp_path: Path, name: str) -> None:
    checkpoint = reader(tmp_path, name)
    bundle = s2s_export.export(checkpoint, tmp_path / "bundle").path
    session = s2s_export.load_encoder(bundle, threads=1)
    wanted = scores_of(checkpoint, PAIRS)
    assert_scores(session, PAIRS, wanted)
    swapped = session.classify([pair[::-1] for pair in PAIRS[:1]])[0]
    assert abs(swapped[0].score - session.classify(PAIRS[:1])[0][0].score) > 1e-4  # their order matters
    if name in FAST:
        build(bundle, "cpu-fp32")
        assert_scores(s2s_export.load_encoder(bundle, target="cpu-fp32", threads=1), PAIRS, wanted, 2e-5)
        build(bundle, "cpu-int8")
        assert_scores(s2s_export.load_encoder(bundle, target="cpu-int8", threads=1), PAIRS, wanted, 0.1)


def test_long_pairs_are_cut_as_transformers_cuts_them(tmp_path: Path) -> None:
    checkpoint = reader(tmp_path)
    session = s2s_export.load_encoder(
        s2s_export.export(checkpoint, tmp_path / "bundle", max_source_length=14).path, threads=1
    )
    wanted = scores_of(checkpoint, PAIRS, truncation=True, max_length=14)
    assert_scores(session, PAIRS, wanted, truncate=True)
    with pytest.raises(InputError, match="source 0: the two texts have 17 tokens, but the model allows 14"):
        session.classify(PAIRS)
    backend = transformers.AutoTokenizer.from_pretrained(checkpoint)
    for first in range(8):
        for second in range(8):
            texts = [" ".join(["cat"] * first)], [" ".join(["dog"] * second)]
            for room in range(2, 12):
                ids = backend(*texts, truncation=True, max_length=room + 3)["input_ids"][0]
                kept = shares(first, second, room)
                words = backend.convert_tokens_to_ids(["cat", "dog"])
                assert (ids.count(words[0]), ids.count(words[1])) == kept


@pytest.mark.parametrize(
    ("options", "score"),
    [
        ({}, lambda x: 1 / (1 + np.exp(-x))),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}, lambda x: x),
        ({"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}, lambda x: x),
    ],
    ids=["nothing said", "identity", "identity as older versions wrote it"],
)
def test_a_reranker_scores_as_sentence_transformers_files_say(tmp_path: Path, options: Any, score: Any) -> None:
    checkpoint = reader(tmp_path, id2label={0: "relevant"}, label2id={"relevant": 0}, num_labels=1)
    file = checkpoint / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **options}))
    session = s2s_export.load_encoder(s2s_export.export(checkpoint, tmp_path / "bundle").path, threads=1)
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(checkpoint).eval()
    with torch.no_grad():
        logits = [float(model(**tokenizer([a], [b], return_tensors="pt")).logits) for a, b in PAIRS]
    found = [ranked[0].score for ranked in session.classify(PAIRS)]
    np.testing.assert_allclose(found, [score(x) for x in logits], atol=5e-6)


def test_lines_of_two_texts(tmp_path: Path) -> None:
    checkpoint = reader(tmp_path)
    bundle = s2s_export.export(checkpoint, tmp_path / "bundle").path
    file = tmp_path / "pairs.tsv"
    file.write_text("".join(f"{a}\t{b}\n" for a, b in PAIRS) + "no tab\n")
    out, err = run_here("encode", bundle, "--pairs", "--input", file, "--json", "--quiet", status=1)
    lines = [json.loads(line) for line in out.splitlines()]
    assert "found 0 tabs in the line; expected one" in err and "error" in lines[-1]
    for line, wanted in zip(lines, scores_of(checkpoint, PAIRS), strict=False):
        assert abs(line["labels"][0]["score"] - wanted.max()) < 5e-6


def test_what_reads_no_pairs_says_so(tmp_path: Path) -> None:
    folder = tiny_encoders.save("bert", tmp_path / "tags", "ForTokenClassification")
    tiny_encoders.save_tokenizer(folder)
    tagger = s2s_export.load_encoder(s2s_export.export(folder, tmp_path / "tagger").path, threads=1)
    with pytest.raises(UsageError, match="labels the tokens of one text"):
        tagger.tag([("a", "b")])
    bare = tiny_encoders.save("bert", tmp_path / "bare", HEAD)
    session = s2s_export.load_encoder(s2s_export.export(bare, tmp_path / "none").path, threads=1)
    with pytest.raises(UsageError, match="has no tokenizer"):
        session.classify([("a", "b")])
    with pytest.raises(InputError, match="tuple of 3 parts; expected two texts"):
        session.classify([("a", "b", "c")])
    assert pair_template(bare) is None


# Layers after the pooling


def save_dense(folder: Path, widths: list[int], activation: str, *, as_pickle: bool = False) -> torch.nn.Module:
    """Adds Dense modules as sentence-transformers saves them. Returns what they compute."""
    import safetensors.torch

    modules = json.loads((folder / "modules.json").read_text())
    layers, width = [], 24
    for i, size in enumerate(widths):
        path = folder / f"{i + 2}_Dense"
        path.mkdir(exist_ok=True)
        torch.manual_seed(i)
        linear = torch.nn.Linear(width, size, bias=i == 0)
        layers += [linear, getattr(torch.nn, activation)()]
        state = {f"linear.{name}": value.detach().clone() for name, value in linear.named_parameters()}
        if as_pickle:
            torch.save(state, path / "pytorch_model.bin")
        else:
            safetensors.torch.save_file(state, path / "model.safetensors")
        config = {
            "in_features": width, "out_features": size, "bias": i == 0,
            "activation_function": f"torch.nn.modules.activation.{activation}",
        }  # fmt: skip
        (path / "config.json").write_text(json.dumps(config))
        modules.insert(
            2 + i, {"idx": 2 + i, "name": path.name, "path": path.name, "type": "sentence_transformers.models.Dense"}
        )
        width = size
    (folder / "modules.json").write_text(json.dumps(modules))
    return torch.nn.Sequential(*layers)


@pytest.mark.parametrize(
    ("widths", "activation", "as_pickle"),
    [([24], "Tanh", False), ([16, 40], "GELU", True), ([8], "Identity", False)],
)
def test_layers_after_the_pooling(tmp_path: Path, widths: list[int], activation: str, as_pickle: bool) -> None:
    folder = tiny_encoders.save("bert", tmp_path / "checkpoint")
    tiny_encoders.save_modules(folder, {"pooling_mode_cls_token": True}, normalize=True)
    dense = save_dense(folder, widths, activation, as_pickle=as_pickle)
    report = s2s_export.export(folder, tmp_path / "bundle")
    session = s2s_export.load_encoder(report.path, threads=1)
    sources = [[3, 8, 21, 9, 33, 4, 60], [7]]
    model = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        wanted = torch.cat([dense(model(torch.tensor([source])).last_hidden_state[:, 0]) for source in sources])
    np.testing.assert_allclose(session.encode(sources, normalize=False), wanted.numpy(), atol=5e-6)
    np.testing.assert_allclose(session.encode(sources), torch.nn.functional.normalize(wanted).numpy(), atol=5e-6)
    assert session.width == widths[-1]
    build(report.path, "cpu-fp32")
    engine = s2s_export.load_encoder(report.path, target="cpu-fp32", threads=1)
    np.testing.assert_allclose(engine.encode(sources, normalize=False), wanted.numpy(), atol=2e-5)


def test_layers_that_are_not_read(tmp_path: Path) -> None:
    folder = tiny_encoders.save("bert", tmp_path / "checkpoint")
    tiny_encoders.save_modules(folder, {"pooling_mode_cls_token": True})
    save_dense(folder, [8], "Tanh")
    inside = folder / "2_Dense"
    config = (inside / "config.json").read_text()
    (inside / "config.json").write_text(config.replace("Tanh", "Mish"))
    with pytest.raises(UnsupportedModel, match="with activation 'Mish'; expected one of sentence_embedding with Ident"):
        s2s_export.export(folder, tmp_path / "bundle")
    (inside / "config.json").write_text(config)
    bundle = s2s_export.export(folder, tmp_path / "bundle").path
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["head"]["dense"][0]["width"] = 9
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"layer 0 has weights \[24, 8\], expected \[24, 9\]"):
        s2s_export.load_encoder(bundle)
    (inside / "model.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointError, match="its weights can't be read"):
        s2s_export.export(folder, tmp_path / "bundle", force=True)
