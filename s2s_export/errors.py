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
from collections.abc import Iterable


class S2SError(Exception):
    """Root of the tree. `exit_status` is what the command line exits with."""

    exit_status = 1


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
    """The tail of a message about a wrong name: its nearest neighbour, or the whole set when it is short."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    if close:
        return f"; did you mean '{close[0]}'?"
    if len(names) <= 12:
        return "; known: " + ", ".join(names)
    return ""
