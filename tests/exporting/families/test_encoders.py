"""Encoders alone: every family and head against transformers, through the portable graph and the engines."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import tiny_encoders
import torch

import s2s_export
from s2s_export.building.build import build
from s2s_export.errors import CheckpointError, InvalidOption, UnsupportedModel

HEADS = {"": "encode", "ForSequenceClassification": "classify", "ForTokenClassification": "tag"}
SOURCES = [[3, 8, 21, 9, 33, 4, 60], [7], [5, 6, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20]]
# One of each kind of attention and head; the others are compared with transformers by the slow tests.
FEW = [("bert", ""), ("roberta", "ForSequenceClassification"), ("mpnet", ""), ("deberta-v2", "ForTokenClassification")]
EVERY = [
    pytest.param(name, head, id=f"{name}{head}", marks=() if (name, head) in FEW else pytest.mark.slow)
    for name in tiny_encoders.CONFIGS
    for head in HEADS
]
BUILT = [("bert", ""), ("roberta", "ForSequenceClassification"), ("deberta-v2", "ForTokenClassification")]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """made(name, head) -> (checkpoint, bundle), exported at its first use."""
    root = tmp_path_factory.mktemp("encoders")

    def make(name: str, head: str = "") -> tuple[Path, Path]:
        checkpoint = root / f"{name}{head}"
        if not checkpoint.exists():
            tiny_encoders.save(name, checkpoint, head)
            s2s_export.export(checkpoint, checkpoint.with_suffix(".bundle"))
        return checkpoint, checkpoint.with_suffix(".bundle")

    return make


def logits_of(checkpoint, head):
    """transformers' output of each of SOURCES, alone and so without padding."""
    import transformers

    model = getattr(transformers, f"AutoModel{head}").from_pretrained(checkpoint, attn_implementation="eager").eval()
    with torch.no_grad():
        outs = [model(torch.tensor([source])) for source in SOURCES]
    return [(out.logits if head else out.last_hidden_state)[0].numpy() for out in outs]


def expected(checkpoint, head):
    outs = logits_of(checkpoint, head)
    return outs if head == "" else [torch.softmax(torch.from_numpy(out), -1).numpy() for out in outs]


def assert_equal(session, head, wanted, tolerance):
    """A batch of unequal sources gives what transformers gives for each alone."""
    if head == "":
        for pooling, pooled in (("mean", lambda x: x.mean(0)), ("cls", lambda x: x[0]), ("max", lambda x: x.max(0))):
            found = session.encode(SOURCES, pooling=pooling)
            np.testing.assert_allclose(found, np.stack([pooled(x) for x in wanted]), atol=tolerance)
        return
    labels = tiny_encoders.LABELS
    if head == "ForSequenceClassification":
        for scores, ranked in zip(wanted, session.classify(SOURCES), strict=True):
            assert [one.label for one in ranked] == [labels[i] for i in np.argsort(-scores)]
            np.testing.assert_allclose([one.score for one in ranked], np.sort(scores)[::-1], atol=tolerance)
        return
    for source, scores, tokens in zip(SOURCES, wanted, session.tag(SOURCES), strict=True):
        assert [token.id for token in tokens] == source
        assert [token.label for token in tokens] == [labels[i] for i in scores.argmax(1)]
        np.testing.assert_allclose([token.score for token in tokens], scores.max(1), atol=tolerance)


@pytest.mark.parametrize(("name", "head"), EVERY)
def test_an_encoder_gives_what_transformers_gives(made, name, head):
    checkpoint, bundle = made(name, head)
    assert_equal(s2s_export.load_encoder(bundle, threads=1), head, expected(checkpoint, head), 5e-6)


@pytest.mark.parametrize(("name", "head"), BUILT, ids=[name for name, _ in BUILT])
def test_engines_give_the_same_and_int8_is_near(made, name, head):
    checkpoint, bundle = made(name, head)
    wanted = expected(checkpoint, head)
    build(bundle, "cpu-fp32")
    assert_equal(s2s_export.load_encoder(bundle, target="cpu-fp32", threads=1), head, wanted, 2e-5)
    report = build(bundle, "cpu-int8")
    accuracy = report.engine["accuracy"]
    assert accuracy["n_sources"] == 16
    assert accuracy.get("least_cosine", 1.0) > 0.99 and accuracy.get("equal", 1.0) > 0.7, accuracy
    assert any("packed products: " in line for line in report.engine["summary"])
    session = s2s_export.load_encoder(bundle, target="cpu-int8", threads=1)
    if head == "":
        found, means = session.encode(SOURCES), [x.mean(0) for x in wanted]
        near = [np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(found, means, strict=True)]
        assert min(near) > 0.99
        assert np.abs(found - np.stack(means)).max() > 1e-4  # it is another precision


