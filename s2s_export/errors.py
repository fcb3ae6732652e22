"""Every error that this package raises on purpose.

    S2SError                    anything below; the command line prints it as one sentence and exits 1
    ├── UsageError              the call itself is wrong; exits 2
    │   ├── UnknownOption       a name that no option has
    │   └── InvalidOption       a value or a combination that the options do not allow
    ├── CheckpointError         the folder given to `export` is missing, damaged or contradicts itself
    │   └── UnsupportedModel    no family for this model type, or a variant of it that the family can't express
    ├── BundleError             the folder given to `load` is missing, damaged, changed or from a newer exporter
    ├── InputError              one source or one line of input can't be processed; others are not affected
    ├── ParityError             exported graphs and PyTorch disagree by more than the tolerance
    ├── BackendError            a backend failed while it ran
    │   ├── BackendUnavailable  this machine lacks the library, the driver or the device
    │   └── EngineError         a built engine is damaged, or made for another device or version
    ├── BuildError              a target's engine can't be made from this bundle
    ├── TrainingError           training can't start or can't go on
    └── MissingExtra            a command needs a package that the base install leaves out

A message has three parts: what was found, what was expected, what to do.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable


class S2SError(Exception):
    """Root of the tree. `exit_status` is what the command line exits with."""

    exit_status = 1

    def __init__(self, message: object = "") -> None:
        """Each line of the message is made printable and cut: it may quote a file, or another library's message."""
        super().__init__("\n".join(_cut(printable(line), LONGEST) for line in str(message).split("\n")))


class UsageError(S2SError):
    exit_status = 2


class UnknownOption(UsageError):
    """A name that no option has."""

    def __init__(self, name: str, known: Iterable[str], what: str = "option") -> None:
        super().__init__(f"unknown {what} '{name}'{nearest(name, known)}")


class InvalidOption(UsageError):
    """One or several option values that can't be used; all are reported together."""


class CheckpointError(S2SError):
    pass


class UnsupportedModel(CheckpointError):
    pass


class BundleError(S2SError):
    pass


class InputError(S2SError):
    pass


class ParityError(S2SError):
    pass


class BackendError(S2SError):
    pass


class BackendUnavailable(BackendError):
    pass


class EngineError(BackendError):
    pass


class BuildError(S2SError):
    pass


class TrainingError(S2SError):
    pass


class MissingExtra(S2SError):
    """A package that only an extra installs."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package '{package}', which is not installed: pip install 's2s-export[{extra}]'"
        )


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message about a wrong name: the nearest known name, or all known names if they are few."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    if close:
        return f"; did you mean '{close[0]}'?"
    if len(names) <= 12:
        return "; known: " + ", ".join(names)
    return ""


NOT_MAPPED = ("failed to map segment", "annot allocate memory")  # what the dynamic linker says of too little memory
LONGEST = 600  # characters of one of our messages; longer ones quote something long
LONGEST_FOREIGN = 300  # characters of another library's message


def explain(error: BaseException) -> str:
    """Any error as one sentence that fits a screen: ours as it is, another library's with its type, shortened."""
    if isinstance(error, S2SError):
        return shortened(error, LONGEST)
    if isinstance(error, ImportError) and any(words in str(error) for words in NOT_MAPPED):
        what = error.name or "a library"
        return f"there is not enough memory to load {what}; free some, or raise the limit on this process (ulimit -v)"
    if isinstance(error, MemoryError):
        return "out of memory; use a smaller batch size, fewer beams or a shorter source"
    if isinstance(error, RecursionError):
        return "nested too deeply to be read; expected plain lists and objects"
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return "the system allows no further thread; raise the limit on memory (ulimit -v) or processes (ulimit -u)"
    if isinstance(error, ModuleNotFoundError) and error.name:
        package = error.name.partition(".")[0]
        return f"the package '{package}' is not installed, as it was with s2s-export; pip install {package}"
    if isinstance(error, OSError):
        where = f"{printable(error.filename)}: " if error.filename else ""
        advice = "; free some, or write elsewhere" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        return f"{where}{shortened(error.strerror or error, LONGEST_FOREIGN)}{advice}"
    return f"unexpected {type(error).__name__}: {shortened(error, LONGEST_FOREIGN)}"


def is_failure(error: BaseException) -> bool:
    """Whether an error says that work failed, rather than that someone wants it to stop.

    Not all failures derive from Exception: a panic of a library in Rust does not.
    """
    return not isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit))


def shortened(message: object, longest: int) -> str:
    """One line of at most `longest` characters. The middle is cut out, as the end of a message says what to do."""
    try:
        text = str(message)
    except Exception:  # an error whose own message fails
        text = f"(a {type(message).__name__} without a message)"
    return _cut(" ".join(printable(text).split()), longest)


def _cut(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    tail = longest // 3
    return f"{text[: longest - tail - 5]} ... {text[-tail:]}"


def printable(text: object) -> str:
    """Text that a terminal shows as it is: control characters and foreign bytes are escaped, line ends stay."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode("ascii") for c in str(text))
