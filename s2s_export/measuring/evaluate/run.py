"""Evaluates engines on pairs of source and reference, each in a process of its own, one after the other."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ... import bundle as bundles
from ... import engines
from ...errors import InputError, InvalidOption, MissingExtra, UnknownOption
from ...runtime.scheduling import DEFAULT_BATCH_SIZE
from ...runtime.sources import kind_of
from ...runtime.text import from_utf8, lines_of
from ..bench.contestants import Absent
from ..bench.remote import Worker
from ..machine import machine

PYTORCH = "PyTorch"
WORKER = "s2s_export.measuring.evaluate.worker"


@dataclass(frozen=True)
class Options:
    """targets: engines by name, "portable" among them; all that the bundle has if empty. checkpoint: for PyTorch.

    generation: options by their Hugging Face names. threads: of each; None takes all cores.
    """

    targets: tuple[str, ...] = ()
    checkpoint: str | None = None
    backend: str = "auto"
    threads: int | None = None
    batch_size: int = DEFAULT_BATCH_SIZE
    source_lang: str | None = None
    target_lang: str | None = None
    truncate: bool = False
    generation: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """One engine. exact_match, equal_to_first: shares of the sources, 0 to 1. bleu, chrf: of sacrebleu, 0 to 100.

    equal_to_first: outputs equal to those of the first result. tokens_per_second: generated, of the whole run, loading
    left out. peak_bytes: of memory. reason: why there is no result, else None. n_failed: sources without an output.
    """

    name: str
    backend: str = ""
    exact_match: float = 0.0
    bleu: float = 0.0
    chrf: float = 0.0
    equal_to_first: float = 0.0
    seconds: float = 0.0
    tokens_per_second: float = 0.0
    peak_bytes: int = 0
    n_failed: int = 0
    failures: tuple[tuple[int, str], ...] = ()
    reason: str | None = None
    texts: tuple[str, ...] = ()


def evaluate(
    path: str, data: str, options: Options, progress: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """The record: machine, model, data, and `results`, PyTorch first where there is a checkpoint.

    Raises BundleError, InputError, InvalidOption, UnknownOption, MissingExtra; what an engine lacks is in its result.
    """
    bundle = bundles.read(path)
    if not kind_of(bundle).has_ids or not bundle.manifest.get("tokenizer"):
        raise InvalidOption(f"{path}: reads no text; evaluate compares texts with their references")
    pairs = read_pairs(data)
    names = _names(bundle, options)
    try:
        import sacrebleu
    except ImportError as error:
        raise MissingExtra("sacrebleu", "evaluate", "scoring translations") from error
    results: list[Result] = []
    for name in names:
        progress(name)
        results.append(_run(path, name, options, pairs, results, sacrebleu))
    return {
        "model": {"name": Path(path).name, **{key: bundle.manifest[key] for key in ("family", "model_type")}},
        "data": {"file": Path(data).name, "pairs": len(pairs)},
        "settings": {
            "threads": options.threads, "batch_size": options.batch_size, "generation": options.generation,
            "target_lang": options.target_lang,
        },
        "machine": machine(),
        "python": platform.python_version(),
        "results": [{k: v for k, v in asdict(result).items() if k != "texts"} for result in results],
        "examples": _examples(pairs, results),
    }  # fmt: skip


def read_pairs(data: str) -> list[tuple[str, str]]:
    """Source and reference of each line of a TSV file; blank lines are passed over. Raises InputError."""
    try:
        lines = lines_of(Path(data))
    except OSError as error:
        raise InputError(
            f"{data}: can't be read ({error.strerror or error}); expected lines of source TAB reference"
        ) from None
    pairs = []
    for number, line in enumerate(lines, 1):
        text = from_utf8(line)
        if not text.strip():
            continue
        columns = text.split("\t")
        if len(columns) != 2:
            raise InputError(
                f"{data}: line {number} has {len(columns)} column{'s' * (len(columns) != 1)}; expected a source, a tab "
                "and its reference"
            )
        pairs.append((columns[0], columns[1]))
    if not pairs:
        raise InputError(f"{data}: has no pairs; expected lines of source TAB reference")
    return pairs


def _names(bundle: bundles.Bundle, options: Options) -> list[str]:
    known = [engines.PORTABLE, *engines.names(bundle)]
    for name in options.targets:
        if name not in known:
            raise UnknownOption(name, known, "engine of this bundle")
    if options.checkpoint is not None and not Path(options.checkpoint).is_dir():
        raise InvalidOption(
            f"--checkpoint is {options.checkpoint}; expected the folder that the bundle was exported from"
        )
    return [*([PYTORCH] if options.checkpoint else []), *(options.targets or known)]


def _run(
    path: str, name: str, options: Options, pairs: Sequence[tuple[str, str]], before: Sequence[Result], sacrebleu: Any
) -> Result:
    is_pytorch = name == PYTORCH
    languages = {key: getattr(options, key) for key in ("source_lang", "target_lang", "truncate")}
    try:
        with Worker(options.threads or 0, module=WORKER) as worker:
            found = worker.ask(
                "evaluate", bundle=path, target=None if is_pytorch else name,
                checkpoint=options.checkpoint if is_pytorch else None, backend=options.backend,
                threads=options.threads, batch_size=options.batch_size, options=options.generation,
                languages=languages, sources=[source for source, _ in pairs],
            )  # fmt: skip
    except Absent as error:
        return Result(name, reason=str(error))
    texts, references = found["texts"], [reference for _, reference in pairs]
    first = next((result.texts for result in before if result.reason is None), tuple(texts))
    return Result(
        name,
        found["backend"],
        exact_match=_share(texts, references),
        bleu=sacrebleu.corpus_bleu(texts, [references]).score,
        chrf=sacrebleu.corpus_chrf(texts, [references]).score,
        equal_to_first=_share(texts, first),
        seconds=found["seconds"],
        tokens_per_second=found["n_tokens"] / max(found["seconds"], 1e-9),
        peak_bytes=int(found["memory"].get("peak", 0)),
        n_failed=len(found["failures"]),
        failures=tuple((int(number), str(text)) for number, text in found["failures"][:5]),
        texts=tuple(texts),
    )


def _share(texts: Sequence[str], others: Sequence[str]) -> float:
    return sum(a == b for a, b in zip(texts, others, strict=True)) / len(texts)


def _examples(pairs: Sequence[tuple[str, str]], results: Sequence[Result], most: int = 12) -> list[dict[str, Any]]:
    """Sources for which the engines wrote different texts, with all of these."""
    ran = [result for result in results if result.reason is None]
    found: list[dict[str, Any]] = []
    for i, (source, reference) in enumerate(pairs):
        texts = {result.name: result.texts[i] for result in ran}
        if len(set(texts.values())) > 1 and len(found) < most:
            found.append({"source": source, "reference": reference, "texts": texts})
    return found
