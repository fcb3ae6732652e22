"""Pictures from file to text: sessions, `s2s read`, engines for a CPU, and what other commands say of such a bundle."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_pictures
import torch
import transformers
from command_line import run_here
from PIL import Image
from tiny_pictures import picture

import s2s_export
from s2s_export.errors import InputError, InvalidOption, UsageError
from s2s_export.runtime import tagged
from s2s_export.serving import models

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' own


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Iterator[Path]:
    """A ViT with TrOCR's decoder, a Swin with GPT-2 and Donut with mBART, each with a tokenizer; three pictures."""
    root = tmp_path_factory.mktemp("reading")
    for name, encoder, decoder in (("vit", "vit", "trocr"), ("swin", "swin", "gpt2"), ("donut", "donut-swin", "mbart")):
        checkpoint = tiny_pictures.save(root / f"{name}-checkpoint", encoder, decoder)
        tiny_pictures.write_tokenizer(checkpoint)
        s2s_export.export(checkpoint, root / name)
    for seed in range(3):
        Image.fromarray(picture(seed)).save(root / f"{seed}.png")
    yield root


def names(folder: Path) -> list[str]:
    return [str(folder / f"{seed}.png") for seed in range(3)]


def test_read(folder: Path) -> None:
    session = s2s_export.load(folder / "vit")
    texts = session.read(names(folder), batch_size=2)
    assert texts == [best[0].text for best in session.generate(names(folder))] and len(set(texts)) == 3
    assert [session.read(name) for name in names(folder)] == texts
    assert session.read([Image.open(name) for name in names(folder)]) == texts
    assert session.read(picture(0), num_beams=3) == session.generate([picture(0)], num_beams=3)[0][0].text
    with pytest.raises(InputError, match="picture 1: none.png: can't be read"):
        session.read([picture(0), "none.png"])
    for method in (session.translate, session.transcribe):
        with pytest.raises((UsageError, InputError), match="reads 'pixels'.*or `read` for pictures"):
            method(["a text"])


@pytest.mark.parametrize("name", ["vit", "swin", "donut"])
def test_engines_for_a_cpu_give_the_tokens_of_the_portable_graphs(folder: Path, name: str) -> None:
    portable = s2s_export.load(folder / name, target="portable").generate(names(folder), num_beams=2)
    for target in ("cpu-fp32", "cpu-int8"):
        run_here("build", folder / name, "--target", target, "--quiet")
        found = s2s_export.load(folder / name, target=target).generate(names(folder), num_beams=2)
        if target == "cpu-fp32":
            assert [best[0].token_ids for best in found] == [best[0].token_ids for best in portable]
        for best, other in zip(found, portable, strict=True):
            assert abs(best[0].score - other[0].score) < (1e-4 if target == "cpu-fp32" else 0.3)


def test_a_prompt_stands_behind_the_start_token_and_with_donut_in_its_place(folder: Path) -> None:
    for name, decoder, start in (("vit", "trocr", [tiny_pictures.START]), ("donut", "mbart", [])):
        session = s2s_export.load(folder / name)
        model = tiny_pictures.make("donut-swin" if name == "donut" else name, decoder)
        prompt = session.tokenizer.encode_target("GH")
        assert len(prompt) == 2
        pixels = torch.from_numpy(session.kind.prepare([session.check_source(picture(1))])["pixel_values"])
        wanted = model.generate(pixel_values=pixels, decoder_input_ids=torch.tensor([prompt]), num_beams=2)[0].tolist()
        [[found]] = session.generate([picture(1)], decoder_input_ids=prompt, num_beams=2)
        assert found.token_ids == wanted[: len(found.token_ids)] and wanted[: len(start) + 2] == [*start, *prompt]
        assert session.read(picture(1), prompt="GH", num_beams=2) == found.text
        with pytest.raises(InvalidOption, match="prompt and decoder_input_ids are both given"):
            session.read(picture(1), prompt="GH", decoder_input_ids=[4])


