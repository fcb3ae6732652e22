"""`s2s calibrate`: flags and printing."""

from __future__ import annotations

from typing import Any

import click

from ..errors import InputError, InvalidOption, MissingExtra
from ..progress import Progress
from ._common import Rate, output_options, print_json, session_options, tell_choice, worker_option
from ._help import JUDGE, Command
from ._options import generation_options, given


@click.command("calibrate", cls=Command, section=JUDGE, short_help="Learn how sure the model's confidence is.")
@click.argument("bundle", type=click.Path())
@click.option("--data", required=True, metavar="PAIRS.TSV", help="Each line: source, tab, reference; 50 or more.")
@click.option("--measure", type=click.Choice(["exact", "chrf"]), default="exact", show_default=True,
              help="When an output is right: equal to the reference, or near enough by chrF.")  # fmt: skip
@click.option("--threshold", type=click.FloatRange(0, 100), default=60, show_default=True,
              help="Of chrF: from which value on an output is right.")  # fmt: skip
@session_options
@worker_option
@generation_options
@click.option("--source-lang", help="Language of the sources, for models with several.")
@click.option("--target-lang", help="Language of the outputs, for models with several.")
@output_options
def command(
    bundle: str,
    data: str,
    measure: str,
    threshold: float,
    backend: str,
    target: str | None,
    threads: int | None,
    batch_size: int | None,
    workers: int | None,
    source_lang: str | None,
    target_lang: str | None,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Decode your own pairs with BUNDLE, and learn from them how likely an output is right.

    The model's own probability of an output says which outputs are better, not how many of them are right. What is
    learned is stored in the bundle, for the target that runs (choose it with --target). From then on `--confidence` of
    `s2s translate`, "confidence" of `s2s generate` and the server's page say `calibrated`: the share of right outputs
    among those as likely as this one. Printed are the calibration errors of held-out pairs, with it and without.
    """
    from ..measuring.evaluate.run import read_pairs
    from ..runtime import calibration
    from ..runtime.cases import decode_each
    from ..runtime.scheduling import DEFAULT_BATCH_SIZE
    from ..runtime.session import load

    judge = _judge(measure, threshold)
    pairs = read_pairs(data)
    session = load(bundle, backend, target, threads, workers=workers)
    if not session.kind.has_ids or not session.has_tokenizer:
        raise InvalidOption(f"{bundle}: reads no text; a calibration compares texts with their references")
    tell_choice(session, backend, quiet, target)
    chosen = session.options(target_lang=target_lang, **given(options))
    sources = []
    for number, (source, _) in enumerate(pairs, 1):
        try:
            sources.append(session.encode(source, source_lang=source_lang, target_lang=target_lang))
        except InputError as error:
            raise InputError(f"{data}: pair {number}: {error}") from None
    means, right, rate = [], [], Rate()
    with Progress("decoding", len(pairs), quiet=quiet) as progress:
        for index, outcome in decode_each(session, sources, chosen, batch_size=batch_size or DEFAULT_BATCH_SIZE):
            if isinstance(outcome, str):
                raise InputError(f"{data}: pair {index + 1}: {outcome}")
            mean = calibration.mean_of(outcome[0])
            if mean is not None:
                means.append(mean)
                right.append(judge(outcome[0].text or "", pairs[index][1]))
            progress.advance(1, rate.add(1, len(outcome[0].token_ids)))
    found = calibration.fit(means, right, measure, threshold if measure == "chrf" else None)
    calibration.write(session.bundle, session.backend.target, found)
    if as_json:
        print_json({"pairs": found.n_pairs, "share_right": found.share_right, "error": found.error,
                    "error_before": found.error_before, "engine": session.engine})  # fmt: skip
        return
    click.echo(f"{found.n_pairs} outputs of {session.engine}, {found.share_right:.1%} of them right")
    click.echo(f"calibration error on held-out pairs: {found.error:.3f}; of the model's own probability: "
               f"{found.error_before:.3f}")  # fmt: skip


def _judge(measure: str, threshold: float) -> Any:
    """Whether an output is right, given its reference."""
    if measure == "exact":
        return lambda output, reference: output.strip() == reference.strip()
    try:
        import sacrebleu
    except ImportError as error:
        raise MissingExtra("sacrebleu", "evaluate", "judging outputs by chrF") from error
    metric = sacrebleu.CHRF()
    return lambda output, reference: bool(metric.sentence_score(output, [reference]).score >= threshold)
