#!/usr/bin/env python3
"""Requests a second and latencies of the server under load: joined, in whole batches, one at a time, and CTranslate2
behind the same HTTP code and the same batcher. On loopback only.

    benchmarks/serve_load.py prepare FOLDER                    makes the models, once (minutes)
    benchmarks/serve_load.py run FOLDER [--json FILE]          closed loops, open loops, an overload of ten times
    benchmarks/serve_load.py attack FOLDER [--requests N]      malformed requests, disconnects, slow clients, and with
                                                               --kill SECONDS engine processes that are killed

The models have random weights and copy their source, so every answer is checked. Each server is a process of its own
with one decoding thread for each worker; the clients share the machine with it. Rates of the open loops are shares of
what whole batches reach with 32 clients. "CPU ms" is what the server's process took for each answer, which tells more
than the rest on a machine that others use.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from load.attack import attack  # noqa: E402 (after its folder is on the path)
from load.client import Tally, Work, closed_loop, open_loop  # noqa: E402
from load.models import MOST_NEW_TOKENS, SIZES, TARGET, Served, prepare  # noqa: E402
from load.server import BATCH_SIZE, CONTESTANTS, Running, running  # noqa: E402

CLIENTS = (1, 8, 32, 128)
FULL = 32  # clients that keep a server busy
PATIENCE = 10.0  # seconds that a request may be expected to wait under attack
PARTS = 5  # of an attack, after each of which the server's memory is noted
WAIT = 0.5  # of the median that FULL clients see: what a request may be expected to wait in the overload
Figures = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, does in (("prepare", make), ("run", measure), ("attack", under_attack)):
        command = commands.add_parser(name)
        command.set_defaults(does=does)
        command.add_argument("folder", type=Path)
        command.add_argument("--models", default=",".join(SIZES), help=f"some of {', '.join(SIZES)}")
        command.add_argument("--workers", type=int, default=2)
        command.add_argument("--beams", type=int, default=4)
        command.add_argument("--json", type=Path, help="also writes the figures there")
        if name == "run":
            command.add_argument("--contestants", default=",".join(CONTESTANTS))
            command.add_argument("--clients", default=",".join(map(str, CLIENTS)))
            command.add_argument("--threads", type=int, default=1, help="of our engines, for each worker")
            command.add_argument("--batch-size", type=int, default=BATCH_SIZE)
            command.add_argument("--seconds", type=float, default=5.0, help="of each closed loop")
            command.add_argument("--open-seconds", type=float, default=10.0, help="of each open loop")
            command.add_argument("--shares", default="0.5,0.8", help="rates of the open loops")
            command.add_argument("--max-wait", type=float, help="seconds that may be waited in the overload")
            command.add_argument("--overload", type=float, default=10.0, help="times the full rate; 0 leaves it out")
        if name == "attack":
            command.add_argument("--requests", type=int, default=100_000)
            command.add_argument("--parallel", type=int, default=64)
            kill = "decode in a process for each worker, of which one is killed every so many seconds"
            command.add_argument("--kill", type=float, default=0.0, help=kill)
    arguments = parser.parse_args()
    record = arguments.does(arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


def make(arguments: argparse.Namespace) -> Figures:
    for name in arguments.models.split(","):
        begin = time.monotonic()
        prepare(arguments.folder, name)
        print(f"{name}: ready after {time.monotonic() - begin:.0f} s", flush=True)
    return {}


def measure(arguments: argparse.Namespace) -> Figures:
    begin = time.monotonic()
    found = {name: of_model(arguments, name) for name in arguments.models.split(",")}
    print(
        f"\n{time.monotonic() - begin:.0f} s in all; {arguments.workers} workers, {arguments.beams} beams, {TARGET}, "
        f"batches of {arguments.batch_size}, {arguments.threads} threads a worker"
    )
    return found


def work_of(arguments: argparse.Namespace, name: str) -> Work:
    return Work(Served(name, arguments.folder / name).sources(), arguments.beams, MOST_NEW_TOKENS)


def of_model(arguments: argparse.Namespace, name: str) -> Figures:
    """All tables of a model."""
    work, contestants = work_of(arguments, name), arguments.contestants.split(",")
    head(f"{name}: closed loops", "clients")
    closed: dict[str, list[Figures]] = {}
    for contestant in contestants:
        closed[contestant] = with_server(
            arguments, contestant, name, partial(closed_loops, arguments, work=work, contestant=contestant)
        )
    reference = closed.get("whole") or closed[contestants[0]]
    full = next((figures for figures in reference if figures["clients"] == FULL), reference[-1])["rate"]
    if not full:
        raise SystemExit("nothing was answered in the measured seconds; give --seconds more")
    rates = [float(share) * full for share in arguments.shares.split(",")]
    head(f"{name}: open loops, {arguments.shares} of {full:.1f} requests a second", "rate")
    opened: dict[str, list[Figures]] = {}
    for contestant in contestants:
        if contestant != "alone":
            opened[contestant] = with_server(
                arguments, contestant, name,
                partial(open_loops, arguments, work=work, contestant=contestant, rates=rates),
            )  # fmt: skip
    over: Figures = {}
    if arguments.overload:
        first = contestants[0]
        best = max(figures["rate"] for figures in closed[first])
        busy = next((figures for figures in closed[first] if figures["clients"] == FULL), closed[first][-1])
        wait = arguments.max_wait or WAIT * busy["p50"]
        head(f"{name}: overload, requests are expected to wait {wait:.2f} s at most", "rate")
        over = with_server(arguments, first, name, lambda server: overload(arguments, server, work, best), wait)
        over["max_wait"] = wait
    return {"closed": closed, "open": opened, "overload": over}


def closed_loops(arguments: argparse.Namespace, server: Running, work: Work, contestant: str) -> list[Figures]:
    closed_loop(server.port, work, FULL, 1.0)  # warms up
    found = []
    for n in map(int, arguments.clients.split(",")):
        figures = line(
            CONTESTANTS[contestant], f"{n}", server, partial(closed_loop, server.port, work, n, arguments.seconds)
        )
        found.append({"clients": n, **figures})
    return found


def open_loops(
    arguments: argparse.Namespace, server: Running, work: Work, contestant: str, rates: list[float]
) -> list[Figures]:
    closed_loop(server.port, work, FULL, 1.0)
    found = []
    for rate in rates:
        figures = line(
            CONTESTANTS[contestant], f"{rate:.1f}", server,
            partial(open_loop, server.port, work, rate, arguments.open_seconds),
        )  # fmt: skip
        found.append({"offered": rate, **figures})
    return found


def overload(arguments: argparse.Namespace, server: Running, work: Work, full: float) -> Figures:
    """Full load and many times as much. full: requests a second."""
    closed_loop(server.port, work, FULL, 1.0)
    found: dict[str, Figures] = {}
    for times in (1.0, arguments.overload):
        found[f"{times:g}"] = line(
            f"at {times:g} times the full rate", f"{times * full:.1f}", server,
            partial(open_loop, server.port, work, times * full, arguments.open_seconds),
        )  # fmt: skip
    least, most = found["1"], found[f"{arguments.overload:g}"]
    print(
        f"  refused: half of them within {1e3 * most['refused_p50']:.1f} ms, 99 % within "
        f"{1e3 * most['refused_p99']:.1f} ms; p99 of what is accepted: {most['p99'] / least['p99']:.2f} times that at "
        "the full rate",
        flush=True,
    )
    return found


def with_server(
    arguments: argparse.Namespace, contestant: str, name: str, load: Callable[[Running], Any], max_wait: float = 0.0
) -> Any:
    sizes = {"threads": arguments.threads, "batch_size": arguments.batch_size}
    with running(contestant, arguments.folder, name, arguments.workers, max_wait, **sizes) as server:
        return load(server)


def head(title: str, what: str) -> None:
    columns = (what, "req/s", "p50 ms", "p99 ms", "CPU ms", "refused", "wrong", "failed")
    print(f"\n{title}\n{'':<38}" + "".join(f"{column:>9}" for column in columns), flush=True)


def line(label: str, what: str, server: Running, loop: Callable[[], Tally]) -> Figures:
    """Measure a loop and print a line of a table; returns its figures."""
    before = server.cpu_seconds()
    tally = loop()
    n_answers = len(tally.latencies) or 1
    cpu = (server.cpu_seconds() - before) / (tally.n_right or 1)
    p50, p99 = tally.percentile(0.5), tally.percentile(0.99)
    n_failed = tally.n_failed + tally.n_unsent
    cells = (f"{tally.rate:.1f}", f"{1e3 * p50:.0f}", f"{1e3 * p99:.0f}", f"{1e3 * cpu:.1f}", len(tally.refused),
             tally.n_wrong, n_failed)  # fmt: skip
    print(f"{label:<38}{what:>9}" + "".join(f"{cell:>9}" for cell in cells), flush=True)
    return {
        "rate": tally.rate, "p50": p50, "p99": p99, "cpu_seconds": cpu, "measured": n_answers,
        "refused": len(tally.refused), "refused_p50": tally.percentile(0.5, tally.refused),
        "refused_p99": tally.percentile(0.99, tally.refused), "offered": tally.n_offered, "wrong": tally.n_wrong,
        "failed": tally.n_failed, "unsent": tally.n_unsent,
    }  # fmt: skip


class Killer(threading.Thread):
    """Kills an engine process of a server, each in turn, every so many seconds. n: how often."""

    def __init__(self, server: Running, seconds: float) -> None:
        super().__init__(daemon=True)
        self.n = 0
        self._server = server
        self._seconds = seconds
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.wait(self._seconds):
            for pid in self._server.children()[self.n % 2 :][:1]:
                os.kill(pid, signal.SIGKILL)
                self.n += 1

    def stop(self) -> None:
        """And give the last one time to come back."""
        if not self._ended.is_set() and self._seconds:
            self._ended.set()
            time.sleep(3.0)


@contextlib.contextmanager
def killing(server: Running, seconds: float) -> Iterator[Killer]:
    found = Killer(server, seconds)
    if seconds:
        found.start()
    try:
        yield found
    finally:
        found.stop()


def under_attack(arguments: argparse.Namespace) -> Figures:
    return {name: attacked(arguments, name) for name in arguments.models.split(",")}


def attacked(arguments: argparse.Namespace, name: str) -> Figures:
    work = work_of(arguments, name)
    with (
        running("joined", arguments.folder, name, arguments.workers, PATIENCE, int(arguments.kill > 0)) as server,
        killing(server, arguments.kill) as killed,
    ):
        attack(server.port, work, 500, arguments.parallel, name, seed=9)  # warms up
        before = server.resident_bytes(), server.n_files()
        begin = time.monotonic()
        parts, growth = [], []
        for part in range(PARTS):
            n = arguments.requests // PARTS + (part < arguments.requests % PARTS)
            parts.append(attack(server.port, work, n, arguments.parallel, name, seed=part))
            growth.append(server.resident_bytes())
        result = sum(parts[1:], parts[0])
        killed.stop()
        seconds = time.monotonic() - begin
        last = closed_loop(server.port, work, 4, 1.0)
        after = server.resident_bytes(), server.n_files()
        n_tracebacks = server.log.read_text().count("Traceback")
    tally, counts = result.tally, ", ".join(f"{n} {kind}" for kind, n in result.counts.items())
    print(f"{name}: {arguments.requests} requests in {seconds:.0f} s: {counts}")
    print(
        f"  {len(tally.latencies)} right answers, {len(tally.refused)} refused, {tally.n_wrong} wrong, "
        f"{tally.n_failed} failed; {len(result.faults)} faults; {n_tracebacks} tracebacks in the server's log"
    )
    print(
        f"  memory {before[0] / 2**20:.0f} MiB, after each of {PARTS} parts "
        f"{', '.join(f'{size / 2**20:.0f}' for size in growth)}; open files {before[1]} -> {after[1]}; "
        f"afterwards {last.rate:.0f} requests a second, {last.n_wrong} wrong, {last.n_failed} failed"
    )
    if arguments.kill:
        print(f"  {killed.n} engine processes were killed")
    fewest = min(result.routes, key=lambda route: result.routes[route])
    print(f"  malformed requests to {len(result.routes)} routes, at least {result.routes[fewest]} to each")
    for fault in result.faults[:10]:
        print(f"  {fault}")
    return {
        "requests": arguments.requests, "seconds": seconds, "counts": result.counts, "routes": result.routes,
        "faults": result.faults[:100], "killed": killed.n,
        "wrong": tally.n_wrong, "failed": tally.n_failed, "tracebacks": n_tracebacks,
        "resident": [before[0], *growth, after[0]], "files": [before[1], after[1]],
    }  # fmt: skip


if __name__ == "__main__":
    main()