def test_kernels_of_onnxruntime_serve_encoders_too(made, tmp_path):
    checkpoint, bundle = made("bert")
    for precision in ("fp32", "int8"):
        recipe = tmp_path / f"plain-{precision}.toml"
        recipe.write_text(f'flavour = "cpu"\nprecision = "{precision}"\n[options]\nkernels = "onnxruntime"\n')
        build(bundle, str(recipe))
        session = s2s_export.load_encoder(bundle, target=f"plain-{precision}", threads=1)
        np.testing.assert_allclose(
            session.encode(SOURCES),
            np.stack([x.mean(0) for x in expected(checkpoint, "")]),
            atol=2e-5 if precision == "fp32" else 0.2,
        )


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_weights_of_two_bytes(made, tmp_path, precision):
    checkpoint, whole = made("bert")
    report = s2s_export.export(checkpoint, tmp_path / "half", precision=precision)
    vectors = [
        s2s_export.load_encoder(path, threads=1).encode(SOURCES, normalize=True) for path in (whole, report.path)
    ]
    assert (vectors[0] * vectors[1]).sum(axis=1).min() > 0.999


@pytest.mark.parametrize(
    ("pooling", "expected_pooling"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode_max_tokens": True}, "max"),
        ({"pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode": "mean"}, "mean"),
    ],
)
def test_sentence_transformers_files_say_how_to_pool(tmp_path, pooling, expected_pooling):
    folder = tiny_encoders.save("bert", tmp_path / "checkpoint")
    tiny_encoders.save_modules(
        folder, pooling, normalize=True, prompts={"query": "the ", "document": ""}, default_prompt_name="query"
    )
    report = s2s_export.export(folder, tmp_path / "bundle")
    assert report.manifest["head"] == {
        "task": "embedding", "pooling": expected_pooling, "normalize": True,
        "prompts": {"query": "the ", "document": ""}, "default_prompt": "query",
    }  # fmt: skip
    assert report.manifest["limits"] == {"max_source_length": 32}
    session = s2s_export.load_encoder(report.path, threads=1)
    np.testing.assert_allclose(np.linalg.norm(session.encode(SOURCES), axis=1), 1.0, atol=1e-6)
    raw = session.encode(SOURCES, normalize=False)
    states = logits_of(folder, "")
    last = {"cls": lambda x: x[0], "mean": lambda x: x.mean(0), "max": lambda x: x.max(0), "last": lambda x: x[-1]}
    np.testing.assert_allclose(raw, np.stack([last[expected_pooling](x) for x in states]), atol=5e-6)
    assert (session.prompt(), session.prompt(prompt_name="document"), session.prompt("a ")) == ("the ", "", "a ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: tiny_encoders.save_modules(f, {}), "pools by nothing; expected exactly one of mean, cls"),
        (
            lambda f: tiny_encoders.save_modules(f, {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}),
            "pools by cls and mean; expected exactly one",
        ),
        (
            lambda f: tiny_encoders.save_modules(f, {"pooling_mode_mean_tokens": True, "include_prompt": False}),
            "include_prompt is false",
        ),
        (
            lambda f: (f / "modules.json").write_text('[{"type": "sentence_transformers.models.CNN", "path": "x"}]'),
            "module of type 'sentence_transformers.models.CNN'; expected Transformer, Pooling, Dense and Normalize",
        ),
        (lambda f: (f / "modules.json").write_text("{}"), "holds an object; expected a list"),
        (lambda f: (f / "modules.json").write_text("["), "not readable as JSON"),
    ],
    ids=["nothing", "two", "prompt", "another", "object", "damaged"],
)
def test_modules_that_are_not_read_are_refused_by_name(tmp_path, change, message):
    folder = tiny_encoders.save("bert", tmp_path / "checkpoint")
    change(folder)
    with pytest.raises((UnsupportedModel, CheckpointError), match=message):
        s2s_export.export(folder, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["BertForQuestionAnswering"]}, "it is a BertForQuestionAnswering; expected an architecture"),
        ({"is_decoder": True}, "has is_decoder"),
        ({"hidden_act": "mish"}, "activation function 'mish' is not supported"),
    ],
)
def test_an_encoder_that_is_not_read_is_refused_by_name(tmp_path, changes, message):
    folder = tiny_encoders.save("bert", tmp_path / "checkpoint")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(UnsupportedModel, match=message):
        s2s_export.export(folder, tmp_path / "bundle")


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"conv_kernel_size": 3}, "conv_kernel_size is 3; expected 0"), ({"embedding_size": 12}, "embedding_size is 12")],
)
def test_a_deberta_that_is_not_read_is_refused_by_name(changes, message):
    import transformers

    from s2s_export.exporting import families

    config = tiny_encoders.CONFIGS["deberta-v2"]()
    config.update({"conv_act": "gelu", **changes})
    with pytest.raises(UnsupportedModel, match=message):
        families.find("deberta-v2").describe(transformers.DebertaV2Model(config))


