"""sha256 of files, computed in parallel, and remembered until a file is touched.

Hashing a file of 300 MB takes 0.31 to 0.50 s of one core (a Xeon with SHA instructions, Python 3.11). So what was found
for a file of 1 MiB or more is kept in the user's cache folder ($XDG_CACHE_HOME/s2s_export/hashes, or
~/.cache/s2s_export/hashes) under its path, with its size, inode and times of change: asking again took 0.4 ms there.
Any write to a file changes its times. Damage that happens without a write (a disk that returns other bytes than were
written) is found only after that folder has been cleared.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from . import replacing

CHUNK = 1 << 20  # bytes read at a time
WORTH_REMEMBERING = 1 << 20  # bytes
SETTLED = 2.0  # seconds since the last change; a file system's clock may give two writes within them the same time
MOST_THREADS = 8  # more threads would only wait for the disk


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(CHUNK))
    with path.open("rb", buffering=0) as file:
        while n := file.readinto(buffer):
            digest.update(buffer[:n])
    return digest.hexdigest()


def sha256_of(paths: Sequence[Path]) -> list[str]:
    """The sha256 of each file, computed by several threads (hashing releases Python's lock). OSError names the file."""
    if len(paths) < 2:
        return [remembered_sha256(path) for path in paths]
    largest_first = sorted(range(len(paths)), key=lambda i: -_size(paths[i]))
    with ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1, len(paths)), "s2s-hash") as pool:
        found = dict(zip(largest_first, pool.map(remembered_sha256, [paths[i] for i in largest_first]), strict=True))
    return [found[i] for i in range(len(paths))]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def remembered_sha256(path: Path) -> str:
    """The sha256 of a file; the one found earlier if the file has not been touched since."""
    state = path.stat()
    if state.st_size < WORTH_REMEMBERING:
        return sha256(path)
    file = _cache_file(path)
    if file is None:
        return sha256(path)
    known = _describe(state)
    with suppress(OSError, ValueError):
        before, _, digest = file.read_text(encoding="ascii").strip().rpartition(" ")
        if before == known and len(digest) == 64:
            return digest
    digest = sha256(path)
    last = max(state.st_mtime, state.st_ctime)
    if _describe(path.stat()) == known and time.time() - last > SETTLED:
        with suppress(OSError):  # without the cache the next call is only slower
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            replacing.write_text(file, f"{known} {digest}\n")
    return digest


def _describe(state: os.stat_result) -> str:
    return f"{state.st_size} {state.st_mtime_ns} {state.st_ctime_ns} {state.st_dev} {state.st_ino}"


def _cache_file(path: Path) -> Path | None:
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        folder = Path(base) if base and os.path.isabs(base) else Path.home() / ".cache"
    except RuntimeError:  # the user has no home folder
        return None
    name = hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()[:32]
    return folder / "s2s_export" / "hashes" / name
