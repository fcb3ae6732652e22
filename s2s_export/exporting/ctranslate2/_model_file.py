"""model.bin, CTranslate2's binary format of versions 2 to 6, little endian:

u32 version; string spec; u32 revision
u32 n; n times: string name; u8 rank; rank times u32 size; u8 type; u32 bytes; data
u32 m; m times: string alias; string name

A string is a u16 length, which counts the zero at its end. Versions 2 and 3 have the number of bytes of an element in
place of the type, and the number of elements in place of that of bytes; version 2 has no aliases.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import CheckpointError, UnsupportedModel

VERSIONS = range(2, 7)
FIRST_WITH_ALIASES = 3
FIRST_WITH_TYPES = 4
TYPE_OF_SIZE = {4: 0, 2: 2, 1: 1}  # of an element in bytes, before there were types
FLOATS = {0: "<f4", 4: "<f2"}
INTEGERS = {1: "<i1", 2: "<i2", 3: "<i4"}
BFLOAT16 = 5
LONGEST_NAME = 200  # of a specification: longer ones are no model's


@dataclass(frozen=True)
class Model:
    """variables: arrays by name; aliases are names too. bfloat16 is read as float32, without loss.

    version: of the file's format; revision: of the specification.
    """

    path: Path
    spec: str
    variables: dict[str, Any]
    version: int = VERSIONS.stop - 1
    revision: int = 1

    def __getitem__(self, name: str) -> Any:
        if name not in self.variables:
            raise CheckpointError(f"{self.path}: has no variable {name!r}; expected a whole {self.spec}")
        return self.variables[name]

    def count(self, prefix: str) -> int:
        """How many layers there are: prefix0, prefix1, ..."""
        rest = (name[len(prefix) :].split("/")[0] for name in self.variables if name.startswith(prefix))
        return len({number for number in rest if number.isdigit()})


def spec_of(path: Path) -> str | None:
    """The specification that the beginning of a file names, or None if it does not begin as CTranslate2's do."""
    try:
        with path.open("rb") as file:
            start = file.read(6 + LONGEST_NAME)
        version, length = struct.unpack_from("<IH", start)
        spec = start[6 : 6 + length]
    except (OSError, struct.error):
        return None
    is_one = version <= 100 and 1 < length <= LONGEST_NAME and spec.endswith(b"Spec\0")
    return spec[:-1].decode("utf-8", "replace") if is_one else None


def read(paths: Sequence[Path]) -> Model:
    """Raises CheckpointError for a file that is cut or damaged, UnsupportedModel for another version."""
    raw = b"".join(path.read_bytes() for path in paths)
    try:
        return _read(_Bytes(raw), paths[0])
    except (struct.error, ValueError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{paths[0]}: ends early or is damaged ({error}); restore the file") from error


class _Bytes:
    def __init__(self, raw: bytes) -> None:
        self._raw = memoryview(raw)
        self.at = 0

    def number(self, code: str) -> int:
        value = struct.unpack_from("<" + code, self._raw, self.at)[0]
        self.at += struct.calcsize("<" + code)
        return int(value)

    def take(self, n: int) -> memoryview:
        if self.at + n > len(self._raw):
            raise ValueError(f"{n} bytes wanted at {self.at} of {len(self._raw)}")
        self.at += n
        return self._raw[self.at - n : self.at]

    def string(self) -> str:
        return bytes(self.take(self.number("H"))[:-1]).decode("utf-8")

    @property
    def n_left(self) -> int:
        return len(self._raw) - self.at


def _read(file: _Bytes, path: Path) -> Model:
    version = file.number("I")
    if version not in VERSIONS:
        raise UnsupportedModel(
            f"{path}: has binary version {version}; expected {VERSIONS.start} to {VERSIONS.stop - 1}; convert the "
            "original checkpoint again"
        )
    spec, revision = file.string(), file.number("I")
    variables = {}
    for _ in range(file.number("I")):
        name = file.string()
        shape = [file.number("I") for _ in range(file.number("B"))]
        kind, length = file.number("B"), file.number("I")
        if version < FIRST_WITH_TYPES:
            kind, length = TYPE_OF_SIZE.get(kind, kind), length * kind
        variables[name] = _array(file, kind, length, shape)
    for _ in range(file.number("I") if version >= FIRST_WITH_ALIASES else 0):
        alias, name = file.string(), file.string()
        if name not in variables:
            raise ValueError(f"{alias} stands for {name}, which is not there")
        variables[alias] = variables[name]
        if (scale := f"{name}_scale") in variables:
            variables[f"{alias}_scale"] = variables[scale]
    if file.n_left:
        raise ValueError(f"{file.n_left} bytes too many")
    return Model(path, spec, variables, version, revision)


def _array(file: _Bytes, kind: int, n_bytes: int, shape: Sequence[int]) -> Any:
    raw = file.take(n_bytes)
    if kind == BFLOAT16:
        values = (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4")
    elif kind in FLOATS or kind in INTEGERS:
        values = np.frombuffer(raw, (FLOATS | INTEGERS)[kind])
    else:
        raise ValueError(f"a variable of type {kind}")
    return values.reshape(shape)