def test_a_masked_language_model_gives_its_states(tmp_path):
    """bert-base-uncased is one: its head is left out, which the export says, and it has no pooler."""
    import transformers

    torch.manual_seed(0)
    model = transformers.BertForMaskedLM(tiny_encoders.CONFIGS["bert"]()).eval()
    model.save_pretrained(tmp_path / "checkpoint")
    report = s2s_export.export(tmp_path / "checkpoint", tmp_path / "bundle")
    assert any("does not use" in notice and "cls." in notice for notice in report.notices)
    with torch.no_grad():
        states = model.bert(torch.tensor([SOURCES[0]])).last_hidden_state[0].mean(0).numpy()
    found = s2s_export.load_encoder(report.path, threads=1).encode([SOURCES[0]])
    np.testing.assert_allclose(found[0], states, atol=5e-6)


def test_a_target_length_is_refused(tmp_path):
    folder = tiny_encoders.save("bert", tmp_path / "checkpoint")
    with pytest.raises(InvalidOption, match="max_target_length is 5, but the model is an encoder alone"):
        s2s_export.export(folder, tmp_path / "bundle", max_target_length=5)


@pytest.mark.parametrize(
    ("options", "activation"),
    [
        ({}, "softmax"),
        ({"problem_type": "multi_label_classification"}, "sigmoid"),
        ({"problem_type": "regression", "id2label": {0: "x"}}, "none"),
        ({"id2label": {0: "x"}}, "sigmoid"),
    ],
    ids=["softmax", "several labels", "regression", "one label"],
)
def test_scores_are_those_of_transformers_pipeline(tmp_path, options, activation):
    import transformers

    folder = tiny_encoders.save("bert", tmp_path / "checkpoint", "ForSequenceClassification", **options)
    tiny_encoders.save_tokenizer(folder)
    report = s2s_export.export(folder, tmp_path / "bundle")
    assert report.manifest["head"]["activation"] == activation
    texts = ["the cat sat on the house .", "a very bad dog"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = transformers.pipeline("text-classification", model=str(folder), device="cpu")
        wanted = pipeline(texts, top_k=None)
    for found, one in zip(s2s_export.load_encoder(report.path, threads=1).classify(texts), wanted, strict=True):
        assert [x.label for x in found] == [x["label"] for x in one]
        np.testing.assert_allclose([x.score for x in found], [x["score"] for x in one], atol=5e-6)


def test_entities_are_those_of_transformers_pipeline(tmp_path):
    import transformers

    from s2s_export.runtime.encoding import entities

    labels = {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC", 4: "I-LOC"}
    folder = tiny_encoders.save(
        "bert", tmp_path / "checkpoint", "ForTokenClassification", id2label=labels,
        label2id={name: i for i, name in labels.items()},
    )  # fmt: skip
    tiny_encoders.save_tokenizer(folder)
    session = s2s_export.load_encoder(s2s_export.export(folder, tmp_path / "bundle").path, threads=1)
    texts = ["The cat sat on the big house!", "He was not in; Anna ran.", "you you i very good  bad dog, dog"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = transformers.pipeline(
            "token-classification", model=str(folder), aggregation_strategy="simple", device="cpu"
        )
        wanted = [pipeline(text) for text in texts]
    assert sum(map(len, wanted)) > 3
    for text, tokens, of_text in zip(texts, session.tag(texts), wanted, strict=True):
        found = entities(tokens, text)
        assert [(e.label, e.start, e.end) for e in found] == [
            (e["entity_group"], e["start"], e["end"]) for e in of_text
        ]
        np.testing.assert_allclose([e.score for e in found], [e["score"] for e in of_text], atol=5e-6)
