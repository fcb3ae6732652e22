"""Writes files and folders so that they appear whole or not at all: bundles, engines, checkpoints, reports.

A new one is written beside its destination under a hidden name, `.NAME.RANDOM.s2s-new`, flushed to the disk, and moved.
Where the system can exchange two names (renameat2 of Linux), a process killed at any moment leaves the old or the new
one in place. Elsewhere the old folder is moved aside first, as `.NAME.s2s-previous`; if the process dies between the
two moves, the next process that reads or writes there calls `put_back`.

A hidden file or folder is locked (flock) as long as its writer lives. So the next run can tell what a killed run left
behind, which it removes, from what another process is still writing.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import secrets
import shutil
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # not a POSIX system: nothing is locked, and leftovers of other runs are not removed
    fcntl = None  # type: ignore[assignment]

NEW = ".s2s-new"
PATIENCE = 2.0  # seconds to wait for another run's lock, which it holds for milliseconds
PREVIOUS = ".s2s-previous"
_RANDOM = r"[a-z0-9_]{8}"  # what stands in a hidden name, by this version and those before it
_AT_FDCWD = -100
_NOREPLACE, _EXCHANGE = 1, 2  # flags of renameat2
_UNABLE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM)  # the system or its file system lacks renameat2


class Appeared(FileExistsError):
    """A file or folder appeared at a destination that was free, and it may not be replaced."""

    def __init__(self) -> None:
        super().__init__("exists already: it appeared in the meantime, and is untouched")


@contextmanager
def folder(path: str | os.PathLike[str], *, replace: bool) -> Iterator[Path]:
    """A hidden folder that becomes `path` when the block ends well, and vanishes when it does not.

    path: if it is a symbolic link, the folder that it points to is written. replace: whether an existing folder, or one
    that appears in the meantime, is replaced; if not, raises Appeared. Raises OSError that names `path`.
    """
    final = resolved(path)
    work, lock = _hidden(final), None
    _ours.add(str(work))
    try:  # its name is known before it is made: Ctrl-C may come at any moment
        with naming(final):
            final.parent.mkdir(parents=True, exist_ok=True)
            with _locked(final.parent):
                _put_back(final)
                _remove_leftovers(final)
                if os.path.ismount(final):
                    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
                work.mkdir(mode=0o700)
                lock = _lock(work)
        work.chmod(_mode(final, 0o777))
        yield work
        with naming(final):
            _flush(work)
            with _locked(final.parent):
                _move(work, final, replace)
    finally:
        _ours.discard(str(work))
        shutil.rmtree(work, ignore_errors=True)  # what was replaced, or what was not finished
        if lock is not None:
            os.close(lock)


@contextmanager
def file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A hidden file that becomes `path` when the block ends well, with the mode of the one that was there.

    A path that is not a regular file (a pipe, /dev/stdout) is written directly. Raises OSError that names `path`.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        with naming(Path(path)):
            yield Path(path)
        return
    final = resolved(path)
    work, lock = _hidden(final), None
    with naming(final):
        try:
            with _locked(final.parent):
                _remove_leftovers(final)
                lock = os.open(work, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
                _try_lock(lock)
            yield work
            work.chmod(_mode(final, 0o666))
            os.fsync(lock)
            work.replace(final)
        finally:
            if lock is not None:
                os.close(lock)
            with suppress(OSError):
                work.unlink()


def _hidden(final: Path) -> Path:
    """A new hidden name beside a path, by which `_remove_leftovers` knows what a killed run left."""
    return final.parent / f".{final.name}.{secrets.token_hex(4)}{NEW}"


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text as UTF-8. If this fails, the older file stays."""
    with file(path) as work:
        work.write_text(text, encoding="utf-8")


def put_back(path: str | os.PathLike[str]) -> None:
    """Undo a replacement that was cut off between its two moves, or finish one that was cut off after them."""
    final = resolved(path)
    if _aside(final).exists():
        with naming(final), _locked(final.parent):
            _put_back(final)


def is_hidden(path: Path) -> bool:
    """Whether a name is hidden, as the names of unfinished files and folders are."""
    return path.name.startswith(".")


