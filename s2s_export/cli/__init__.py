"""The command `s2s`. Each subcommand is one short file, found by listing this directory.

A file defines `command`, a click command. Its module is imported when the subcommand is called or listed, and imports
large packages only when it runs, so that `s2s --help` works without any extra.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
import traceback
from contextlib import suppress

import click

from ..errors import S2SError, explain, is_failure, printable
from ..version import __version__
from . import _streams as streams
from ._help import write_commands

EXIT_FAILURE = 1
EXIT_USAGE = 2


class Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(info.name for info in pkgutil.iter_modules(__path__) if not info.name.startswith("_"))

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in self.list_commands(ctx):
            return None
        command: click.Command = importlib.import_module(f"{__name__}.{name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        names = self.list_commands(ctx)
        found = [(name, command) for name in names if (command := self.get_command(ctx, name)) is not None]
        write_commands(found, formatter)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        from ..errors import UnknownOption

        if args and not args[0].startswith("-") and args[0] not in self.list_commands(ctx):
            raise UnknownOption(args[0], self.list_commands(ctx), "command")
        return super().resolve_command(ctx, args)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="s2s")
def s2s() -> None:
    """Export trained sequence-to-sequence models, build engines for them, and decode with them.

    \b
    s2s export CHECKPOINT bundle
    s2s translate bundle "A text."

    `s2s COMMAND --help` explains each command.
    """


def main(arguments: list[str] | None = None) -> None:
    """Entry point: results to stdout, one sentence to stderr on failure, a traceback only with --debug."""
    arguments = sys.argv[1:] if arguments is None else arguments
    streams.make_safe()
    try:
        status = s2s.main(args=arguments, prog_name="s2s", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Exit as error:
        status = error.exit_code
    except click.ClickException as error:
        error.message = printable(error.message)  # type: ignore[misc]
        error.show()
        status = EXIT_USAGE
    except S2SError as error:
        status = _report(explain(error), error.exit_status, arguments)
    except (KeyboardInterrupt, click.Abort) as error:
        status = _report(f"interrupted; {str(error) or 'no incomplete files were left behind'}", EXIT_FAILURE, [])
    except BrokenPipeError:  # the reader of our output closed its end
        status = EXIT_FAILURE
    except (OSError, MemoryError) as error:
        status = _report(explain(error), EXIT_FAILURE, arguments)
    except BaseException as error:
        if not is_failure(error):
            raise
        ours = not explain(error).startswith("unexpected")
        hint = "" if ours else "; run again with --debug and report it"
        status = _report(f"{explain(error)}{hint}", EXIT_FAILURE, arguments)
    status = status if isinstance(status, int) else 0
    sys.exit(status if streams.finish() else status or EXIT_FAILURE)


def _report(message: str, status: int, arguments: list[str]) -> int:
    with suppress(OSError, ValueError):  # stderr may be closed or full
        if "--debug" in arguments:
            traceback.print_exc()
        click.echo(f"s2s: {message}", err=True)
    return status
