"""`s2s shortlist`: makes a bundle's shortlist from a parallel text, and measures how many outputs it changes."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ... import bundle as bundles
from ... import replacing
from ...bundle import Bundle
from ...engines import PORTABLE, engines
from ...errors import BundleError, InputError, InvalidOption, MissingExtra
from ...runtime.backends.onnxruntime import FLAVOURS
from ...runtime.shortlist.lists import Lists
from ...runtime.shortlist.state import (
    FOLDER,
    FORMAT,
    FORMAT_VERSION,
    LISTS,
    RECORD,
    ROWS,
    made_from,
    open_shortlist,
    step_names,
)
from ...runtime.sources import kind_of
from ...runtime.text import from_utf8, lines_of
from ...runtime.text import load as load_tokenizer
from .alignment import fit, most_frequent

if TYPE_CHECKING:
    from ...runtime.backends.onnxruntime import OnnxRuntimeBackend
    from ...runtime.session import Session
    from ...runtime.text import Tokenizer

Ids = list[int]
Pair = tuple[Ids, Ids]
BEST = 50  # target tokens in each list
FREQUENT = 100  # most frequent target tokens, which every batch gets
N_MEASURED = 100  # pairs that the lists are not made from, on whose sources the loss is measured
MEASURED_SHARE = 0.1  # of all pairs, at most
MAX_NEW_TOKENS = 64
SEARCHES: tuple[dict[str, Any], ...] = ({"num_beams": 1, "do_sample": False}, {"num_beams": 4, "do_sample": False})
STAGES = ("read pairs", "align", "write decoder steps", "measure")


@dataclass(frozen=True)
class Options:
    """best: tokens in a list. frequent: tokens that every batch gets. n_measured: sentences to measure the loss on."""

    best: int = BEST
    frequent: int = FREQUENT
    n_measured: int = N_MEASURED


def make(
    path: str | os.PathLike[str],
    data: str | None,
    options: Options | None = None,
    progress: Callable[[str], None] = lambda stage: None,
) -> dict[str, Any]:
    """Make the bundle's shortlist from the pairs in `data`, and return what shortlist.json records.

    Without data, the lists are kept, and decoder steps are written for targets that were built since.
    Raises BundleError, InputError, InvalidOption, BuildError, MissingExtra. An older shortlist survives a failure.
    """
    options = options or Options()
    _require_onnx()
    bundle = bundles.read(path)
    if not (kind := kind_of(bundle)).has_ids:
        raise InvalidOption(
            f"{bundle.path}: a shortlist is looked up by the source's token ids, but the model reads '{kind.name}'; "
            "decode without one"
        )
    final = bundle.path / FOLDER
    before = None
    if data is None:
        if not (final / RECORD).is_file():
            raise InvalidOption(
                f"{bundle.path}: has no shortlist to bring up to date; give a parallel text with --data"
            )
        before = final
    try:
        with replacing.folder(final, replace=True) as work:
            record = _write(bundle, work, data, before, options, progress)
    except OSError as error:
        raise BundleError(
            f"{final}: can't be written ({error.strerror or error}); the previous shortlist is unchanged"
        ) from error
    return record


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401
    except ImportError:
        raise MissingExtra("onnx", "build", "making a shortlist") from None


def _write(
    bundle: Bundle,
    work: Path,
    data: str | None,
    before: Path | None,
    options: Options,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    from ...runtime.shortlist.state import read_record
    from .rewrite import find_head

    measured: list[Pair] = []
    if before is not None:
        facts = {k: v for k, v in read_record(before).items() if k not in ("targets", "files")}
        shutil.copyfile(before / LISTS, work / LISTS)
    else:
        assert data is not None
        progress(STAGES[0])
        pairs = read_pairs(bundle, data)
        n = min(options.n_measured, int(len(pairs) * MEASURED_SHARE))
        measured, training = spread(pairs, n)
        progress(STAGES[1])
        facts = _make_lists(bundle, training, options, work)
        facts = {"format": FORMAT, "format_version": FORMAT_VERSION, **facts, "accuracy": []}
    progress(STAGES[2])
    facts["head"] = find_head(bundle.graph_path("decoder_step"))
    record = {**facts, "targets": _write_steps(bundle, work), "files": bundles.describe_files(work)}
    _write_record(work, record)
    if measured:
        progress(STAGES[3])
        record["accuracy"] = _measure(bundle, work, record, [source for source, _ in measured])
        _write_record(work, record)
    return record


def _write_record(folder: Path, record: Mapping[str, Any]) -> None:
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _make_lists(bundle: Bundle, pairs: Sequence[Pair], options: Options, work: Path) -> dict[str, Any]:
    n_target = bundle.vocabulary_size
    n_source = int(bundle.manifest["sizes"].get("source_vocabulary_size", n_target))
    best = fit(pairs, n_source, n_target).best(n_source, options.best)
    always = most_frequent([target for _, target in pairs], options.frequent, n_target)
    Lists.make(best, always, n_target).write(work / LISTS)
    lengths = [len(ids) for ids in best if ids]
    return {
        "n_pairs": len(pairs),
        "best": options.best,
        "frequent": len(always),
        "n_lists": len(lengths),
        "mean_length": sum(lengths) / max(1, len(lengths)),
    }


def _write_steps(bundle: Bundle, work: Path) -> dict[str, Any]:
    """The rewritten steps of every target that ONNX Runtime runs on a CPU."""
    from .rewrite import rewrite, write_rows

    found = {}
    sources = {PORTABLE: (bundle.manifest["graphs"], bundle.path)}
    for target, engine in engines(bundle).items():
        if engine["flavour"] in FLAVOURS:
            sources[target] = (engine["graphs"], bundle.path / "engines" / target)
    for target, (graphs, folder) in sources.items():
        (work / target).mkdir()
        steps = {}
        for name in step_names(graphs):
            file = f"{target}/{name}.onnx"
            described = rewrite(folder / graphs[name]["file"], work / file)
            limit = {"max_rows": graphs[name]["max_rows"]} if "max_rows" in graphs[name] else {}
            steps[name] = {"file": file, **described, **limit}
        found[target] = {"made_from": made_from(bundle, graphs, target), "graphs": steps}
        rows = f"{target}/{ROWS}.onnx"
        if write_rows(folder / graphs["decoder_step"]["file"], work / rows):
            found[target]["rows"] = rows
    return found


def read_pairs(bundle: Bundle, data: str) -> list[Pair]:
    """Ids of the pairs of a TSV file. For a bundle without a tokenizer, its lines hold ids, separated by spaces.

    Raises InputError naming the line, InvalidOption for a file that is missing or empty.
    """
    file = Path(data)
    if not file.is_file():
        raise InvalidOption(f"{data}: no such file; expected a source, a tab and its target on each line")
    entry = bundle.manifest.get("tokenizer")
    tokenizer = load_tokenizer(bundle.path / "tokenizer", entry) if entry else None
    n_target = bundle.vocabulary_size
    n_source = int(bundle.manifest["sizes"].get("source_vocabulary_size", n_target))
    pairs = []
    for number, line in enumerate(lines_of(file), 1):
        if not line.strip():
            continue
        try:
            pairs.append(_pair(from_utf8(line), tokenizer, n_source, n_target))
        except InputError as error:
            raise InputError(f"{data}: line {number}: {error}") from None
    if not pairs:
        raise InvalidOption(f"{data}: holds no pairs; expected a source, a tab and its target on each line")
    return pairs


def _pair(line: str, tokenizer: Tokenizer | None, n_source: int, n_target: int) -> Pair:
    parts = line.split("\t")
    if len(parts) != 2:
        raise InputError(f"found {len(parts) - 1} tabs; expected one, between a source and its target")
    if tokenizer is not None:
        return tokenizer.encode(parts[0]), tokenizer.encode_target(parts[1])
    found = []
    for text, size in zip(parts, (n_source, n_target), strict=True):
        try:
            ids = [int(word) for word in text.split()]
        except ValueError:
            raise InputError(
                "holds text, but the bundle has no tokenizer; give token ids with spaces between"
            ) from None
        if not all(0 <= i < size for i in ids):
            raise InputError(f"has an id outside the vocabulary; expected ids below {size}")
        found.append(ids)
    return found[0], found[1]


def spread(pairs: Sequence[Pair], n: int) -> tuple[list[Pair], list[Pair]]:
    """n pairs, spread evenly over all, and the other pairs."""
    if n < 1:
        return [], list(pairs)
    chosen = {i * len(pairs) // n for i in range(n)}
    return [pairs[i] for i in sorted(chosen)], [pair for i, pair in enumerate(pairs) if i not in chosen]


def _measure(bundle: Bundle, folder: Path, record: dict[str, Any], sources: list[Ids]) -> list[dict[str, Any]]:
    """Shares of sentences and tokens that are equal with and without the shortlist, on the portable graphs."""
    from ...runtime.session import load
    from ...runtime.shortlist.state import Shortlist

    session = load(bundle.path, "onnxruntime", PORTABLE, verify=False)
    limit = bundle.max_source_length or max(map(len, sources))
    sources = [source for source in sources if 0 < len(source) <= limit]
    shortlist = Shortlist(cast("OnnxRuntimeBackend", session.backend), record, folder)
    found = []
    for search in SEARCHES if sources else ():
        plain, cut = (_tokens(session, sources, search, with_it) for with_it in (None, shortlist))
        equal = [a == b for a, b in zip(plain, cut, strict=True)]
        same = sum(_common(a, b) for a, b in zip(plain, cut, strict=True))
        options = session.options(**search)
        widths = [len(shortlist.ids_of([source], options)) for source in sources]
        found.append({
            "num_beams": search["num_beams"], "n_sources": len(sources), "equal": sum(equal) / len(equal),
            "tokens": same / max(1, sum(map(len, plain))), "mean_tokens": sum(widths) / len(widths),
        })  # fmt: skip
    return found


def _tokens(session: Session, sources: list[Ids], search: dict[str, Any], shortlist: Any) -> list[Ids]:
    room = session.bundle.max_target_length or MAX_NEW_TOKENS
    options = session.options(**search, max_new_tokens=min(MAX_NEW_TOKENS, room))
    session.shortlist = shortlist
    return [list(best[0].token_ids) for best in session.decode(sources, options)]


def _common(a: Ids, b: Ids) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def summary(record: Mapping[str, Any]) -> list[str]:
    """A few lines of text that say what was made."""
    lines = [
        f"{record['n_pairs']} pairs: lists for {record['n_lists']} source tokens, {record['mean_length']:.1f} target "
        f"tokens each; {record['frequent']} tokens are always in",
        f"targets: {', '.join(record['targets'])}",
    ]
    for entry in record["accuracy"]:
        lines.append(
            f"{entry['num_beams']} beam{'s' * (entry['num_beams'] > 1)}: tokens equal in {entry['equal']:.1%} of "
            f"{entry['n_sources']} sentences, a sentence has {entry['mean_tokens']:.0f} tokens to choose from"
        )
    return lines


__all__ = ["Options", "make", "open_shortlist", "summary"]
