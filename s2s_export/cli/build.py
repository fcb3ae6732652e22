"""`s2s build`: flags and printing."""

from __future__ import annotations

import click

from ..errors import UsageError
from ..progress import Progress
from ._common import output_options, print_json, tell
from ._help import MAKE, Command


@click.command("build", cls=Command, section=MAKE, short_help="Build a bundle's engine for a target.")
@click.argument("bundle", type=click.Path(), required=False)
@click.option("--target", help="The name of a target, or the path of your own recipe.")
@click.option(
    "--prepare",
    metavar="TARGET",
    help="Do all that needs onnx or ONNX Runtime, for a device that then runs `s2s build BUNDLE --target TARGET`.",
)
@click.option("--max-batch", type=click.IntRange(min=1), help="Most sources side by side, in place of the recipe's.")
@click.option("--max-beams", type=click.IntRange(min=1), help="Most beams, in place of the recipe's.")
@click.option("--max-source-length", type=click.IntRange(min=1), help="Longest source, in place of the recipe's.")
@click.option(
    "--samples",
    type=click.Path(),
    help="Your own sentences, a line each, on which agreement is measured. [default: built-in sentences]",
)
@click.option(
    "--for",
    "processor",
    type=click.Choice(["x86_64", "aarch64"]),
    help="The kind of processor that a target for a CPU is for. [default: this machine's]",
)
@click.option("--list", "list_targets", is_flag=True, help="Print the available targets.")
@click.option("--force", is_flag=True, help="Build again even if the engine is up to date.")
@output_options
def command(
    bundle: str | None,
    target: str | None,
    prepare: str | None,
    max_batch: int | None,
    max_beams: int | None,
    max_source_length: int | None,
    samples: str | None,
    processor: str | None,
    list_targets: bool,
    force: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Build the engine of BUNDLE for a target and store it inside the bundle.

    A target is a kind of machine and a precision; `s2s build --list` names them. cpu-fp32 is faster than the portable
    graphs with the same results, cpu-int8 is faster and smaller and changes some of them: --samples measures how many
    on your own sentences, and `s2s evaluate` what that does to quality.

    \b
    s2s build bundle --target cpu-fp32
    s2s build bundle --target cpu-int8 --samples my-sentences.txt
    """
    from .. import recipes
    from ..building import build as building
    from ..building.changes import Changes

    if list_targets:
        for name in recipes.names():
            click.echo(f"{name:<20} {recipes.load(name).description}")
        return
    if not bundle or not (target or prepare) or (target and prepare):
        raise UsageError(
            "found no bundle, or not exactly one of --target and --prepare; expected: "
            "s2s build BUNDLE --target NAME (see --list)"
        )
    changes = Changes(max_batch, max_beams, max_source_length, samples, processor)
    if prepare:
        with Progress(quiet=quiet) as progress:
            ready = building.prepare(bundle, prepare, changes=changes, progress=progress.stage)
        if as_json:
            print_json({"prepared": str(ready.folder), **ready.record})
            return
        for line in ready.record["summary"]:
            tell(line, quiet)
        click.echo(f"{ready.folder}  (copy the bundle, then: s2s build BUNDLE --target {ready.folder.name})")
        return
    assert target is not None
    with Progress(quiet=quiet) as progress:
        report = building.build(bundle, target, force=force, changes=changes, progress=progress.stage)
    if as_json:
        print_json({"engine": str(report.path), "was_cached": report.was_cached, **report.engine})
        return
    for line in report.engine.get("summary", []):
        tell(line, quiet)
    how = "already built" if report.was_cached else f"built in {report.engine['seconds']:.1f} s"
    click.echo(f"{report.path}  ({report.engine['bytes'] / 2**20:.1f} MiB, {how})")
