"""The search in C++ under the address and undefined-behaviour sanitizers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_native_left import made
from tiny_names import STRUCTURES

from s2s_export import plugin_sources
from s2s_export.errors import BuildError

RUN = """
import sys
from s2s_export import plugin_sources
from s2s_export.runtime.native_graphs import library
found = library.declare(plugin_sources.module("search.build").library(sanitize=True))
library.load = lambda: found
sys.path[:0] = [{helpers!r}, {here!r}]
import random
import s2s_export
from random_searches import random_options
from s2s_export.runtime.backends import _slots
from s2s_export.runtime.native_search import loop
from test_native_steps import compare
compare(range(400, 600))
_slots.RESERVED = 3
for calls_directly in (True, False):
    if not calls_directly:
        loop.OnnxRuntimeBackend.native = lambda self, name: None
    session = s2s_export.load({bundle!r}, target="cpu-fp32", threads=1)
    size = session.bundle.vocabulary_size
    for seed in range(25):
        chance = random.Random(seed)
        options = random_options(chance, size)
        sources = [[chance.randrange(4, size) for _ in range(chance.randint(2, 9))] for _ in range(3)]
        session.decode_batch(sources, options)
print("clean", end="")
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", STRUCTURES)
def test_no_access_is_out_of_bounds(exported: object, tmp_path: Path, name: str) -> None:
    import shutil

    from s2s_export.building.build import build

    bundle = tmp_path / f"{name}.bundle"
    shutil.copytree(exported(name)[1], bundle)  # type: ignore[operator]
    build(bundle, "cpu-fp32")
    run(bundle)


@pytest.mark.slow
def test_no_access_is_out_of_bounds_where_normalisers_are_left_out(tmp_path: Path) -> None:
    run(made(tmp_path))


def run(bundle: Path) -> None:
    """Decode with random options under the sanitizers."""
    try:
        compiler = plugin_sources.module("build").find_compiler("g++")
        plugin_sources.module("search.build").library(sanitize=True)
    except BuildError as missing:
        pytest.skip(str(missing).splitlines()[0])
    sanitizer = subprocess.run(
        [compiler, "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not Path(sanitizer).is_absolute():
        pytest.skip("the compiler has no address sanitizer")
    here = Path(__file__).parent
    code = RUN.format(helpers=str(here.parents[1] / "helpers"), here=str(here), bundle=str(bundle))
    environment = {
        **os.environ,
        "LD_PRELOAD": sanitizer,
        "ASAN_OPTIONS": "detect_leaks=0:handle_segv=0",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "clean"), result.stderr[-2000:]
