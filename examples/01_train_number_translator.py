"""Train a small Marian translator, English numbers and dates to German and French, and write it as transformers does.

    python examples/01_train_number_translator.py --out number-words

A translation model has to come from somewhere before it can be exported. This one is trained on the generated corpus
of `s2s_export.training.corpus`, in ten minutes of one CPU thread, and has everything that a released OPUS-MT
model has: two SentencePiece models and a shared vocabulary, language tags, tied embeddings, post-norm layers, a
generation config with beam search. What it says of one number or date is right nearly always; it knows nothing else.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import tempfile
import time
from pathlib import Path

import sentencepiece
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    GenerationConfig,
    MarianConfig,
    MarianMTModel,
    MarianTokenizer,
)

from s2s_export.training.corpus import Pair, generate_pairs, split, untagged
from s2s_export.training.spoken import LANGUAGES

N_PAIRS = 240_000  # drawn; a twentieth of them is held out
N_TEST = 600  # held-out sources measured and written, for each language
N_PIECES = 260  # SentencePiece units of each side: about one a morpheme, a few for a long German number
BATCH_TOKENS = 2048  # padded source and target tokens together
PEAK_RATE = 2e-3
WARM_UP = 500  # steps; post-norm layers diverge without
SMOOTHING = 0.05


def train_tokenizer(pairs: list[Pair], folder: Path) -> MarianTokenizer:
    """One SentencePiece model a side and the union of their pieces as vocabulary, as Marian checkpoints have them."""
    tags = [language.tag for language in LANGUAGES.values()]
    pieces: list[str] = []
    sides = {"source": [untagged(p.source) for p in pairs], "target": [p.target for p in pairs]}
    for side, texts in sides.items():
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts[:60_000]),
            model_prefix=str(folder / side),
            vocab_size=N_PIECES,
            hard_vocab_limit=False,  # a limit, which English does not reach
            character_coverage=1.0,
            split_digits=True,  # numbers are read figure by figure
            bos_id=-1,
            num_threads=1,
            minloglevel=2,
        )
        (folder / f"{side}.model").rename(folder / f"{side}.spm")
        model = sentencepiece.SentencePieceProcessor(model_file=str(folder / f"{side}.spm"))
        pieces += [model.id_to_piece(i) for i in range(model.get_piece_size()) if not model.is_control(i)]
    ordered = dict.fromkeys(["</s>", "<unk>", *tags, *pieces, "<pad>"])
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(ordered)}), encoding="utf-8")
    return MarianTokenizer(
        source_spm=str(folder / "source.spm"),
        target_spm=str(folder / "target.spm"),
        vocab=str(folder / "vocab.json"),
        source_lang="en",
        target_lang="mul",
        model_max_length=256,
    )


def make_model(tokenizer: MarianTokenizer) -> MarianMTModel:
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    config = MarianConfig(
        vocab_size=len(tokenizer),
        d_model=128,
        encoder_layers=3,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=512,
        decoder_ffn_dim=512,
        max_position_embeddings=256,
        activation_function="swish",
        dropout=0.0,  # the corpus is never seen more than a few times
        scale_embedding=True,
        init_std=0.05,
        pad_token_id=pad,
        eos_token_id=eos,
        decoder_start_token_id=pad,
        forced_eos_token_id=eos,
    )
    model = MarianMTModel(config)
    model.generation_config = GenerationConfig(  # what the released Marian models carry
        num_beams=4,
        max_length=256,
        bad_words_ids=[[pad]],
        renormalize_logits=True,
        pad_token_id=pad,
        eos_token_id=eos,
        forced_eos_token_id=eos,
        decoder_start_token_id=pad,
    )
    return model


def mixture(pairs: list[Pair], rng: random.Random) -> list[Pair]:
    """What is trained on: the pairs, and lists of two to four of them, which show the model longer sources.

    The lists join training pairs only, so nothing held out hides in them.
    """
    result = list(pairs)
    by_tag: dict[str, list[Pair]] = {}
    for pair in pairs:
        by_tag.setdefault(pair.source.split(" ", 1)[0], []).append(pair)
    for tag, same in by_tag.items():
        for first in same[::5]:
            joined = [first, *rng.sample(same, rng.randint(1, 3))]
            source = ", ".join(untagged(pair.source) for pair in joined)
            result.append(Pair(f"{tag} {source}", ", ".join(pair.target for pair in joined)))
    return result


def batches(encoded: list[tuple[list[int], list[int]]], rng: random.Random):
    """Endless batches of pairs of like length, at most BATCH_TOKENS with their padding."""
    while True:
        order = rng.sample(encoded, len(encoded))
        for start in range(0, len(order), 20_000):
            bucket = sorted(order[start : start + 20_000], key=lambda pair: (len(pair[0]) + len(pair[1]), len(pair[0])))
            made, batch, widest = [], [], 0
            for pair in bucket:
                width = max(widest, len(pair[0]) + len(pair[1]))
                if batch and width * (len(batch) + 1) > BATCH_TOKENS:
                    made.append(batch)
                    batch, width = [], len(pair[0]) + len(pair[1])
                batch.append(pair)
                widest = width
            made.append(batch)
            rng.shuffle(made)
            yield from made


def padded(rows: list[list[int]], fill: int) -> torch.Tensor:
    """[B, longest]"""
    longest = max(map(len, rows))
    return torch.tensor([row + [fill] * (longest - len(row)) for row in rows])


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then half a cosine down to nothing."""
    if step < WARM_UP:
        return PEAK_RATE * (step + 1) / WARM_UP
    return PEAK_RATE * 0.5 * (1 + math.cos(math.pi * (step - WARM_UP) / max(1, steps - WARM_UP)))


