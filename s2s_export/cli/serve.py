"""`s2s serve`: flags and printing."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import click

from ..errors import InvalidOption, MissingExtra
from ._common import output_options, search_option, session_options, shortlist_option, tell
from ._help import USE, Command


@click.command("serve", cls=Command, section=USE, short_help="Serve bundles over HTTP, with a page to try them on.")
@click.argument("bundles", nargs=-1, required=True, metavar="BUNDLE...")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at; 0.0.0.0 for all.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one.")
@click.option("--wyoming", type=click.IntRange(0, 65535), metavar="PORT",
              help="Also transcribe for voice assistants at this port, by the Wyoming protocol.")  # fmt: skip
@click.option("--api-key", "api_keys", multiple=True, envvar="S2S_API_KEYS", help="A key that clients must present.")
@click.option("--api-key-file", type=click.Path(dir_okay=False, exists=True), help="A file with a key in each line.")
@click.option("--tls-certificate", type=click.Path(), help="Certificate for HTTPS, in PEM.")
@click.option("--tls-key", type=click.Path(), help="Its key, in PEM.")
@click.option("--cors-origin", "cors_origins", multiple=True, help="A web site whose pages may ask; * for all.")
@click.option(
    "--workers", type=click.IntRange(min=1), help="Batches decoded side by side. [default: one for each core]"
)
@click.option("--workers-per-process", type=click.IntRange(min=1), default=8, show_default=True,
              help="With more workers, on CPUs, all decode in processes of their own.")  # fmt: skip
@click.option("--join/--no-join", default=None,
              help="Whether texts join batches that are being decoded, where the engine allows it. [default: join, but "
              "for bundles of at most 32 MB]")  # fmt: skip
@click.option("--max-queue-tokens", type=click.IntRange(min=1), default=65536, show_default=True,
              help="Source tokens that may wait.")  # fmt: skip
@click.option("--max-queue", type=click.IntRange(min=1), default=4096, show_default=True, help="Texts that may wait.")
@click.option("--max-wait", type=click.FloatRange(min=0, min_open=True),
              help="Seconds that a request may have to wait for others. [default: half of --timeout]")  # fmt: skip
@click.option("--max-body", type=int, default=2 << 20, show_default=True, help="Bytes of a request.")
@click.option("--max-audio", type=int, default=32 << 20, show_default=True, help="Bytes of a request with sound.")
@click.option("--max-texts", type=int, default=256, show_default=True, help="Texts of a request.")
@click.option("--max-characters", type=int, default=100_000, show_default=True, help="Characters of a request.")
@click.option("--max-beams", type=int, default=16, show_default=True, help="Beams, or samples, of a text.")
@click.option("--max-new-tokens", type=int, help="New tokens that a text may ask for.")
@click.option("--timeout", type=float, default=30.0, show_default=True, help="Seconds that a request may take.")
@click.option("--drain-delay", type=float, default=5.0, show_default=True,
              help="Seconds between SIGTERM and the end of listening.")  # fmt: skip
@click.option("--drain-timeout", type=float, default=30.0, show_default=True,
              help="Seconds for what is under way then.")  # fmt: skip
@session_options
@search_option
@shortlist_option
@output_options
def command(
    bundles: tuple[str, ...],
    host: str,
    port: int,
    wyoming: int | None,
    api_keys: tuple[str, ...],
    api_key_file: str | None,
    tls_certificate: str | None,
    tls_key: str | None,
    cors_origins: tuple[str, ...],
    workers: int | None,
    workers_per_process: int,
    join: bool | None,
    max_queue_tokens: int,
    max_queue: int,
    max_wait: float | None,
    backend: str,
    target: str | None,
    threads: int | None,
    batch_size: int | None,
    search: str,
    shortlist: bool,
    quiet: bool,
    as_json: bool,
    **limits: Any,
) -> None:
    """Serve each BUNDLE over HTTP: a folder, or NAME=FOLDER.

    A name that ends with a language pair, such as en-fr or opus-mt-en-de, says what the bundle translates where its
    tokenizer does not. Clients of LibreTranslate, DeepL, OpenAI, KServe or Triton, and Hugging Face can be pointed at
    it as they are (docs/serving.md), and the page at / tries the models. SIGTERM lets what is under way finish.
    With --json, each request is a line of JSON on stderr.
    """
    try:
        from ..serving import telemetry
        from ..serving.calls import State
        from ..serving.limits import Limits
        from ..serving.metrics import Metrics
        from ..serving.models import open_models
        from ..serving.server import Address, listen, log_to_stderr, make_server, notify_ready
        from ..serving.wyoming.server import WyomingServer
    except ModuleNotFoundError as error:
        raise MissingExtra(str(error.name).replace("_", "-"), "serve", "serving over HTTP") from error
    checked = Limits(**limits)
    address = Address(host, port, tls_certificate, tls_key)
    keys = [*api_keys]
    if not all(key.strip() for key in keys):
        raise InvalidOption("an --api-key is empty; expected a secret, or no --api-key where anybody may ask")
    if api_key_file:
        keys += [line.strip() for line in Path(api_key_file).read_text("utf-8").splitlines() if line.strip()]
        if not keys:
            raise InvalidOption(f"{api_key_file}: has no key; expected one in each line")
    log_to_stderr(as_json, quiet)
    if missing := telemetry.export_spans():
        tell(missing, quiet)
    metrics = Metrics()
    with contextlib.ExitStack() as sockets:
        listening = sockets.enter_context(listen(address))
        spoken = None if wyoming is None else sockets.enter_context(listen(Address(host, wyoming)))
        models = open_models(
            bundles, workers=workers, most_workers=workers_per_process, batch_size=batch_size, max_entries=max_queue,
            max_tokens=max_queue_tokens, max_wait=max_wait or checked.timeout / 2, join=join,
            on_batch=metrics.on_batch, progress=lambda text: tell(text, quiet), backend=backend, target=target,
            threads=threads or 1, search=search, shortlist=shortlist,
        )  # fmt: skip
        metrics.watch(models)
        state = State(models, checked, metrics, tuple(keys))
        beside = None if spoken is None else WyomingServer(state, spoken)
        where = f"{address.scheme}://{host}:{listening.getsockname()[1]}"

        def on_ready() -> None:
            tell(f"serving {', '.join(models.by_name)} at {where}", quiet)
            if beside is not None:
                tell(f"transcribing for the Wyoming protocol at tcp://{host}:{beside.port}", quiet)
            notify_ready()

        server = make_server(state, address, cors_origins=cors_origins, on_ready=on_ready, beside=beside)
        server.run(sockets=[listening])
