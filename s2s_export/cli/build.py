"""`s2s build`: flags and printing."""

from __future__ import annotations

import click

from ..errors import UsageError
from ._common import output_options, print_json, tell


@click.command("build", short_help="Build a bundle's engine for a target.")
@click.argument("bundle", type=click.Path(), required=False)
@click.option("--target", help="The name of a target, or the path of your own recipe.")
@click.option("--list", "list_targets", is_flag=True, help="Print the available targets.")
@click.option("--force", is_flag=True, help="Build again even if the engine is up to date.")
@output_options
def command(
    bundle: str | None, target: str | None, list_targets: bool, force: bool, quiet: bool, as_json: bool
) -> None:
    """Build the engine of BUNDLE for a target and store it inside the bundle."""
    from .. import recipes
    from ..building.build import build

    if list_targets:
        for name in recipes.names():
            click.echo(f"{name:<20} {recipes.load(name).description}")
        return
    if not bundle or not target:
        raise UsageError("found no bundle or no --target; expected both: s2s build BUNDLE --target NAME (see --list)")
    report = build(bundle, target, force=force, progress=lambda stage: tell(f"{stage} ...", quiet))
    if as_json:
        print_json({"engine": str(report.path), "was_cached": report.was_cached, **report.engine})
        return
    for line in report.engine.get("summary", []):
        tell(line, quiet)
    how = "already built" if report.was_cached else f"built in {report.engine['seconds']:.1f} s"
    click.echo(f"{report.path}  ({report.engine['bytes'] / 2**20:.1f} MiB, {how})")
