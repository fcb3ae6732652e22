"""The instruction set of AMX: its products are bit for bit those of AVX-512, and it is taken only where it works.

Few machines have AMX. On the others its tile instructions run in plain C++, which stops at what a processor would fault
at (plugins/cpu/tiles.h); test_own_kernels.py tries all operators with these too.
"""

from __future__ import annotations

import ctypes
import itertools
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from test_own_kernels import BUILD, SETS, emulated, normal, packed_inputs, run, skip_without_amx

from s2s_export import plugin_sources
from s2s_export.building.cpu.own import packing
from s2s_export.building.cpu.own.products import ACTIVATIONS

build, portable = plugin_sources.module("build"), plugin_sources.module("portable")
pytestmark = pytest.mark.skipif("amx" not in SETS, reason="AMX is for x86-64")
INSTRUCTIONS = {"ldtilecfg", "tilezero", "tileloadd", "tilestored", "tdpbusd", "tilerelease"}


@pytest.fixture(scope="module")
def plain():
    path = BUILD.library("amx")
    if BUILD.instruction_set(path) != "avx512":
        pytest.skip("this processor has no AVX-512 with VNNI")
    return path


@pytest.fixture(scope="module", params=["emulated", "real"])
def tiled(request, plain):
    if request.param == "emulated":
        return emulated()
    path = BUILD.library()
    skip_without_amx(path)
    return path


def same_bits(libraries, op_type, inputs, n_outputs, constants, **attributes):
    found, expected = (run(path, op_type, inputs, n_outputs, constants, **attributes) for path in libraries)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype and a.tobytes() == b.tobytes()


# R, I, O: every number of rows in one, two and three tiles, blocks that are left over, outputs that fill no block, and
# inputs that fill no tile
SHAPES = [*((rows, 64, 80) for rows in range(1, 70)), (5, 512, 400), (16, 512, 1024), (21, 192, 150), (31, 128, 33),
          (240, 256, 272), (32, 2048, 96), (33, 96, 80), (40, 66, 48)]  # fmt: skip


