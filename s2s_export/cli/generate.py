"""`s2s generate`: flags and printing."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import click

from ._common import (
    Rate,
    bar,
    output_options,
    print_json,
    search_option,
    session_options,
    shortlist_option,
    tell_choice,
    worker_option,
)


@click.command("generate", short_help="Batch work as JSON lines: ids or text, any option.")
@click.argument("bundle", type=click.Path())
@click.option("--input", "input_path", required=True, type=click.File("rb"), help="Cases, one JSON object a line.")
@click.option("--output", "output_path", required=True, type=click.Path(allow_dash=True), help="Where results go.")
@session_options
@worker_option
@search_option
@shortlist_option
@click.option("--truncate", is_flag=True, help="Cut sources that are longer than the model allows.")
@output_options
def command(
    bundle: str,
    input_path: Any,
    output_path: str,
    backend: str,
    target: str | None,
    threads: int | None,
    batch_size: int | None,
    workers: int | None,
    search: str,
    shortlist: bool,
    truncate: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Decode every line of a JSON-lines file with BUNDLE.

    A line holds an id, a "text" or "input_ids", and any generation option by its Hugging Face name. A line that fails
    gives {"id": ..., "error": ...}; the others still come out and the exit status is 1.
    """
    from ..runtime.cases import decode_cases, read_case
    from ..runtime.scheduling import DEFAULT_BATCH_SIZE
    from ..runtime.session import load

    session = load(bundle, backend, target, threads, workers=workers, shortlist=shortlist, search=search)
    tell_choice(session, backend, quiet)
    lines = input_path.read().split(b"\n")
    if lines and not lines[-1].strip():
        lines.pop()
    cases = [read_case(session, line, number, truncate=truncate) for number, line in enumerate(lines, 1)]
    rate = Rate("decoding")
    with bar(len(cases), "decoding", quiet) as advance:
        results = decode_cases(
            session,
            cases,
            batch_size=batch_size or DEFAULT_BATCH_SIZE,
            progress=lambda n, tokens: advance(n, rate.add(n, tokens)),
        )
    write_lines(output_path, (json.dumps(result, ensure_ascii=False) for result in results))
    failed = sum("error" in result for result in results)
    if as_json:
        print_json({"lines": len(results), "failed": failed, "backend": session.backend.name})
    if failed:
        first = next(result for result in results if "error" in result)
        click.echo(
            f"s2s: {failed} of {len(results)} lines failed, the first: id {first['id']}: {first['error']}", err=True
        )
        raise click.exceptions.Exit(1)


def write_lines(path: str, lines) -> None:  # type: ignore[no-untyped-def]
    """All lines or nothing: through a temporary sibling, unless `path` is '-' or no regular file."""
    target = Path(path)
    if path == "-" or (target.exists() and not target.is_file()):
        with click.open_file(path, "w", encoding="utf-8") as file:
            file.writelines(line + "\n" for line in lines)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.writelines(line + "\n" for line in lines)
        mode = target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~_umask()
        os.chmod(temporary, mode)
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
