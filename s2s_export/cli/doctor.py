"""`s2s doctor`: flags and printing."""

from __future__ import annotations

import click

from ._common import output_options, print_json
from ._help import LOOK, Command


@click.command("doctor", cls=Command, section=LOOK, short_help="Show which backends work on this machine.")
@click.argument("bundle", type=click.Path(), required=False)
@output_options
def command(bundle: str | None, quiet: bool, as_json: bool) -> None:
    """Print what this machine has, which backends work here, and why the others do not.

    With BUNDLE, also how much GPU memory decoding with its engines takes, and with which of them a server's requests
    join batches that are being decoded.
    """
    from ..measuring import gpu_memory
    from ..measuring.machine import describe

    report = describe(bundle)
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
    click.echo("where the search runs")
    for name in report["backends"]:
        click.echo(f"  {name:<18} {report['searches'][name]}")
    reason = report["native_search"]
    click.echo(f"  {'on the host':<18} {'in C++' if reason is None else f'in numpy, as there is {reason}'}")
    click.echo(f"encoders on a GPU\n  {report['matrix_library']}")
    if "memory_on_gpu" in report:
        click.echo(f"memory on a GPU; this one: {report['gpu_memory']}")
        for name, text in gpu_memory.describe(report["memory_on_gpu"]):
            click.echo(f"  {name:<40} {text}")
    if "joined_batches" in report:
        click.echo("sources join batches that are being decoded (s2s serve)")
        for name, reason in report["joined_batches"].items():
            click.echo(f"  {name:<18} {'yes' if reason is None else f'no: {reason}'}")
    if report.get("weights"):
        click.echo("how the engines' weights are stored")
        for name, text in report["weights"].items():
            click.echo(f"  {name:<18} {text}")
