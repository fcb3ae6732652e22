"""`s2s evaluate`: flags and printing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..errors import EngineError
from ..progress import Progress
from ._common import output_options, print_json
from ._help import JUDGE, Command
from ._options import generation_options, given


@click.command(
    "evaluate", cls=Command, section=JUDGE, short_help="Quality, speed and memory of each engine on your own data."
)
@click.argument("bundle", type=click.Path())
@click.option("--data", required=True, metavar="PAIRS.TSV", help="Each line: source, tab, reference.")
@click.option(
    "--target", "targets", multiple=True,
    help="An engine of the bundle, or 'portable'; may be repeated. [default: portable and all engines]",
)  # fmt: skip
@click.option("--checkpoint", help="The checkpoint of the bundle: PyTorch is evaluated too, and first.")
@click.option("--backend", default="auto", show_default=True, help="What executes the graphs; see `s2s doctor`.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads of each. [default: all cores]")
@click.option("--batch-size", type=click.IntRange(min=1), help="Sources that are decoded together.")
@click.option("--source-lang", help="Language of the sources, for models with several.")
@click.option("--target-lang", help="Language to translate into, for models with several.")
@click.option("--truncate", is_flag=True, help="Cut sources that are longer than the model allows.")
@click.option("--html", type=click.Path(dir_okay=False), help="Write a page, with the texts that differ.")
@generation_options
@output_options
def command(
    bundle: str,
    data: str,
    targets: tuple[str, ...],
    checkpoint: str | None,
    backend: str,
    threads: int | None,
    batch_size: int | None,
    source_lang: str | None,
    target_lang: str | None,
    truncate: bool,
    html: str | None,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Translate the sources of PAIRS.TSV with each engine of BUNDLE and compare the texts with the references.

    Exact match, chrF and BLEU (sacrebleu), how many texts equal those of the first line of the table, generated tokens
    a second, and peak memory: whether int8 is good enough, and what it saves, is decided on your own data. Each engine
    runs in a process of its own, one after the other.
    """
    from .. import replacing
    from ..measuring.evaluate import page
    from ..measuring.evaluate.run import Options, evaluate
    from ..runtime.scheduling import DEFAULT_BATCH_SIZE

    chosen = Options(
        targets, checkpoint, backend, threads, batch_size or DEFAULT_BATCH_SIZE, source_lang, target_lang, truncate,
        given(options),
    )  # fmt: skip
    with Progress(quiet=quiet) as progress:
        record = evaluate(bundle, data, chosen, progress.stage)
    if html is not None:
        Path(html).parent.mkdir(parents=True, exist_ok=True)
        replacing.write_text(html, page.render_page(record))
    if as_json:
        print_json(record)
    else:
        click.echo(page.render(record))
    if reasons := [f"{result['name']}: {result['reason']}" for result in record["results"] if result["reason"]]:
        raise EngineError("; ".join(reasons))