def resolved(path: str | os.PathLike[str]) -> Path:
    """The path that is written: a symbolic link at its end is followed, even if its target does not exist yet."""
    path = Path(path)
    return Path(os.path.realpath(path)) if path.is_symlink() or not path.name else path


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError in the block names `path`, not the hidden name that the user never gave."""
    try:
        yield
    except OSError as error:
        if error.errno is None or isinstance(error, Appeared):
            raise
        raise OSError(error.errno, _reason(error), str(path)) from error


def _reason(error: OSError) -> str:
    if error.errno == errno.EBUSY:
        return "is in use by the system (a mount point?), so that it can't be replaced; give a folder inside it"
    return error.strerror or str(error)


def _aside(final: Path) -> Path:
    return final.with_name(f".{final.name}{PREVIOUS}")


def _put_back(final: Path) -> None:
    aside = _aside(final)
    if not aside.exists():
        return
    if final.exists():
        shutil.rmtree(aside, ignore_errors=True)
    else:
        os.rename(aside, final)


def _move(work: Path, final: Path, replace: bool) -> None:
    if not os.path.lexists(final):
        try:
            _rename2(work, final, _NOREPLACE)
            return
        except FileExistsError:
            if not replace:
                raise Appeared from None
        except NotImplementedError:
            os.rename(work, final)  # never overwrites a folder that is not empty
            return
    if not replace:
        raise Appeared
    try:
        _rename2(work, final, _EXCHANGE)
    except NotImplementedError:
        _move_in_two(work, final)
    _flush_entry(final.parent)


def _move_in_two(work: Path, final: Path) -> None:
    aside = _aside(final)
    os.rename(final, aside)
    try:
        os.rename(work, final)
    except BaseException:
        os.rename(aside, final)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _rename2(a: Path, b: Path, flags: int) -> None:
    """renameat2. Raises OSError, or NotImplementedError where the system or the file system has no such call."""
    call = getattr(_C, "renameat2", None)
    if call is None:
        raise NotImplementedError
    sys.audit("s2s_export.rename", str(a), str(b), flags)
    if call(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), ctypes.c_uint(flags)) == 0:
        return
    number = ctypes.get_errno()
    if number in _UNABLE:
        raise NotImplementedError
    raise OSError(number, os.strerror(number), str(b))


def _c_library() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        return ctypes.CDLL(None, use_errno=True)
    except OSError:
        return None


_C = _c_library()
_ours: set[str] = set()  # hidden folders that this process is writing and has locked


def _remove_leftovers(final: Path) -> None:
    """Remove what killed runs left under hidden names for this path: nobody holds their locks."""
    pattern = re.compile(rf"\.{re.escape(final.name)}\.{_RANDOM}{re.escape(NEW)}")
    try:
        found = [path for path in final.parent.iterdir() if pattern.fullmatch(path.name)]
    except OSError:  # a folder that may be written to but not listed
        return
    for path in found:
        lock = _lock(path)
        if lock is None:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()
        os.close(lock)


def _lock(path: Path) -> int | None:
    """An open descriptor that holds the lock, or None where another process has it or there are no locks."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return None
    if _try_lock(descriptor):
        return descriptor
    os.close(descriptor)
    return None


def _try_lock(descriptor: int) -> bool:
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextmanager
def _locked(parent: Path) -> Iterator[None]:
    """Hold the lock of a folder, so that no other run changes hidden names in it. For blocks of a few milliseconds."""
    descriptor = None if str(parent) in _ours else _wait_for(parent)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _wait_for(parent: Path) -> int | None:
    """The lock of a folder; None if there are no locks here, or if another program keeps holding it."""
    end = time.monotonic() + PATIENCE
    while (descriptor := _lock(parent)) is None and fcntl is not None and time.monotonic() < end:
        if not os.access(parent, os.R_OK):
            return None
        time.sleep(0.01)
    return descriptor


def _flush(work: Path) -> None:
    """Flush a folder to the disk before it is moved; otherwise a power cut could leave it in place with empty files."""
    for path in work.rglob("*"):
        if path.is_file() and not path.is_symlink():
            _flush_entry(path)
    _flush_entry(work)


def _flush_entry(path: Path) -> None:
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _mode(final: Path, most: int) -> int:
    """The permissions of what is replaced, or the default ones of this process."""
    if final.exists():
        return stat.S_IMODE(final.stat().st_mode)
    return most & ~_umask()


def _umask() -> int:
    try:  # os.umask can only read by writing, and other threads may create files meanwhile
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1], 8) for line in lines if line.startswith("Umask:"))
    except (OSError, StopIteration, ValueError, IndexError):
        mask = os.umask(0o077)
        os.umask(mask)
        return mask
