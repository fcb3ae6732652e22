"""model.bin, CTranslate2's binary format of versions 4 to 6, little endian:

u32 version; string spec; u32 revision
u32 n; n times: string name; u8 rank; rank times u32 size; u8 type; u32 bytes; data
u32 m; m times: string alias; string name

A string is a u16 length, which counts the zero at its end.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import CheckpointError, UnsupportedModel

VERSIONS = range(4, 7)
FLOATS = {0: "<f4", 4: "<f2"}
INTEGERS = {1: "<i1", 2: "<i2", 3: "<i4"}
BFLOAT16 = 5
LONGEST_NAME = 200  # of a specification: longer ones are no model's


@dataclass(frozen=True)
class Model:
    """variables: arrays by name; aliases are names too. bfloat16 is read as float32, without loss."""

    path: Path
    spec: str
    variables: dict[str, Any]

    def __getitem__(self, name: str) -> Any:
        if name not in self.variables:
            raise CheckpointError(f"{self.path}: has no variable {name!r}; expected a whole {self.spec}")
        return self.variables[name]

    def count(self, prefix: str) -> int:
        """How many layers there are: prefix0, prefix1, ..."""
        rest = (name[len(prefix) :].split("/")[0] for name in self.variables if name.startswith(prefix))
        return len({number for number in rest if number.isdigit()})


def is_one(path: Path) -> bool:
    """Whether a file begins as a model of CTranslate2 does."""
    try:
        with path.open("rb") as file:
            start = file.read(6 + LONGEST_NAME)
        version, length = struct.unpack_from("<IH", start)
        spec = start[6 : 6 + length]
    except (OSError, struct.error):
        return False
    return version <= 100 and 1 < length <= LONGEST_NAME and spec.endswith(b"Spec\0")


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
    spec, _ = file.string(), file.number("I")
    variables = {}
    for _ in range(file.number("I")):
        name = file.string()
        shape = [file.number("I") for _ in range(file.number("B"))]
        variables[name] = _array(file, file.number("B"), shape)
    for _ in range(file.number("I")):
        alias, name = file.string(), file.string()
        if name not in variables:
            raise ValueError(f"{alias} stands for {name}, which is not there")
        variables[alias] = variables[name]
    if file.n_left:
        raise ValueError(f"{file.n_left} bytes too many")
    return Model(path, spec, variables)


def _array(file: _Bytes, kind: int, shape: Sequence[int]) -> Any:
    raw = file.take(file.number("I"))
    if kind == BFLOAT16:
        values = (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4")
    elif kind in FLOATS or kind in INTEGERS:
        values = np.frombuffer(raw, (FLOATS | INTEGERS)[kind])
    else:
        raise ValueError(f"a variable of type {kind}")
    return values.reshape(shape)
