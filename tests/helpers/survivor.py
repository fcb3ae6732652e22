"""Runs numbered cases in child processes that may crash, hang or be killed, and counts what became of each.

A child is a script that calls `serve`. It writes the number of a case before it begins and the outcome after, so that
its parent knows which case ended it, and starts another child behind that case. A case may use SECONDS of a core: then
the system ends the child.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from s2s_export.errors import S2SError, explain

SECONDS = 20.0  # of a core, for a case that takes milliseconds
WAIT = 300.0  # by the clock, for one that sleeps
ADDRESS_SPACE = 8 << 30  # a child that asks for more gets an error in place of the machine's memory
SERVED, REFUSED = "served", "refused"
ALLOWED = (SERVED, REFUSED)


def serve(case: Callable[[int], None], first: int, last: int, report: str, *, limit_memory: bool = True) -> None:
    """In a child: run cases first..last-1. A case returns, or raises S2SError; whatever else happens is a fault.

    What a case writes to stderr is a fault too: a user would read it beside our sentence.
    """
    if limit_memory:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    noise = os.open(f"{report}.stderr", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    kept = os.dup(2)
    os.dup2(noise, 2)
    with open(report, "a", encoding="utf-8") as told:
        for number in range(first, last):
            print(f"{number} begun", file=told, flush=True)
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            signal.setitimer(signal.ITIMER_REAL, WAIT)
            outcome = _outcome(case, number)
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.setitimer(signal.ITIMER_PROF, 0)
            if outcome in ALLOWED and os.fstat(noise).st_size:
                outcome = f"written to stderr: {_oneline(os.pread(noise, 400, 0).decode(errors='replace'))}"
            os.ftruncate(noise, 0)
            os.lseek(noise, 0, os.SEEK_SET)
            print(f"{number} {outcome}", file=told, flush=True)
    os.dup2(kept, 2)


def _outcome(case: Callable[[int], None], number: int) -> str:
    try:
        case(number)
    except S2SError as error:
        return REFUSED if is_sentence(error) else f"a message that is no sentence: {str(error)[:300]!a}"
    except BaseException as error:
        place = error.__traceback__
        where = ""
        while place is not None:
            file = place.tb_frame.f_code.co_filename
            where = f"{Path(file).name}:{place.tb_lineno}" if "s2s_export" in file else where
            place = place.tb_next
        return f"foreign: {type(error).__name__} at {where}: {_oneline(str(error))}"
    return SERVED


def is_sentence(error: S2SError) -> bool:
    """Printable, on one line, and of a length that nobody has to cut."""
    message = explain(error)
    return bool(message) and message.isprintable() and message == " ".join(str(error).split())


def _oneline(text: str) -> str:
    return " ".join(text.encode("utf-8", "backslashreplace").decode().split())[:300]


def run(
    script: Path, arguments: Sequence[object], first: int, last: int, report: Path, **environment: str
) -> Counter[str]:
    """In the parent: run cases first..last-1 through `script ARGUMENTS FIRST LAST REPORT`. Returns outcomes by kind.

    Every case that is no served or refused one is in `report`, with its number.
    """
    report.unlink(missing_ok=True)
    while first < last:
        command = [sys.executable, script, *map(str, arguments), str(first), str(last), str(report)]
        done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
        lines = report.read_text(encoding="utf-8").splitlines() if report.exists() else []
        if not lines or int(lines[-1].split()[0]) < first:
            raise RuntimeError(f"the child ended before its first case: {done.stderr[-2000:]}")
        reached = int(lines[-1].split()[0])
        if lines[-1].endswith("begun"):
            with report.open("a", encoding="utf-8") as told:
                print(f"{reached} {_end(done.returncode, done.stderr, Path(f'{report}.stderr'))}", file=told)
        elif reached < last - 1:
            raise RuntimeError(f"the child ended after case {reached}: {done.stderr[-2000:]}")
        first = reached + 1
    outcomes = (line.split(" ", 1)[1] for line in report.read_text(encoding="utf-8").splitlines())
    return Counter(kind(outcome) for outcome in outcomes if outcome != "begun")


def kind(outcome: str) -> str:
    """Outcomes that differ only in numbers and names are one kind."""
    return outcome if outcome in ALLOWED else re.sub(r"\d+", "N", outcome)[:160]


def _end(status: int, stderr: str, noise: Path) -> str:
    if status in (-signal.SIGPROF, -signal.SIGALRM):
        return "a hang"
    name = signal.Signals(-status).name if status < 0 else f"exit status {status}"
    said = noise.read_text(errors="replace") if noise.exists() else ""
    return f"a crash: {name} {_oneline((said + stderr)[-600:])}"


def faults(report: Path) -> list[str]:
    """The lines of a report that no case should have, for a failure's message."""
    lines = report.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.split(" ", 1)[1] not in (*ALLOWED, "begun")]
