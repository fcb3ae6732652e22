"""The promise, end to end: tokens of transformers' generate() from the exported bundle, through ONNX Runtime."""

from __future__ import annotations

import random
import warnings

import generate_versions
import pytest
import tiny_models
import torch
import transformers

import s2s_export

pytestmark = pytest.mark.matrix

N_CASES = 10  # a family; hundreds more run against the search alone in tests/runtime/decoding
SCORE_TOLERANCE = 1e-4  # relative where a negative length penalty makes scores large
FILLER = -1e8  # a hypothesis that stands for an impossible one; their order is undefined
CACHE: dict[str, object] = {}


def torch_model(checkpoint):
    if checkpoint not in CACHE:
        CACHE[checkpoint] = transformers.AutoModelForSeq2SeqLM.from_pretrained(checkpoint).eval()
    return CACHE[checkpoint]


def random_options(chance: random.Random) -> dict:
    options: dict = {"num_beams": chance.choice([1, 1, 2, 4, 5]), "do_sample": False}
    if options["num_beams"] > 1:
        options["length_penalty"] = chance.choice([0.0, 0.6, 1.0, 2.0])
        options["early_stopping"] = chance.choice([True, False, "never"])
        options["num_return_sequences"] = chance.randint(1, options["num_beams"])
    options["max_new_tokens"] = chance.choice([1, 5, 12, 30])
    sometimes = {
        "min_new_tokens": chance.randint(1, options["max_new_tokens"]),
        "no_repeat_ngram_size": chance.choice([1, 2, 3]),
        "repetition_penalty": chance.choice([0.8, 1.3]),
        "bad_words_ids": [[chance.randrange(3, 50)], [chance.randrange(3, 50), chance.randrange(3, 50)]],
        "suppress_tokens": [5, 6, 7],
        "begin_suppress_tokens": [8, 9],
        "forced_bos_token_id": chance.randrange(10, 50),
        "forced_eos_token_id": 2,
        "decoder_input_ids": [chance.randrange(3, 50) for _ in range(chance.randint(1, 3))],
        "exponential_decay_length_penalty": (3, 1.2),
        "renormalize_logits": True,
    }
    return options | generate_versions.followed(
        {name: value for name, value in sometimes.items() if chance.random() < 0.25}
    )


def generated(model, sources, options):
    """(tokens, score or None) of every hypothesis of every source, decoded as one padded batch."""
    pad = model.config.pad_token_id
    length = max(map(len, sources))
    ids = torch.tensor([source + [pad] * (length - len(source)) for source in sources])
    mask = torch.tensor([[1] * len(source) + [0] * (length - len(source)) for source in sources])
    options = dict(options)
    if "decoder_input_ids" in options:
        options["decoder_input_ids"] = torch.tensor([options["decoder_input_ids"]] * len(sources))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = model.generate(
            input_ids=ids, attention_mask=mask, return_dict_in_generate=True, output_scores=True, **options
        )
    scores = out.get("sequences_scores")
    scores = [None] * len(out.sequences) if scores is None else scores.tolist()
    n = options.get("num_return_sequences", 1)
    pairs = list(zip(out.sequences.tolist(), scores, strict=True))
    return [pairs[i : i + n] for i in range(0, len(pairs), n)]


def assert_same(theirs, ours):
    tokens, score = theirs
    n = len(ours.token_ids)
    assert tokens[:n] == list(ours.token_ids)
    assert len(set(tokens[n:])) <= 1, "what follows is padding"
    if score is not None and score > FILLER:
        assert ours.score == pytest.approx(score, rel=SCORE_TOLERANCE, abs=SCORE_TOLERANCE)


@pytest.mark.parametrize("name", tiny_models.CONFIGS)
def test_random_options_give_the_tokens_of_generate(exported, name):
    checkpoint, bundle = exported(name)
    model, session = torch_model(checkpoint), s2s_export.load(bundle, threads=1)
    pad = model.config.pad_token_id
    chance = random.Random(name)
    alphabet = [i for i in range(session.bundle.vocabulary_size) if i != pad]
    one_beam = name == "marian-two-vocabularies" and generate_versions.VERSION < generate_versions.TWO_VOCABULARIES
    for _ in range(N_CASES):
        options = random_options(chance)
        if one_beam:
            options = {**options, "num_beams": 1, "num_return_sequences": 1}
        sources = [[chance.choice(alphabet) for _ in range(chance.randint(1, 12))] for _ in range(chance.randint(1, 4))]
        expected = generated(model, sources, options)
        found = session.generate(sources, **options)
        for theirs, ours in zip(expected, found, strict=True):
            live = [(t, o) for t, o in zip(theirs, ours, strict=True) if t[1] is None or t[1] > FILLER]
            for pair in live:
                assert_same(*pair)


@pytest.mark.parametrize("name", ["marian", "t5", "bart"])
def test_long_targets_outgrow_the_first_cache(exported, name):
    checkpoint, bundle = exported(name)
    options = {"num_beams": 3, "min_new_tokens": 40, "max_new_tokens": 44}
    sources = [[5, 6, 7, 8], [9, 10]]
    expected = generated(torch_model(checkpoint), sources, options)
    found = s2s_export.load(bundle).generate(sources, **options)
    for theirs, ours in zip(expected, found, strict=True):
        assert_same(theirs[0], ours[0])


@pytest.mark.skipif(
    generate_versions.VERSION < generate_versions.PADDING_IN_A_SOURCE, reason="older releases mask padding ids"
)
def test_a_padding_id_inside_a_source_is_a_token_as_for_generate(exported):
    checkpoint, bundle = exported("mbart")
    source = [5, 1, 7, 8, 2]
    model = torch_model(checkpoint)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = model.generate(input_ids=torch.tensor([source]), num_beams=2, max_new_tokens=8)[0].tolist()
    found = s2s_export.load(bundle).generate([source], num_beams=2, max_new_tokens=8)[0][0].token_ids
    assert expected[: len(found)] == list(found)


@pytest.mark.parametrize("name", ["marian", "t5", "m2m_100"])
def test_a_batch_equals_its_sources_one_by_one(exported, name):
    session = s2s_export.load(exported(name)[1])
    chance = random.Random(3)
    sources = [[chance.randrange(3, 50) for _ in range(chance.randint(1, 20))] for _ in range(9)]
    together = session.generate(sources, num_beams=4, max_new_tokens=20, batch_size=4)
    for source, hypotheses in zip(sources, together, strict=True):
        alone = session.generate([source], num_beams=4, max_new_tokens=20)[0]
        assert [h.token_ids for h in alone] == [h.token_ids for h in hypotheses]
        assert [h.score for h in alone] == pytest.approx([h.score for h in hypotheses], abs=1e-5)


def test_alignments_are_the_cross_attention_of_torch(exported):
    checkpoint, bundle = exported("bart")
    source = [5, 6, 7, 8, 2]
    hypothesis = s2s_export.load(bundle).generate([source], num_beams=3, max_new_tokens=9, alignments="heads")[0][0]
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(checkpoint, attn_implementation="eager").eval()
    tokens = torch.tensor([hypothesis.token_ids])
    with torch.no_grad():
        out = model(input_ids=torch.tensor([source]), decoder_input_ids=tokens[:, :-1], output_attentions=True)
    expected = torch.stack(out.cross_attentions)[:, 0].numpy()  # [L,H,T,S]
    assert hypothesis.alignment_heads == pytest.approx(expected, abs=1e-5)
    assert hypothesis.alignment == pytest.approx(expected[-1].mean(axis=0), abs=1e-5)