def train(model: MarianMTModel, encoded: list, steps: int, rng: random.Random) -> None:
    pad = model.config.pad_token_id
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.98), eps=1e-9, weight_decay=0.01)
    model.train()
    started, running = time.monotonic(), None
    for step, batch in zip(range(steps), batches(encoded, rng), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        sources = padded([source for source, _ in batch], pad)
        labels = padded([target for _, target in batch], pad)
        shifted = torch.cat([torch.full((len(batch), 1), pad), labels[:, :-1]], dim=1)
        logits = model(input_ids=sources, attention_mask=(sources != pad).long(), decoder_input_ids=shifted).logits
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), ignore_index=pad, label_smoothing=SMOOTHING
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        running = loss.item() if running is None else 0.98 * running + 0.02 * loss.item()
        if (step + 1) % 100 == 0 or step + 1 == steps:
            print(f"step {step + 1:5d}  loss {running:.4f}  {time.monotonic() - started:5.0f} s", flush=True)


def save(model: MarianMTModel, tokenizer: MarianTokenizer, folder: Path) -> None:
    """Weights in half precision, to be computed with in single: config.json says float32."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    file = folder / "model.safetensors"
    save_file({name: tensor.half() for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})


def held_out(pairs: list[Pair]) -> list[Pair]:
    """N_TEST different sources of each language, none of which was trained on in either language."""
    return [
        pair
        for language in LANGUAGES.values()
        for pair in [pair for pair in dict.fromkeys(pairs) if pair.source.startswith(language.tag)][:N_TEST]
    ]


@torch.inference_mode()
def translate(folder: Path, sources: list[str], batch_size: int = 50) -> list[str]:
    """By `generate`, with what the folder's generation config says; order is kept."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    order = sorted(range(len(sources)), key=lambda i: len(sources[i]))
    texts = [""] * len(sources)
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        inputs = tokenizer([sources[i] for i in part], return_tensors="pt", padding=True)
        outputs = tokenizer.batch_decode(model.generate(**inputs), skip_special_tokens=True)
        for i, text in zip(part, outputs, strict=True):
            texts[i] = text
    return texts


