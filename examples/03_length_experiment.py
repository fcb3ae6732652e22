"""A context of fixed size against attention: four models trained alike, and what length does to each.

    python examples/03_length_experiment.py --work /tmp/length --results examples/results/length

LSTM, GRU, attention RNN and Transformer see the same batches of the same generated corpus (English to German, phrases
joined by commas, sources up to 60 tokens) for the same number of steps, with about the same number of parameters. Held
out sources are then translated, greedily and with four beams, and scored by source length. The LSTM and the GRU press
each source into one vector; the other two look back at all of it. Bahdanau et al. (arXiv 1409.0473, figure 2) asked the
same of human language. An interrupted run goes on where it stopped. One CPU thread.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch

from s2s_export.reference import MODELS
from s2s_export.reference.checkpoint import load_checkpoint
from s2s_export.training.corpus import Pair, generate_long_pairs, split
from s2s_export.training.metrics import score_texts, translate
from s2s_export.training.progress import ProgressBar
from s2s_export.training.tokenizer import Tokenizer
from s2s_export.training.trainer import train

N_PAIRS, MAX_SOURCE, MAX_TARGET = 60_000, 60, 100
MAX_WORDS = (
    6,
    12,
    24,
)  # a third of the pairs each, so that training sees about as many tokens of short sources as of long
KINDS = ("date",)
BINS = [(1, 10), (11, 20), (21, 30), (31, 40), (41, 50), (51, 60)]  # source tokens, end token included
BEAMS = (1, 4)
SHALLOW = {"encoder_layers": 1, "decoder_layers": 1}
SIZES = {
    "lstm": {"hidden_size": 208, **SHALLOW},
    "gru": {"hidden_size": 176, **SHALLOW},
    "attention": {"hidden_size": 176, **SHALLOW},
    "transformer": {"ff_size": 256, "encoder_layers": 2, "decoder_layers": 2, "tie_embeddings": True},
}
COMMON = {"d_model": 128, "dropout": 0.1, "max_source_length": MAX_SOURCE, "max_target_length": MAX_TARGET}
OPTIONS = {
    "batch_tokens": 2048,
    "learning_rate": 2e-3,
    "warmup_steps": 200,
    "evaluate_every": 250,
    "metric_pairs": 0,
    "patience": 0,
    "device": "cpu",
}
COLOURS = {"lstm": "#c44e52", "gru": "#dd8452", "attention": "#4c72b0", "transformer": "#55a868"}


def draw(n_pairs: int) -> list[Pair]:
    """Dates in words and figures, joined by commas; a number up to 99 where no date fits. Sources are unique."""
    pairs: dict[str, Pair] = {}
    for seed, longest in enumerate(MAX_WORDS, start=1):
        for pair in generate_long_pairs(n_pairs // len(MAX_WORDS), seed, 1, longest, "de", kinds=KINDS):
            pairs[pair.source] = pair
    return list(pairs.values())


def train_one(name: str, folder: Path, pairs: list[Pair], validation: list[Pair], steps: int) -> dict:
    """Train the model unless its folder is complete; what was measured while it trained is kept beside the folder."""
    note = folder.with_suffix(".json")
    measured = json.loads(note.read_text()) if note.exists() else {"steps": 0, "cpu_seconds": 0.0}
    if measured["steps"] >= steps:
        return measured
    start, before = time.process_time(), measured["cpu_seconds"]
    bar = ProgressBar(sys.stderr)
    try:
        report = train(
            folder,
            name,
            pairs,
            validation,
            sizes={**COMMON, **SIZES[name]},
            vocab_size=300,
            options={**OPTIONS, "max_steps": steps},
            resume=folder.exists(),
            on_progress=bar,
        )
        measured = {
            "parameters": report.n_parameters,
            "steps": report.steps,
            "best_step": report.best_step,
            "validation_loss": report.validation_loss,
            "training_pairs": report.n_training_pairs,
            "vocab_size": report.vocab_size,
            "history": [[line.step, line.training_loss, line.validation_loss] for line in report.history],
        }
    finally:
        bar.clear()
        measured["cpu_seconds"] = before + time.process_time() - start
        note.write_text(json.dumps(measured, indent=1) + "\n")
    return measured


def bins_of(pairs: list[Pair], tokenizer: Tokenizer, size: int) -> list[list[Pair]]:
    """The first `size` pairs of each bin of source length that fit the models."""
    bins: list[list[Pair]] = [[] for _ in BINS]
    for pair in pairs:
        length = len(tokenizer.encode(pair.source))
        for content, (low, high) in zip(bins, BINS, strict=True):
            if low <= length <= high and len(content) < size and len(tokenizer.encode(pair.target)) < MAX_TARGET:
                content.append(pair)
    return bins


def score_one(folder: Path, test: list[Pair], size: int) -> list[dict]:
    """One record for each bin and number of beams."""
    checkpoint = load_checkpoint(folder)
    model, tokenizer, records = checkpoint.model(), Tokenizer(checkpoint.tokenizer or b""), []
    for (low, high), pairs in zip(BINS, bins_of(test, tokenizer, size), strict=True):
        for n_beams in BEAMS:
            texts = translate(model, tokenizer, pairs, torch.device("cpu"), n_beams)
            scores = score_texts(texts, [pair.target for pair in pairs])
            records.append({"from": low, "to": high, "beams": n_beams, **asdict(scores)})
            print(f"{checkpoint.config.model} {low}-{high} beams {n_beams}: {scores}", file=sys.stderr, flush=True)
    return records


def table(results: dict) -> str:
    """The results as Markdown."""
    lines = []
    for title, key, scale in (("Exact match, %", "exact_match", 100), ("BLEU", "bleu", 1)):
        lines += [f"### {title}", "", "| model | search | " + " | ".join(f"{a}-{b}" for a, b in BINS) + " |"]
        lines.append("|---|---|" + "---|" * len(BINS))
        for name, model in results["models"].items():
            for n_beams in BEAMS:
                row = [r[key] * scale for r in model["scores"] if r["beams"] == n_beams]
                search = "greedy" if n_beams == 1 else f"beam {n_beams}"
                lines.append(f"| {name} | {search} | " + " | ".join(f"{value:.1f}" for value in row) + " |")
        lines.append("")
    lines += ["### Training", "", "| model | parameters | steps | validation loss, nats a token | CPU seconds |"]
    lines.append("|---|---|---|---|---|")
    for name, model in results["models"].items():
        t = model["training"]
        lines.append(
            f"| {name} | {t['parameters']:,} | {t['steps']} | {t['validation_loss']:.3f} | {t['cpu_seconds']:.0f} |"
        )
    n = sorted({r["n"] for model in results["models"].values() for r in model["scores"]})
    lines += ["", f"Columns: source length in tokens; {n[0]} or more held-out sources each."]
    lines += [f"{results['machine']}; `python {results['command']}`.", ""]
    return "\n".join(lines)


def plot(results: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), sharex=True)
    middles = [(low + high) / 2 for low, high in BINS]
    for axis, (title, key, scale) in zip(
        axes, (("exact match, %", "exact_match", 100), ("BLEU", "bleu", 1)), strict=True
    ):
        for name, model in results["models"].items():
            for n_beams, style in zip(BEAMS, ("--", "-"), strict=True):
                values = [r[key] * scale for r in model["scores"] if r["beams"] == n_beams]
                label = f"{name}, {'greedy' if n_beams == 1 else f'beam {n_beams}'}"
                axis.plot(middles, values, style, marker="o", markersize=3, color=COLOURS[name], label=label)
        axis.set(xlabel="source length, tokens", ylabel=title, ylim=(-3, 103))
        axis.grid(alpha=0.3)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncol=len(COLOURS), fontsize=8)
    figure.suptitle("What source length does to a context of fixed size, and to attention")
    figure.tight_layout(rect=(0, 0.1, 1, 1))
    figure.savefig(path, dpi=120)


def cpu_name() -> str:
    """As Linux names it, or the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="where checkpoints go")
    parser.add_argument("--results", type=Path, required=True, help="where the plot and the table go")
    parser.add_argument("--steps", type=int, default=2000, help="updates of each model [2000]")
    parser.add_argument("--test-size", type=int, default=80, help="held-out sources of each length [80]")
    parser.add_argument("--pairs", type=int, default=N_PAIRS, help=f"drawn pairs [{N_PAIRS}]")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pairs, held_out = split(draw(arguments.pairs))
    validation, test = held_out[: len(held_out) // 5], held_out[len(held_out) // 5 :]
    arguments.work.mkdir(parents=True, exist_ok=True)
    arguments.results.mkdir(parents=True, exist_ok=True)
    results = {
        "command": f"examples/03_length_experiment.py --steps {arguments.steps} --test-size {arguments.test_size}",
        "machine": f"{cpu_name()}, {platform.system()}, one CPU thread, torch {torch.__version__}",
        "corpus": {"pairs": arguments.pairs, "max_words": MAX_WORDS, "kinds": KINDS, "language": "de"},
        "options": OPTIONS,
        "models": {},
    }
    for name in MODELS:
        training = train_one(name, arguments.work / name, pairs, validation, arguments.steps)
        scores = score_one(arguments.work / name, test, arguments.test_size)
        sizes = {**COMMON, **SIZES[name]}
        results["models"][name] = {"sizes": sizes, "training": training, "scores": scores}
        (arguments.results / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (arguments.results / "table.md").write_text(table(results))
    plot(results, arguments.results / "length.png")
    print(table(results))


if __name__ == "__main__":
    main()
