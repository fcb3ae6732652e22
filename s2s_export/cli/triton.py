"""`s2s triton`: flags and printing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ._common import output_options, print_json, search_option, session_options, shortlist_option, tell
from ._help import USE, Command


@click.command("triton", cls=Command, section=USE, short_help="Write a model repository for Triton Inference Server.")
@click.argument("bundle", type=click.Path())
@click.argument("repository", type=click.Path(path_type=Path, file_okay=False))
@click.option("--name", help="The model's name. [default: the bundle folder's]")
@click.option("--max-queue-delay", type=click.IntRange(min=0), default=0, show_default=True,
              help="Microseconds that a request may wait for others.")  # fmt: skip
@click.option("--max-queue", type=click.IntRange(min=1), help="Requests that may wait. [default: any number]")
@click.option("--timeout", type=click.FloatRange(min=0), default=0, show_default=True,
              help="Seconds after which a request that waits is refused; 0 for never.")  # fmt: skip
@click.option("--instances", type=click.IntRange(min=1), default=1, show_default=True, help="Processes side by side.")
@click.option("--stream/--no-stream", default=True, show_default=True, help="A second model, NAME_stream.")
@click.option("--link", is_flag=True, help="Name the bundle's place instead of copying it.")
@click.option("--environment", help="Python environment for Triton: a folder, or an archive of one.")
@click.option("--force", is_flag=True, help="Replace models of these names.")
@session_options
@search_option
@shortlist_option
@output_options
def command(
    bundle: str,
    repository: Path,
    name: str | None,
    max_queue_delay: int,
    max_queue: int | None,
    timeout: float,
    instances: int,
    stream: bool,
    link: bool,
    environment: str | None,
    force: bool,
    backend: str,
    target: str | None,
    threads: int | None,
    batch_size: int | None,
    search: str,
    shortlist: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Write a model repository with BUNDLE into the folder REPOSITORY, for Triton's python backend.

    It holds a model that decodes requests in batches, and one that answers piece by piece. Triton's Python needs this
    package (`pip install s2s-export`, or --environment). docs/triton.md has a client's side.
    """
    from ..runtime.scheduling import DEFAULT_BATCH_SIZE
    from ..serving.triton import Batching, Plan, write_repository

    loading: dict[str, Any] = {"target": target, "threads": threads, "shortlist": shortlist or None}
    loading |= {"backend": None if backend == "auto" else backend, "search": None if search == "auto" else search}
    batching = Batching(batch_size or DEFAULT_BATCH_SIZE, max_queue_delay, max_queue or 0, timeout, instances)
    plan = Plan(
        name or Path(bundle).resolve().name,
        batching,
        stream,
        link,
        environment,
        {key: value for key, value in loading.items() if value is not None},
    )
    written = write_repository(bundle, repository, plan, force=force)
    if as_json:
        print_json({"repository": str(repository), "models": [folder.name for folder in written]})
    else:
        for folder in written:
            click.echo(folder)
    tell(f"run: tritonserver --model-repository={repository.resolve()}", quiet)
