"""The command `s2s`: one short file a command, found by listing this directory.

A file defines `command`, a click command. Its module is imported when it is called or listed, so that `s2s --help`
needs nothing that an extra installs.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
import traceback

import click

from ..errors import S2SError
from ..version import __version__

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
    """Export trained sequence-to-sequence models, build engines for them, and decode with them."""


def main(arguments: list[str] | None = None) -> None:
    """Entry point: results to stdout, one sentence to stderr on failure, a traceback only with --debug."""
    arguments = sys.argv[1:] if arguments is None else arguments
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        status = s2s.main(args=arguments, prog_name="s2s", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Exit as error:
        status = error.exit_code
    except click.ClickException as error:
        error.show()
        status = EXIT_USAGE
    except S2SError as error:
        status = _report(str(error), error.exit_status, arguments)
    except (KeyboardInterrupt, click.Abort):
        status = _report("interrupted; nothing half-written was left behind", EXIT_FAILURE, [])
    except BrokenPipeError:
        # Whoever read our output has had enough. Nothing more may be written, also not at exit.
        sys.stdout = open("/dev/null", "w")  # noqa: SIM115
        status = EXIT_FAILURE
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        status = _report(f"{where}{error.strerror or error}", EXIT_FAILURE, arguments)
    except MemoryError:
        status = _report("out of memory; use a smaller --batch-size or --num-beams", EXIT_FAILURE, arguments)
    except Exception as error:
        message = f"unexpected {type(error).__name__}: {error}; run again with --debug and report it"
        status = _report(message, EXIT_FAILURE, arguments)
    sys.exit(status if isinstance(status, int) else 0)


def _report(message: str, status: int, arguments: list[str]) -> int:
    if "--debug" in arguments:
        traceback.print_exc()
    click.echo(f"s2s: {message}", err=True)
    return status
