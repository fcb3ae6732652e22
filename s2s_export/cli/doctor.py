"""`s2s doctor`: flags and printing."""

from __future__ import annotations

import click

from ._common import output_options, print_json


@click.command("doctor", short_help="What this machine has, and which backends work.")
@output_options
def command(quiet: bool, as_json: bool) -> None:
    """Print what this machine has, which backends work here, and why the others do not."""
    from ..machine import describe

    report = describe()
    if as_json:
        print_json(report)
        return
    for name, value in report["machine"].items():
        click.echo(f"{name:<10} {value}")
    click.echo("packages")
    for name, version in report["packages"].items():
        click.echo(f"  {name:<18} {version or 'not installed'}")
    click.echo("backends")
    for name, reason in report["backends"].items():
        click.echo(f"  {name:<18} {'works' if reason is None else reason}")
    click.echo(
        f"--backend auto takes the first of these that works and suits the bundle: {', '.join(report['preference'])}"
    )
