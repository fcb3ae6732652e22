"""Help in sections: of the commands in `s2s --help`, and of the options in the help of each command.

A command names its section where it is declared, `@click.command("export", cls=Command, section=MAKE)`, and an option
likewise, `option("--threads", section=ENGINE, ...)`. Nothing lists them elsewhere.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import click

# Of commands, in the order in which a newcomer meets them.
MAKE, USE, JUDGE, LOOK = "From a model to a bundle", "Use a bundle", "Compare and measure", "See what there is"
OTHER = "Other commands"
SECTIONS = (MAKE, USE, JUDGE, LOOK, OTHER)
# Of options, in this order; those of the command itself come first.
OPTIONS, ENGINE = "Options", "What runs it"
GENERATION = "Decoding, by Hugging Face's names (left out: what the checkpoint says)"
MORE = "Decoding beyond generate() (docs/options.md)"
REPORTING = "Reporting"
ORDER = (OPTIONS, GENERATION, MORE, ENGINE, REPORTING)


class Option(click.Option):
    """An option with the section of the help that it stands in."""

    def __init__(self, *arguments: Any, section: str = OPTIONS, **given: Any) -> None:
        super().__init__(*arguments, **given)
        self.section = section


option = partial(click.option, cls=Option)


class Command(click.Command):
    """A command with its section, whose options are shown in theirs."""

    def __init__(self, *arguments: Any, section: str = OTHER, **given: Any) -> None:
        super().__init__(*arguments, **given)
        self.section = section

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows: dict[str, list[tuple[str, str]]] = {title: [] for title in ORDER}
        for param in self.get_params(ctx):
            if (record := param.get_help_record(ctx)) is not None:
                is_help = isinstance(param, click.Option) and "--help" in param.opts
                rows[REPORTING if is_help else getattr(param, "section", OPTIONS)].append(record)
        for title, records in rows.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


def write_commands(commands: list[tuple[str, click.Command]], formatter: click.HelpFormatter) -> None:
    """The commands of `s2s --help`, in their sections."""
    room = formatter.width - 6 - max(len(name) for name, _ in commands)
    for title in SECTIONS:
        rows = [
            (name, command.get_short_help_str(room))
            for name, command in commands
            if getattr(command, "section", OTHER) == title
        ]
        if rows:
            with formatter.section(title):
                formatter.write_dl(rows)