def accuracy(folder: Path, pairs: list[Pair]) -> float:
    """Share of the sources translated exactly."""
    texts = translate(folder, [pair.source for pair in pairs])
    wrong = [(pair, text) for pair, text in zip(pairs, texts, strict=True) if text != pair.target]
    for pair, text in wrong[:10]:
        print(f"  wrong: {pair.source} -> {text} (expected {pair.target})")
    return 1 - len(wrong) / len(pairs)


CARD = """\
---
language: [en, de, fr]
license: apache-2.0
library_name: transformers
pipeline_tag: translation
---
# number-words

English numbers, ordinals, quantities, years, dates, times and amounts of money to German and French. A translator to
try an exporter on: small enough to keep beside the code, of the format of a released OPUS-MT model. It knows these
phrases, alone or in lists of up to four, and nothing else; a longer list has a mistake in it more often than not.

A source begins with the tag of the language wanted:

{examples}

## Measured

Exact match of `transformers.generate` with 4 beams on {n_test} sources for each language that were not trained on:

{table}

## Made by

    {command}

{n_parameters:,} parameters, {n_pieces} pieces, {steps} steps in {minutes:.0f} minutes of CPU time on one thread,
seed {seed}; torch {torch}, transformers {transformers}. The training text is generated: see
`s2s_export/training/corpus.py`. Weights are stored in half precision and, as `config.json` says, computed with in
single precision.
"""

SHOWN = (
    "seventeen",
    "one thousand two hundred and five",
    "the third of March 1998",
    "half past three",
    "€12.50",
    "21st",
)


def write_card(
    folder: Path, model: MarianMTModel, results: dict[str, float], options: argparse.Namespace, seconds: float
) -> None:
    sources = [f"{language.tag} {text}" for language in LANGUAGES.values() for text in SHOWN]
    lines = [f"    {source}  ->  {text}" for source, text in zip(sources, translate(folder, sources), strict=True)]
    table = ["| target | exact match |", "|---|---|", *(f"| `{tag}` | {share:.1%} |" for tag, share in results.items())]
    card = CARD.format(
        examples="\n".join(lines),
        n_test=N_TEST,
        table="\n".join(table),
        command=f"python examples/01_train_number_translator.py --steps {options.steps} --seed {options.seed}",
        n_parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        n_pieces=model.config.vocab_size,
        steps=options.steps,
        minutes=seconds / 60,
        seed=options.seed,
        torch=torch.__version__.split("+")[0],
        transformers=transformers.__version__,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("number-words"), help="folder to write")
    parser.add_argument("--test-file", type=Path, help="TSV of held-out sources and targets to write")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    rng = random.Random(options.seed)
    pairs = split(generate_pairs(N_PAIRS, options.seed, repeats=True))
    print(f"{len(pairs.train)} training pairs, {len(pairs.test)} held out")
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer = train_tokenizer(pairs.train, Path(scratch))
        model = make_model(tokenizer)
        training = mixture(pairs.train, rng)
        print(f"{len(tokenizer)} pieces, {len(training)} sources in the mixture")
        sources = tokenizer([pair.source for pair in training])["input_ids"]
        targets = tokenizer(text_target=[pair.target for pair in training])["input_ids"]
        started = time.process_time()
        train(model, list(zip(sources, targets, strict=True)), options.steps, rng)
        seconds = time.process_time() - started
        save(model, tokenizer, options.out)
    test = held_out(pairs.test)
    if options.test_file:
        options.test_file.write_text("".join(f"{source}\t{target}\n" for source, target in test), encoding="utf-8")
    results = {}
    for language in LANGUAGES.values():
        part = [pair for pair in test if pair.source.startswith(language.tag)]
        results[language.tag] = accuracy(options.out, part)
        print(f"{language.tag} {results[language.tag]:.1%} of {len(part)} held-out sources exactly right")
    write_card(options.out, model, results, options, seconds)


if __name__ == "__main__":
    main()