def test_the_command(folder: Path) -> None:
    session = s2s_export.load(folder / "vit")
    out, _ = run_here("read", folder / "vit", *names(folder), "--quiet")
    assert out.splitlines() == session.read(names(folder))
    broken = folder / "broken.png"
    broken.write_bytes((folder / "0.png").read_bytes()[:60])
    out, err = run_here("read", folder / "vit", broken, *names(folder), "--json", "--num-beams", 2, "--batch-size", 2,
                        status=1)  # fmt: skip
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["source"] for line in lines] == [str(broken), *names(folder)]
    assert "is a damaged picture" in lines[0]["error"] and f"s2s: {broken}: is a damaged" in err
    assert [line["outputs"][0]["text"] for line in lines[1:]] == session.read(names(folder), num_beams=2)
    file = folder / "made" / "texts.txt"
    out, _ = run_here("read", folder / "vit", *names(folder)[:1], "--output", file, "--scores", "-q")
    assert out == "" and file.read_text().count("\t") == 1
    out, _ = run_here("read", folder / "donut", *names(folder)[:1], "--fields", "-q")
    assert list(json.loads(out)) == ["text_sequence"]


def test_json_lines(folder: Path) -> None:
    cases = [{"id": i, "image": name} for i, name in enumerate(names(folder))] + [{"id": "t", "text": "a"}]
    (folder / "cases.jsonl").write_text("\n".join(json.dumps(case) for case in cases))
    run_here("generate", folder / "vit", "--input", folder / "cases.jsonl", "--output", folder / "out.jsonl", "--quiet",
             status=1)  # fmt: skip
    lines = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    found = s2s_export.load(folder / "vit").generate(names(folder))
    assert [line["outputs"][0]["token_ids"] for line in lines[:3]] == [best[0].token_ids for best in found]
    assert lines[3]["error"] == "this bundle takes no 'text'; expected 'image'"


def test_what_other_commands_say(folder: Path) -> None:
    out, _ = run_here("verify", folder / "swin", "--checkpoint", folder / "swin-checkpoint", "--quiet")
    assert "8 of 8 sources equal" in out
    out, _ = run_here("inspect", folder / "swin")
    assert "pixels, pad_token_id 1, n_channels 3, height 24, width 32, n_positions 48" in out
    _, err = run_here("evaluate", folder / "swin", "--data", folder / "cases.jsonl", status=2)
    assert "reads no text" in err
    _, err = run_here("bench", folder / "vit", "--new-tokens", 8, "--backends", "onnxruntime", status=2)
    assert "the model reads 'pixels', and systems are compared on token ids" in err
    with pytest.raises(InvalidOption, match="reads 'pixels', which this server does not take"):
        models.open_models([str(folder / "vit")])


def test_pixels_that_the_model_does_not_take(folder: Path) -> None:
    session = s2s_export.load(folder / "vit")
    with pytest.raises(InputError, match="hold NaN"):
        session.generate([np.full((3, 16, 16), np.nan, np.float32)])
    with pytest.raises(InputError, match=r"array \[3, 9, 16\] of float32; expected numbers"):
        session.generate([np.zeros((3, 9, 16), np.float32)])
    session.kind.preprocessing["steps"] = [{"name": "resize_shorter", "edge": 16, "resample": 2}]
    with pytest.raises(InputError, match=r"has the shape \[3, 16, 24\] after .* expected \[3, 16, 16\]"):
        session.generate([picture(0)])


TAGGED = [
    "<s_menu><s_nm>Tea</s_nm><s_price>2.50</s_price></s_menu><s_total>2.50</s_total>",
    "<s_menu><s_nm>Tea</s_nm><sep/><s_nm>Cake</s_nm></s_menu>",
    "<s_a>one<sep/>two</s_a>",
    "<s_a><s_b>1</s_b></s_a><sep/><s_a>2</s_a>",
    "<s_a></s_a>",
    "<s_a>open",
    "no tags",
    "",
    "<s_class><invoice/></s_class>",
    "<s_a>x</s_A>",
    "<s_q>What (is) it?</s_q><s_answer>a+b</s_answer>",
]


@pytest.mark.parametrize("text", TAGGED, ids=range(len(TAGGED)))
def test_fields_are_those_of_transformers(text: str) -> None:
    processor = transformers.DonutProcessor.__new__(transformers.DonutProcessor)
    assert tagged.fields(text) == processor.token2json(text, added_vocab=["<invoice/>"])