def test_products(tiled, plain):
    for rows, n_in, n_out in SHAPES:
        rng = np.random.default_rng(rows + n_in + n_out)
        x = normal(rng, rows, n_in)
        x[rows // 2] *= np.float32(1e3) if rows % 2 else 0  # a large row, or one of zeros
        arrays, _ = packed_inputs(normal(rng, n_out, n_in), True)
        for bias, residual in (
            (None, None),
            (packing.filled(normal(rng, n_out), packing.LANES), normal(rng, rows, n_out)),
        ):
            inputs = [x, *arrays, bias, residual]
            same_bits((tiled, plain), "LinearInt8", inputs, 1, range(1, 5), n_out=n_out)


@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_activations(tiled, plain, activation):
    rng = np.random.default_rng(activation)
    for rows, residual in itertools.product((4, 16, 25, 32), (None, normal(rng, 32, 100))):
        x, bias = 3 * normal(rng, rows, 192), packing.filled(normal(rng, 100), packing.LANES)
        added = None if residual is None else residual[:rows]
        inputs = [x, *packed_inputs(normal(rng, 100, 192), True)[0], bias, added]
        same_bits((tiled, plain), "LinearInt8", inputs, 1, range(1, 5), n_out=100, activation=activation)


def test_the_extreme_bytes(tiled, plain):
    """0 and 255 times -127 and 127, summed over many inputs, stay exact."""
    x, weight = np.full((19, 2048), 1, np.float32), np.full((32, 2048), -1, np.float32)
    x[::2], weight[::2] = -1, 1
    x[:, 0] = 0.5
    same_bits((tiled, plain), "LinearInt8", [x, *packed_inputs(weight, True)[0]], 1, range(1, 4), n_out=32)


@pytest.mark.parametrize(("sources", "beams", "threads"), [(1, 4, 1), (4, 4, 1), (8, 3, 2), (9, 4, 2)])
def test_heads(tiled, plain, sources, beams, threads):
    rng = np.random.default_rng(sources)
    arrays, _ = packed_inputs(normal(rng, 1001, 128), True)
    bias, probes = packing.filled(normal(rng, 1001), packing.LANES), rng.integers(0, 1001, (sources, beams, 2))
    inputs = [normal(rng, sources * beams, 128), *arrays, bias, np.array([9]), probes, np.array(True)]
    same_bits((tiled, plain), "HeadInt8", inputs, 5, range(1, 5), n_out=1001, threads=threads)


@pytest.mark.parametrize("size", [64, 40])
@pytest.mark.parametrize("length", [1, 5, 30, 64, 130, 300])
def test_attention_of_an_encoder(tiled, plain, length, size):
    rng = np.random.default_rng(length)
    rows, sizes = normal(rng, 2 * length, 3 * 2 * size), np.array([2, length, 2, size])
    mask = np.where(np.arange(length) < max(length - 3, 1), 0, -1e9).astype(np.float32)[None, None, None]
    for added in (None, mask):  # bytes are multiplied where there is none
        same_bits((tiled, plain), "EncoderAttention", [rows, sizes, added], 1, (), scale=0.3, int8=1)


@pytest.mark.parametrize(("rows", "n_in", "tiles"), [
    (3, 128, 0), (4, 128, 1), (16, 128, 1), (17, 128, 2), (32, 128, 2), (37, 128, 3), (96, 128, 6), (90, 128, 6),
    (37, 96, 0),
])  # fmt: skip
def test_tiles_are_used(rows, n_in, tiles):
    """A tile of rows is multiplied once with each block of weights, 64 inputs at a time."""
    library = emulated()
    count = ctypes.CDLL(str(library)).s2s_tile_products
    count.restype = ctypes.c_int64
    rng, before = np.random.default_rng(rows), count()
    inputs = [normal(rng, rows, n_in), *packed_inputs(normal(rng, 80, n_in), True)[0]]
    run(library, "LinearInt8", inputs, 1, range(1, 4), n_out=80)
    assert count() - before == tiles * 5 * (n_in // 64)


# Where tile instructions are, and when they run


def tile_instructions(path):
    """The tile instructions of a binary, with the functions that have them."""
    if (objdump := shutil.which("objdump")) is None:
        pytest.skip("there is no objdump (binutils)")
    text = subprocess.run(
        [objdump, "-d", "--no-show-raw-insn", path], capture_output=True, text=True, check=True
    ).stdout
    found, function = {}, ""
    for line in text.splitlines():
        if match := re.match(r"[0-9a-f]+ <(.+)>:$", line):
            function = match[1]
        elif match := re.match(r"\s*[0-9a-f]+:\s+((?:tile|ldtile|sttile|tdp)\w+)", line):
            found.setdefault(match[1], set()).add(function)
    return found


def check_instructions(found):
    assert set(found) == INSTRUCTIONS
    assert all("3amx" in function for functions in found.values() for function in functions), found


def test_the_compiled_set_has_tile_instructions_and_no_other_has():
    compiler = (build.find_compiler(*BUILD.COMPILERS),)
    if "amx" not in BUILD.known_to(compiler, BUILD.sets_of("x86_64")):
        pytest.skip(f"{compiler[0]} doesn't know AMX")
    check_instructions(tile_instructions(BUILD.library()))
    assert not tile_instructions(BUILD.library("amx"))


def test_clang_compiles_it_too():
    """As for a wheel."""
    pytest.importorskip("ziglang", reason="there is no ziglang, which compiles for wheels")
    command = (portable.compiler("x86_64"), (*BUILD.FLAGS, "-Wno-psabi"), "amx", BUILD.sets_of("x86_64")["amx"])
    check_instructions(tile_instructions(BUILD._kernels(*command, portable.release())))


@pytest.mark.parametrize(("refused", "kept"), [
    ("-mamx", ["avx512", "avxvnni", "avx2", "plain"]), ("-mavx512", ["avxvnni", "avx2", "plain"]), ("-m", ["plain"]),
])  # fmt: skip
def test_a_compiler_that_does_not_know_a_set(tmp_path, refused, kept):
    compiler = tmp_path / "c++"
    compiler.write_text(f'#!/bin/sh\ncase "$*" in *{refused}*) exit 1 ;; esac\nexit 0\n')
    compiler.chmod(0o755)
    assert list(BUILD.known_to((str(compiler),), BUILD.sets_of("x86_64"))) == kept


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    """Gives the set that is chosen for a described processor, and why it is not amx."""
    program = tmp_path_factory.mktemp("machine") / "machine"
    source = Path(__file__).with_name("machine.cpp")
    command = [build.find_compiler(*BUILD.COMPILERS), "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror"]
    command.append("-Wno-address")  # all sets that the source has are there
    subprocess.run([*command, "-I", build.ROOT / "cpu", source, "-o", program], check=True)

    def ask(*words):
        done = subprocess.run([program, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
        return [part.strip() for part in done.stdout.split(":", 1)]

    return ask


WHOLE = ("system", "avx512", "tiles", "int8", "configuration", "data", "permission")


@pytest.mark.parametrize(("lacks", "chosen", "why"), [
    ((), "amx", ""),
    (("permission",), "avx512", "refuses"),
    (("data",), "avx512", "doesn't keep"),
    (("configuration",), "avx512", "doesn't keep"),
    (("int8",), "avx512", "this processor doesn't have it"),
    (("tiles",), "avx512", "this processor doesn't have it"),
    (("avx512",), "avx2", "no AVX-512"),
    (("system",), "plain", "no AVX-512"),
])  # fmt: skip
def test_it_is_taken_only_where_processor_and_system_have_all(machine, lacks, chosen, why):
    name, reason = machine(*(word for word in WHOLE if word not in lacks))
    assert name == chosen and why in reason and bool(why) == bool(reason)


def test_other_tiles_and_wrong_products_are_not_taken(machine):
    assert machine(*WHOLE, "small") == ["avx512", "this processor's tiles are not eight of 16 rows of 64 bytes"]
    assert machine(*WHOLE, "wrong") == ["avx512", "its products are wrong on this processor"]
