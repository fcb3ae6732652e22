"""Prompts as texts: what a decoder goes on with, templates, streams, scores, and what is refused."""

from __future__ import annotations

import builtins
import json

import numpy as np
import pytest
import tiny_decoders
import torch
import transformers
from command_line import run_here

import s2s_export
from s2s_export.errors import InputError, InvalidOption, MissingExtra, UsageError

TEXTS = ["w7 w8 w9 w10", "w33", "w20 w21 w22 w23 w24 w25"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(model, tokenizer, bundle) of a tiny Llama with a tokenizer and a chat template."""
    folder = tiny_decoders.save("llama", tmp_path_factory.mktemp("prompts") / "llama")
    tiny_decoders.save_tokenizer(folder)
    bundle = s2s_export.export(folder, folder.with_suffix(".bundle")).path
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    return model, transformers.AutoTokenizer.from_pretrained(folder), bundle


def goes_on(model, tokenizer, prompt, **options):
    with torch.no_grad():
        out = model.generate(torch.tensor([prompt]), **options)[0].tolist()
    return tokenizer.decode(out, skip_special_tokens=True)[len(tokenizer.decode(prompt, skip_special_tokens=True)) :]


@pytest.mark.parametrize("n_beams", [1, 3])
def test_a_text_is_gone_on_with(made, n_beams):
    model, tokenizer, bundle = made
    options = {"num_beams": n_beams, "max_new_tokens": 9}
    session = s2s_export.load(bundle, threads=1)
    expected = [goes_on(model, tokenizer, tokenizer(text).input_ids, **options) for text in TEXTS]
    assert session.translate(TEXTS, **options) == expected
    assert ["".join(session.stream(text, **options)) for text in TEXTS] == expected


def test_what_is_told_while_it_is_decoded_leaves_the_prompt_out(made):
    """As the server streams it."""
    session = s2s_export.load(made[2], threads=1)
    options = {"num_beams": 2, "max_new_tokens": 8}
    ids, parts = session.encode(TEXTS[2]), []
    decoder = session.stream_decoder(ids)
    session.decode_batch(
        [ids], session.options(**options), on_prefix=lambda _, tokens: parts.append(decoder.push(tokens))
    )
    assert "".join([*parts, decoder.finish()]) == session.translate([TEXTS[2]], **options)[0]


def test_templates(made):
    model, tokenizer, bundle = made
    session = s2s_export.load(bundle, threads=1)
    for text in TEXTS:
        chat = tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)
        assert session.encode(text, template="chat") == list(chat["input_ids"] if not isinstance(chat, list) else chat)
        assert session.encode(text, template="w7 {text} w8") == tokenizer(f"w7 {text} w8").input_ids
    expected = goes_on(model, tokenizer, session.encode(TEXTS[0], template="chat"), max_new_tokens=6)
    assert session.translate(TEXTS[:1], template="chat", max_new_tokens=6) == [expected]
    assert "".join(session.stream(TEXTS[0], template="chat", max_new_tokens=6)) == expected


def test_the_command_line(made, tmp_path):
    model, tokenizer, bundle = made
    expected = [goes_on(model, tokenizer, tokenizer(f"w9 {text}").input_ids, max_new_tokens=5) for text in TEXTS]
    given = ("--template", "w9 {text}", "--max-new-tokens", 5, "--quiet")
    assert run_here("translate", bundle, *TEXTS, *given)[0].splitlines() == expected
    cases = [{"id": i, "text": text, "template": "w9 {text}", "max_new_tokens": 5} for i, text in enumerate(TEXTS)]
    cases.append({"id": 3, "input_ids": [7, 8, 9], "num_beams": 2, "max_new_tokens": 4})
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(case) + "\n" for case in cases))
    run_here("generate", bundle, "--input", tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl", "--quiet")
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [case["outputs"][0]["text"] for case in found[:3]] == expected
    assert found[3]["outputs"][0]["token_ids"][:3] == [7, 8, 9]


def test_targets_are_scored_after_their_prompts(made):
    model, tokenizer, bundle = made
    session = s2s_export.load(bundle, threads=1)
    targets = [[7, 8, 2], [9, 2], [40, 41, 42, 43, 2]]
    prompts = [tokenizer(text).input_ids for text in TEXTS]
    found = session.score([*prompts, prompts[0]], [*targets, [3, 2]])
    for prompt, target, score in zip([*prompts, prompts[0]], [*targets, [3, 2]], found, strict=True):
        with torch.no_grad():
            log_probs = model(torch.tensor([prompt + target])).logits[0].log_softmax(-1)
        places = range(len(prompt) - 1, len(prompt) + len(target) - 1)
        expected = [float(log_probs[i, token]) for i, token in zip(places, target, strict=True)]
        np.testing.assert_allclose(score.token_log_probs, expected, atol=1e-4)
    text = session.score(TEXTS[:1], ["w9 w9"])[0]
    assert text.token_ids[-1] == 2 and len(text.token_ids) == 3


def test_lengths_are_those_of_generate(made):
    """max_length counts the prompt; without a limit 20 tokens follow; a text ends where the positions end."""
    model, _, bundle = made
    session = s2s_export.load(bundle, threads=1)
    prompts = [[7, 8, 9], [10] * 11]
    assert [len(best.token_ids) for best, *_ in session.generate(prompts, max_length=13)] == [13, 13]
    assert [len(best.token_ids) for best, *_ in session.generate(prompts, eos_token_id=None)] == [23, 31]
    lengths = [len(b.token_ids) for b, *_ in session.generate(prompts, max_new_tokens=60, eos_token_id=None)]
    assert lengths == [63, 65]
    with torch.no_grad():
        whole = model.generate(torch.tensor([prompts[0]]), max_new_tokens=60, eos_token_id=None)[0].tolist()
    assert list(session.generate(prompts[:1], max_new_tokens=60, eos_token_id=None)[0][0].token_ids) == whole


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda s: s.generate([[5]], decoder_input_ids=[4]), InvalidOption, "the model's source is its prompt"),
        (lambda s: s.generate([[5] * 9], max_length=9), InputError, "the prompt has 9 tokens, but max_length"),
        (lambda s: s.generate([[5] * 65]), InputError, "the source has 65 tokens, but the model allows 64"),
        (lambda s: s.generate([[5]], alignments=True), InvalidOption, "has no attention"),
        (lambda s: s.translate(["w7"], template="Q:"), UsageError, r"expected 'chat', or a text in which \{text\}"),
        (lambda s: s.transcribe(b""), UsageError, "reads 'prompts' and no sound"),
    ],
    ids=["decoder_input_ids", "max_length", "too long", "alignments", "template", "sound"],
)
def test_what_can_not_be_is_refused(made, call, error, message):
    with pytest.raises(error, match=message):
        call(s2s_export.load(made[2], threads=1))


def test_what_opens_no_decoder_says_so(made):
    bundle = made[2]
    with pytest.raises(InvalidOption, match="a shortlist is of encoder-decoders"):
        s2s_export.load(bundle, shortlist=True)
    with pytest.raises(InvalidOption, match="an ensemble is of encoder-decoders"):
        s2s_export.load(bundle, ensemble=[bundle])
    with pytest.raises(InvalidOption, match="one prompt for all sources"):
        s2s_export.load(bundle, search="device")
    _, err = run_here("build", bundle, "--target", "cuda-fp16", status=1)
    assert "is for encoder-decoders; build cpu-fp32 or cpu-int8" in err
    _, err = run_here("encode", bundle, "w7", status=1)
    assert "holds a decoder alone (model type 'llama')" in err and "s2s generate" in err


def test_a_chat_template_needs_jinja2_and_nothing_else_does(made, monkeypatch):
    session = s2s_export.load(made[2], threads=1)
    imported = builtins.__import__

    def without(name, *arguments, **named):
        if name.startswith("jinja2"):
            raise ImportError(name)
        return imported(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    session.encode("w7", template="w8 {text}")
    with pytest.raises(MissingExtra, match=r"pip install 's2s-export\[chat\]'"):
        session.encode("w7", template="chat")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "its checkpoint had no chat template"),
        ("{{ raise_exception('no user') }}", r"can't be rendered \(no user\)"),
        ("{% for", "can't be rendered"),
        ("{{ messages.__class__.__mro__ }}", "can't be rendered"),
    ],
    ids=["none", "refuses", "damaged", "reaches out"],
)
def test_a_chat_template_that_can_not_be_rendered(made, template, message):
    session = s2s_export.load(made[2], threads=1)
    source = {**session.bundle.manifest["source"], "chat_template": template}
    session.bundle.manifest["source"] = source
    with pytest.raises((UsageError, InputError), match=message):
        session.encode("w7", template="chat")
