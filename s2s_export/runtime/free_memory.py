"""How much memory this process may still take, as the system, a container or `ulimit -v` limits it."""

from __future__ import annotations

import os
from pathlib import Path

MEMINFO = Path("/proc/meminfo")
CGROUP = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current"))


def available() -> int | None:
    """Bytes that this process may still allocate, or None if the system does not say."""
    found = [limit for limit in (_of_system(), _of_cgroup(), left_of_process()) if limit is not None]
    return min(found, default=None)


def _of_system() -> int | None:
    try:
        lines = MEMINFO.read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError, IndexError):
        return None


def _of_cgroup() -> int | None:
    try:
        limit, used = (int(path.read_text()) for path in CGROUP)
    except (OSError, ValueError):  # "max": no limit
        return None
    return max(0, limit - used)


def left_of_process() -> int | None:
    """Bytes that are left of the address space if `ulimit -v` limits it, else None."""
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit == resource.RLIM_INFINITY:
            return None
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (ImportError, OSError, ValueError):
        return None
    return max(0, limit - pages * os.sysconf("SC_PAGE_SIZE"))
