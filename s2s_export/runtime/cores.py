"""How many cores this process may use, and how many threads one call should have."""

from __future__ import annotations

import math
import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN_GROUP = Path("/proc/self/cgroup")
MOST_UNASKED = 4  # a decode step has no more work than that
SMALL = 32 << 20  # bytes of a bundle up to which a second thread does not pay


def available_cores() -> int:
    """Cores that this process may use: by affinity, and by the quota of its container (`docker run --cpus`)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota()
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def threads_for(wanted: int | None, n_bytes: int = SMALL + 1) -> int:
    """Threads of one call: what is wanted, and never more than there are cores. n_bytes: the bundle's size.

    Where nothing is said, MOST_UNASKED, or one for a small model. More threads than cores only wait for each other, and
    threads that wait sleep, as spinning ones take cores from others. On a model of OPUS-MT's size two threads took 0.58
    to 0.92 times the wall time of one, idle and on a busy machine; on one of 5 MB up to 1.10 times:
    `benchmarks/threads.py`, docs/performance.md.
    """
    return min(wanted or (MOST_UNASKED if n_bytes > SMALL else 1), available_cores())


def _quota() -> float | None:
    """The least quota of this process's control group and those above it, in cores; None without one."""
    try:
        own = next(line[3:] for line in OWN_GROUP.read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return None
    group = CGROUPS / own.lstrip("/")
    found = [_of_group(folder) for folder in (group, *group.parents) if folder.is_relative_to(CGROUPS)]
    return min((quota for quota in found if quota is not None), default=None)


def _of_group(folder: Path) -> float | None:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # no such file, or "max": no limit
        return None
