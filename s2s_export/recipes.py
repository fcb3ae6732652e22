"""Targets: a machine and a precision, described by data in engines/*.toml.

A recipe says how to build and does not depend on the model: ranges are given by dimension letter, so that a new family
needs no change to any recipe.

    flavour               which builder makes it and which backend runs it, such as "cpu" (building/builders/)
    description           one line for `s2s build --list`
    precision             fp32, fp16, bf16, int8 or fp8
    compute_capabilities  ["8.6", ...] that the engine must run on; empty for a CPU
    plugins               whether our attention kernels replace the library's own layers
    workspace_mib         memory that TensorRT may use to try kernels
    buckets               source lengths that get a CUDA graph of their own
    [ranges.B]            min, opt, max of each letter: B sources, K beams, S source length, T target length
    [options]             what only this flavour understands; its builder checks the names

A target is named after its file, or is the path of a user's own .toml file.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from .errors import InvalidOption, UnknownOption

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LETTERS = {"B": "sources", "K": "beams", "S": "source length", "T": "target length"}
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")
_CAPABILITY = re.compile(r"\d{1,2}\.\d")


@dataclass(frozen=True)
class Range:
    """min, opt and max of one dimension letter; the builder tunes for opt."""

    min: int
    opt: int
    max: int

    def __str__(self) -> str:
        return f"{self.min}..{self.max} (tuned for {self.opt})"


@dataclass(frozen=True)
class Recipe:
    """One target, checked."""

    name: str
    flavour: str
    precision: str
    description: str = ""
    compute_capabilities: tuple[str, ...] = ()
    plugins: bool = False
    workspace_mib: int = 1024
    buckets: tuple[int, ...] = ()
    ranges: Mapping[str, Range] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


def folder() -> Path:
    """Where the recipes are: engines/ of a checkout, or the copy that a wheel brings."""
    for place in (Path(__file__).parent / "_data" / "engines", Path(__file__).parent.parent / "engines"):
        if place.is_dir():
            return place
    raise InvalidOption("no engines/ folder beside the package; install s2s-export again")


def names() -> list[str]:
    return sorted(path.stem for path in folder().glob("*.toml"))


def load(target: str | os.PathLike[str]) -> Recipe:
    """The recipe of a target's name, or of a .toml file. Raises UnknownOption, InvalidOption with all that is wrong."""
    text = str(target)
    if not text.endswith(".toml"):
        if text not in names():
            raise UnknownOption(text, names(), "target")
        return read(folder() / f"{text}.toml")
    path = Path(text)
    if not path.is_file():
        raise InvalidOption(f"{path}: no such file; expected a target's recipe or one of {', '.join(names())}")
    return read(path)


def read(path: Path) -> Recipe:
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise InvalidOption(f"{path}: not readable as TOML ({error})") from error
    return of(data, path.stem, path)


def of(data: Mapping[str, Any], name: str, path: Path) -> Recipe:
    """The recipe that a table says, checked. path: where it comes from. Raises UnknownOption, InvalidOption."""
    known = {f.name for f in fields(Recipe)} - {"name"}
    for key in data:
        if key not in known:
            raise UnknownOption(key, known, f"key in {path.name}:")
    wrong = [text for check in (_check_plain, _check_ranges) for text in check(data)]
    if wrong:
        raise InvalidOption(f"{path.name}: {'; '.join(wrong)}")
    ranges = {letter: Range(**limits) for letter, limits in data.get("ranges", {}).items()}
    lists = {key: tuple(data.get(key, ())) for key in ("compute_capabilities", "buckets")}
    return Recipe(name=name, **{**data, **lists, "ranges": ranges})


def _check_plain(data: Mapping[str, Any]) -> list[str]:
    wrong = []
    if not isinstance(data.get("flavour"), str):
        wrong.append(f"flavour is {data.get('flavour')!r}, expected the name of one, such as 'cpu'")
    if data.get("precision") not in PRECISIONS:
        wrong.append(f"precision is {data.get('precision')!r}, expected one of {', '.join(PRECISIONS)}")
    for value in data.get("compute_capabilities", []):
        if not isinstance(value, str) or not _CAPABILITY.fullmatch(value):
            wrong.append(f"compute capability {value!r}, expected text like '8.6'")
    for value in data.get("buckets", []):
        if not _is_count(value):
            wrong.append(f"bucket {value!r}, expected a source length of at least 1")
    if not _is_count(data.get("workspace_mib", 1)):
        wrong.append(f"workspace_mib is {data['workspace_mib']!r}, expected a whole number of at least 1")
    if not isinstance(data.get("plugins", False), bool):
        wrong.append(f"plugins is {data['plugins']!r}, expected true or false")
    return wrong


def _check_ranges(data: Mapping[str, Any]) -> list[str]:
    wrong = []
    for letter, limits in data.get("ranges", {}).items():
        if letter not in LETTERS:
            wrong.append(f"ranges.{letter}, expected one of {', '.join(f'{k} ({v})' for k, v in LETTERS.items())}")
        elif not isinstance(limits, Mapping) or set(limits) != {"min", "opt", "max"}:
            wrong.append(f"ranges.{letter} has {limits!r}, expected min, opt and max")
        elif not all(_is_count(value) for value in limits.values()):
            wrong.append(f"ranges.{letter} has {limits!r}, expected whole numbers of at least 1")
        elif not limits["min"] <= limits["opt"] <= limits["max"]:
            wrong.append(f"ranges.{letter} has {limits!r}, expected min <= opt <= max")
    return wrong


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
