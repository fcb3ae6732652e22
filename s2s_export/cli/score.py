"""`s2s score`: flags and printing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from ..errors import InputError, explain, is_failure
from ..progress import Progress
from ._common import Rate, output_options, session_options, tell_choice, worker_option
from ._help import USE, Command
from ._search_options import ensemble_options

if TYPE_CHECKING:
    from ..runtime.decoding.scoring import Score
    from ..runtime.session import Session

WINDOW = 64  # batches of each worker that are sorted by length together
HEADER = "log_prob\tmean\ttokens\ttarget"


@click.command("score", cls=Command, section=USE, short_help="Log-probability of given targets.")
@click.argument("bundle", type=click.Path())
@click.option(
    "--data",
    required=True,
    type=click.File("rb"),
    metavar="PAIRS.TSV",
    help="Each line: source, tab, target; - is stdin.",
)
@session_options
@worker_option
@ensemble_options
@click.option("--source-lang", help="Language of the sources, for models with several.")
@click.option("--target-lang", help="Language of the targets, for models with several.")
@click.option("--truncate", is_flag=True, help="Cut sources that are longer than the model allows.")
@click.option(
    "--length-penalty",
    type=float,
    help="The exponent of the length in the normalised score. [default: the checkpoint's]",
)
@output_options
def command(
    bundle: str,
    data: Any,
    backend: str,
    target: str | None,
    threads: int | None,
    batch_size: int | None,
    workers: int | None,
    ensemble: tuple[str, ...],
    ensemble_average: str,
    source_lang: str | None,
    target_lang: str | None,
    truncate: bool,
    length_penalty: float | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Print how likely BUNDLE finds each target as the output for its source.

    That serves to filter a corpus and to rerank n-best lists. A table by default: the sum of the tokens'
    log-probabilities, their mean, the number of tokens with the end token, and the target. With --json a line of JSON
    for each pair, which has the log-probability of every token, the score that a beam search would give (normalised by
    the length), and the perplexity. A pair that fails gives an empty line, or {"error": ...}, and a message on stderr;
    the others are scored all the same, and the exit status is 1.
    """
    from ..runtime.cases import to_json
    from ..runtime.scheduling import DEFAULT_BATCH_SIZE
    from ..runtime.session import load
    from ..runtime.text import read_lines

    session = load(
        bundle,
        backend,
        target,
        threads,
        workers=workers,
        search="host",
        ensemble=ensemble,
        ensemble_average=ensemble_average,
    )
    tell_choice(session, backend, quiet, target)
    options = session.options(
        target_lang=target_lang, **({} if length_penalty is None else {"length_penalty": length_penalty})
    )
    size = batch_size or DEFAULT_BATCH_SIZE
    lines = list(read_lines(data))
    rate, n_failed = Rate(), 0
    if not as_json and lines:
        click.echo(HEADER)
    with Progress("scoring", len(lines), quiet=quiet or sys.stdout.isatty()) as progress:
        for first in range(0, len(lines), WINDOW * size * session.workers):
            window = lines[first : first + WINDOW * size * session.workers]
            languages = {"source_lang": source_lang, "target_lang": target_lang, "truncate": truncate}
            for place, (pair, outcome) in enumerate(_scored(session, window, options, languages, size)):
                failed = isinstance(outcome, str)
                if as_json:
                    click.echo(to_json(_record(session, pair, outcome, options.length_penalty)))
                elif isinstance(outcome, str):
                    click.echo()
                else:
                    click.echo(f"{outcome.log_prob:.4f}\t{outcome.mean:.4f}\t{len(outcome.token_ids)}\t{pair[1]}")
                if failed:
                    n_failed += 1
                    click.echo(f"s2s: line {first + place + 1}: {outcome}", err=True)
                progress.advance(1, rate.add(1, 0 if isinstance(outcome, str) else len(outcome.token_ids)))
    if n_failed:
        raise click.exceptions.Exit(1)


def _scored(
    session: Session, lines: list[bytes], options: Any, languages: dict[str, Any], batch_size: int
) -> Iterator[tuple[tuple[str, str], Score | str]]:
    """Each line's source and target and its score, or what is wrong with it, in order."""
    texts: list[tuple[str, str]] = []
    outcomes: dict[int, Score | str] = {}
    good, pairs = [], []
    for place, line in enumerate(lines):
        texts.append(("", ""))
        try:
            texts[place] = _columns(line)
            pairs.append(session.check_pair(*texts[place], options, **languages))
            good.append(place)
        except BaseException as error:
            if not is_failure(error):
                raise
            outcomes[place] = explain(error)
    for index, score in session.score_each(pairs, options, batch_size=batch_size):
        outcomes[good[index]] = score
    yield from ((texts[place], outcomes[place]) for place in range(len(lines)))


def _columns(line: bytes) -> tuple[str, str]:
    from ..runtime.text import from_utf8

    columns = from_utf8(line).split("\t")
    if len(columns) != 2 or not columns[0].strip() or not columns[1].strip():
        found = f"{len(columns)} column{'s' * (len(columns) != 1)}" if len(columns) != 2 else "an empty one"
        raise InputError(f"found {found}; expected a source, a tab and a target, neither of them empty")
    return columns[0], columns[1]


def _record(session: Session, pair: tuple[str, str], outcome: Score | str, length_penalty: float) -> dict[str, Any]:
    record: dict[str, Any] = {"source": pair[0], "target": pair[1]}
    if isinstance(outcome, str):
        return {**record, "error": outcome}
    return {
        **record,
        "log_prob": outcome.log_prob,
        "mean": outcome.mean,
        "score": outcome.normalized(length_penalty),
        "perplexity": outcome.perplexity,
        "token_ids": list(outcome.token_ids),
        "tokens": session.target_tokens(outcome.token_ids),
        "token_log_probs": list(outcome.token_log_probs),
    }
