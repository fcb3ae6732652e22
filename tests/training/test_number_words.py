"""The model under examples/models: whole, small, and as good as its card says on sources that it was not trained on."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from s2s_export.training.corpus import is_held_out, untagged

EXAMPLES = Path(__file__).parents[2] / "examples"
FOLDER = EXAMPLES / "models" / "number-words"


def held_out_pairs() -> list[list[str]]:
    lines = (EXAMPLES / "data" / "number-words.test.tsv").read_text(encoding="utf-8").splitlines()
    return [line.split("\t") for line in lines]


def translations(sources: list[str]) -> list[str]:
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install 's2s-export[export]'")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDER)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(FOLDER).eval()
    assert isinstance(model, transformers.MarianMTModel) and model.dtype == torch.float32
    with torch.inference_mode():
        outputs = model.generate(**tokenizer(sources, return_tensors="pt", padding=True))
    return tokenizer.batch_decode(outputs, skip_special_tokens=True)


def test_folder_is_whole_and_small():
    files = {path.name: path.stat().st_size for path in FOLDER.iterdir()}
    assert set(files) == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "source.spm",
        "target.spm",
        "tokenizer_config.json",
        "vocab.json",
    }
    assert sum(files.values()) < 3_000_000


def test_test_file_is_held_out():
    pairs = held_out_pairs()
    assert len(pairs) == len({source for source, _ in pairs}) == 1200
    assert all(is_held_out(source) for source, _ in pairs)
    assert {source.split()[0] for source, _ in pairs} == {">>deu<<", ">>fra<<"}


def test_calibration_file_is_neither_trained_on_nor_tested_on():
    lines = (EXAMPLES / "data" / "number-words.dev.txt").read_text(encoding="utf-8").splitlines()
    tested = {untagged(source) for source, _ in held_out_pairs()}
    assert all(is_held_out(line) and untagged(line) not in tested for line in lines)


@pytest.mark.parametrize("tag", [">>deu<<", ">>fra<<"])
def test_held_out_sources_are_translated(tag):
    """Well below what the card says, since these are sixty sources and no more."""
    pairs = [pair for pair in held_out_pairs() if pair[0].startswith(tag)][:60]
    texts = translations([source for source, _ in pairs])
    assert sum(text == target for text, (_, target) in zip(texts, pairs, strict=True)) >= 57


def test_card_shows_what_the_model_says():
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    shown = re.findall(r"^    (>>.*?)  ->  (.*)$", card, flags=re.MULTILINE)
    assert len(shown) >= 10
    assert translations([source for source, _ in shown]) == [text for _, text in shown]
