"""Products by cuBLASLt, against a stand-in for the library that computes what the descriptors say, and refuses what the
library would refuse. Its speed is measured by gpu_check; no test here can show how the library itself behaves on a GPU.
"""

from __future__ import annotations

import ctypes
import itertools
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

pytest.importorskip("onnx")

from device_helpers import missing_compiler

from s2s_export import bundle, plugin_sources
from s2s_export.building.build import build as make_engine
from s2s_export.building.native.numpy_model import NumpyModel
from s2s_export.errors import BackendError, BackendUnavailable
from s2s_export.runtime.backends._cuda_native.backend import NativeBackend
from s2s_export.runtime.backends._cuda_native.encoder import EncoderProgram
from s2s_export.runtime.backends._cuda_native.model import Weights
from s2s_export.runtime.backends._cuda_native.plain_weights import PlainWeights
from s2s_export.runtime.backends._cuda_native.programs import step_of
from s2s_export.runtime.cuda import cublaslt, driver
from s2s_export.runtime.cuda.cublaslt import Addresses, Library, Product
from s2s_export.runtime.cuda.emulation import HostDevice
from s2s_export.runtime.cuda.faults import OutOfMemory
from s2s_export.runtime.session import Session
from s2s_export.runtime.sources import kind_of

if missing_compiler():
    pytest.skip(str(missing_compiler()), allow_module_level=True)

build = plugin_sources.module("build")
fragments = plugin_sources.module("transformer.fragments")
WORKSPACE = 1 << 20
DTYPES: dict[str, Any] = {"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}
UNIT = {"fp32": 1e-5, "fp16": 2.0**-11, "bf16": 2.0**-8}  # half a unit of the last place; sums in fp32


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("cublaslt") / "libfakecublaslt.so"
    source = Path(__file__).with_name("fake_cublaslt.cpp")
    compiler = build.find_compiler("c++", "g++", "clang++")
    command = [compiler, "-std=c++17", "-O2", "-shared", "-fPIC", f"-I{build.ROOT}", source, "-o", output]
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return output


@pytest.fixture
def steer(path: Path) -> Iterator[Any]:
    """The stand-in's own functions."""
    library = ctypes.CDLL(str(path))
    library.fake_cublaslt_reset.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_size_t]
    library.fake_cublaslt_reset(0, 0, 1024)
    yield library
    library.fake_cublaslt_reset(0, 0, 1024)


@pytest.fixture
def library(path: Path, steer: Any) -> Library:
    return Library(str(path))


CASES = [
    *(("linear", bias, residual, "fp32") for bias, residual in itertools.product((False, True), repeat=2)),
    *((activation, bias, False, "") for activation in cublaslt.EPILOGUES for bias in (False, True)),
]


@pytest.mark.parametrize("element", ["fp16", "bf16"])
@pytest.mark.parametrize("case", CASES)
def test_products_are_numpys(library: Library, steer: Any, element: str, case: tuple[str, bool, bool, str]) -> None:
    activation, has_bias, has_residual, result = case
    result = result or element
    rng, device = np.random.default_rng(len(activation)), HostDevice()
    R, I, O = 37, 48, 80
    arrays = {
        "input": rng.standard_normal((R, I)).astype(DTYPES[element]),
        "weight": rng.standard_normal((O, I)).astype(DTYPES[element]),
        "bias": rng.standard_normal(O).astype(DTYPES[result]),
        "residual": rng.standard_normal((R, O)).astype(DTYPES[result]),
    }
    at = {name: device.allocate(array.nbytes) for name, array in arrays.items()}
    for name, array in arrays.items():
        device.to_device(at[name], array, 1)
    output, workspace = device.allocate(arrays["residual"].nbytes), device.allocate(WORKSPACE)
    product = Product(R, I, O, element, result, activation, has_bias, has_residual, 0.5)
    given = Addresses(
        at["input"], at["weight"], output, at["bias"] if has_bias else None, at["residual"] if has_residual else None
    )
    matmul = library.matmul(product, given, workspace, WORKSPACE)
    assert matmul is not None
    wide = {name: array.astype(np.float64) for name, array in arrays.items()}
    expected = 0.5 * wide["input"] @ wide["weight"].T + has_bias * wide["bias"] + has_residual * wide["residual"]
    if activation == "relu":
        expected = np.maximum(expected, 0)
    elif activation == "gelu_tanh":
        expected = 0.5 * expected * (1 + np.tanh(0.7978845608 * (expected + 0.044715 * expected**3)))
    found = np.empty((R, O), DTYPES[result])
    for _ in range(2):
        matmul.run(1)
        device.to_host(found, output, 1)
        np.testing.assert_allclose(found.astype(np.float64), expected, 2 * UNIT[result], 1e-4)
    if has_residual:  # in place
        given = Addresses(at["input"], at["weight"], at["residual"], given.bias, at["residual"])
        matmul = library.matmul(product, given, workspace, WORKSPACE)
        assert matmul is not None
        matmul.run(1)
        device.to_host(found, at["residual"], 1)
        np.testing.assert_allclose(found.astype(np.float64), expected, 2 * UNIT[result], 1e-4)
    for address in (*at.values(), output, workspace):
        device.free(address)  # which looks whether something was written beside
    del matmul
    assert steer.fake_cublaslt_open() == 0


def test_an_algorithm_is_chosen_once_for_equal_products(library: Library, steer: Any) -> None:
    """And again for addresses that are aligned otherwise, which the library is told."""
    device = HostDevice()
    block = device.allocate(1 << 16)
    product = Product(40, 16, 16, "fp16", "fp16")
    for offset, n in ((0, 1), (4096, 1), (4096 + 16, 2), (8192 + 16, 2)):
        matmul = library.matmul(product, Addresses(block, block + 2048, block + 16384 + offset), block + 32768, 8192)
        assert matmul is not None and steer.fake_cublaslt_heuristics() == n
        matmul.run(1)  # the stand-in compares addresses with the alignment that was told
    steer.fake_cublaslt_reset(0, 0, 1 << 20)
    assert library.matmul(Product(41, 16, 16, "fp16", "fp16"), Addresses(block, block, block), block, 8192) is None


def test_a_product_that_fails_is_a_sentence(library: Library, steer: Any) -> None:
    device = HostDevice()
    block = device.allocate(1 << 16)
    matmul = library.matmul(
        Product(40, 16, 16, "fp16", "fp16"), Addresses(block, block, block + 4096), block + 32768, 8192
    )
    assert matmul is not None
    matmul.workspace_bytes = 0
    with pytest.raises(
        BackendError, match=r"cublasLtMatmul failed with status 7 \(the stand-in's text\); .*S2S_CUBLASLT=0"
    ):
        matmul.run(1)


# The library in encoders

SOURCES = [[5, 9, 3], [7, 8, 9, 10, 11, 12, 4, 6, 3, 7, 8, 9, 10, 11, 12, 4, 6, 3], [30], [9] * 12]


def engine(source: Path, folder: Path, target: str) -> Path:
    """A copy of a bundle with its engine."""
    path = shutil.copytree(source, folder / "bundle", ignore=shutil.ignore_patterns("engines"))
    make_engine(path, target)
    return path


def opened(folder: Path, target: str, library: Any = None) -> Session:
    device, read = HostDevice(), bundle.read(folder)
    device.library = library
    return Session(read, NativeBackend(read, folder / "engines" / target, device), search="device-queue")


def encoded(session: Any, values: dict[str, Any], length: int) -> tuple[np.ndarray, list[str]]:
    """Keys and values of all layers [B, S, L*2*H*D], and the kernels that were launched for them."""
    loaded, n_sources = session.backend.loaded, len(values["source_mask"])
    device, buffers = loaded.device, driver.Buffers(loaded.device, 1)
    program = EncoderProgram(loaded, n_sources, length, buffers.get)
    program.upload(values, device, 1)
    device.launched.clear()
    program.program.run(1)
    found = np.empty((n_sources, length, loaded.model.cross.outputs), np.uint16)
    device.to_host(found, program.cross, 1)
    return found.view(fragments.dtype(loaded.model.element)).astype(np.float64), list(device.launched)


@pytest.mark.parametrize("target", ["cuda-native-fp16", pytest.param("cuda-native-bf16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["marian", "t5", "t5-gated", "bart"])
def test_encoders(exported: Any, tmp_path: Path, library: Library, steer: Any, name: str, target: str) -> None:
    """Every product of an encoder with many rows is the library's, with the norm before and behind, biases and gates.
    The result is as near numpy's, in fp32, as that of our own products."""
    folder = engine(exported(name)[1], tmp_path, target)
    values, S = kind_of(bundle.read(folder)).prepare(SOURCES), 32
    (found, launched), (own, _) = (encoded(opened(folder, target, one), values, S) for one in (library, None))
    weights = Weights(folder / "engines" / target, "build it again")
    both = [part for layer in NumpyModel(weights).encode(values) for part in layer]  # each [B, H, n, D]
    exact = np.concatenate([one.transpose(0, 2, 1, 3).reshape(*one.shape[0:3:2], -1) for one in both], axis=2)
    real = values["source_mask"] != 0
    n = real.shape[1]
    errors = [np.sqrt(np.mean((one[:, :n][real] - exact[real]) ** 2)) for one in (found, own)]
    assert 0 < errors[0] < 2 * errors[1]
    assert steer.fake_cublaslt_products() == 4 * len(weights.model.encoder.layers) + 1
    assert not any(kernel.startswith("tiled_product") for kernel in launched)
    encoded(opened(folder, target, library), kind_of(bundle.read(folder)).prepare(SOURCES[:1]), 16)  # few rows: our own
    assert steer.fake_cublaslt_products() == 4 * len(weights.model.encoder.layers) + 1
    if name == "marian":
        a_step_of_many_rows(opened(folder, target, library), values, steer)


def a_step_of_many_rows(session: Any, values: dict[str, Any], steer: Any) -> None:
    """Every product of a step of more than 32 rows is the library's; the head's too, whose last rows are no tokens."""
    loaded, n_sources, n_beams = session.backend.loaded, len(values["source_mask"]), 12
    device, buffers, found = loaded.device, driver.Buffers(loaded.device, 1), []
    for uses_library in (True, False):
        encoder = EncoderProgram(loaded, n_sources, 32, buffers.get, uses_library=uses_library)
        step = step_of(loaded, encoder, n_beams, 16, buffers.get)
        encoder.upload(values, device, 1)
        shape = (n_sources, n_beams)
        for address, array in (
            (step.token, np.arange(n_sources * n_beams).reshape(shape) % 30),
            (step.position, np.zeros(1, np.int64)),
            (step.ancestors, np.zeros((*shape, 16), np.int64)),
        ):
            device.to_device(address, array, 1)
        encoder.program.run(1)
        before = steer.fake_cublaslt_products()
        step.program.run(1)
        n_products = 6 * len(loaded.model.decoder.layers) + 1
        assert steer.fake_cublaslt_products() - before == (n_products if uses_library else 0)
        assert step.candidate_lists(4) == 0
        found.append(np.empty((*shape, loaded.model.vocabulary), np.float32))
        device.to_host(found[-1], step.logits, 1)
    np.testing.assert_allclose(*found, atol=0.02 * np.abs(found[0]).max())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["marian", "t5-gated"])
def test_decodes_of_many_rows(exported: Any, tmp_path: Path, library: Library, steer: Any, name: str) -> None:
    """Every product of a step of more than 32 rows is the library's, the head's too, whose last outputs are no tokens;
    of fewer none. In a graph as one by one."""
    folder = engine(exported(name)[1], tmp_path, "cuda-native-fp16")
    sources, counts, outputs = [[5 + i, 9, 3 + i] for i in range(12)], [], []
    given: dict[str, Any] = {"max_new_tokens": 3, "num_return_sequences": 2, "eos_token_id": None}
    for one, beams in ((library, 3), (None, 3), (library, 2)):
        ours = opened(folder, "cuda-native-fp16", one)
        before = steer.fake_cublaslt_products()
        outputs.append([h for of in ours.generate(sources, num_beams=beams, batch_size=12, **given) for h in of])
        counts.append(steer.fake_cublaslt_products() - before)
    model = ours.backend.loaded.model  # type: ignore[attr-defined]
    of_encoder = 4 * len(model.encoder.layers) + 1
    n_steps = 3
    assert counts[1] == 0 and counts[2] == of_encoder
    assert counts[0] == of_encoder + n_steps * (6 * len(model.decoder.layers) + 1)
    equal = [a.token_ids == b.token_ids for a, b in zip(outputs[0], outputs[1], strict=True)]
    assert sum(equal) >= 0.8 * len(equal)
    # The logits of a random T5 reach 40, and its gates are made of sums that the library rounds to the element.
    np.testing.assert_allclose([h.score for h in outputs[0]], [h.score for h in outputs[1]], atol=0.05)


def test_the_encoder_of_sound(tmp_path: Path, library: Library, steer: Any) -> None:
    """Convolutions and positions too."""
    import tiny_whisper

    import s2s_export

    s2s_export.export(tiny_whisper.save(tmp_path / "checkpoint", 3), tmp_path / "bundle")
    make_engine(tmp_path / "bundle", "cuda-native-fp16")
    sources = [tiny_whisper.clip(i, 0.2 + 0.2 * i) for i in range(2)]
    prompt = [tiny_whisper.IDS[f"<|{name}|>"] for name in ("startoftranscript", "en", "transcribe", "notimestamps")]
    found, expected = (
        opened(tmp_path / "bundle", "cuda-native-fp16", one).generate(
            sources, decoder_input_ids=prompt, max_new_tokens=6
        )
        for one in (library, None)
    )
    assert [of[0].token_ids for of in found] == [of[0].token_ids for of in expected]
    # 2 layers of 4, keys and values, a convolution of the batch, one of each source.
    assert steer.fake_cublaslt_products() == 2 * 4 + 1 + 1 + 2


def test_what_the_library_does_not_serve_is_ours(exported: Any, tmp_path: Path, library: Library, steer: Any) -> None:
    for target, refuses in (("cuda-native-fp16", 1), ("cuda-native-int8", 0)):
        folder = engine(exported("marian")[1], tmp_path / target, target)
        steer.fake_cublaslt_reset(0, refuses, 1024)
        values = kind_of(bundle.read(folder)).prepare(SOURCES)
        (found, launched), (own, _) = (encoded(opened(folder, target, one), values, 32) for one in (library, None))
        np.testing.assert_array_equal(found, own)
        assert steer.fake_cublaslt_products() == 0 and any(kernel.startswith("tiled_product") for kernel in launched)


def test_too_little_memory_names_the_switch(exported: Any, tmp_path: Path) -> None:
    folder = engine(exported("marian")[1], tmp_path, "cuda-native-fp16")
    weights = Weights(folder / "engines" / "cuda-native-fp16", "build it again")
    plain = PlainWeights(weights, HostDevice(memory_limit=100))
    with pytest.raises(OutOfMemory, match=r"no room for a copy of .* for cuBLASLt, which S2S_CUBLASLT=0 saves"):
        plain.weight(weights.model.cross)


# Which library


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    class Gpu:
        cuda_release = (13, 0)

        def activate(self) -> None:
            pass

    monkeypatch.setattr(driver, "device", Gpu)
    monkeypatch.setattr(driver, "unavailable", lambda: None)
    cublaslt._opened.cache_clear()
    yield monkeypatch
    cublaslt._opened.cache_clear()


def test_the_switch(fresh: pytest.MonkeyPatch, path: Path) -> None:
    fresh.setattr(cublaslt, "places", lambda release: iter([str(path)]))
    computes = "computes the products of many rows of the backend cuda; S2S_CUBLASLT=0 turns it off"
    assert cublaslt.report() == f"cuBLASLt 13.1.2 ({path}) {computes}"
    assert cublaslt.found() is not None
    for value in ("0", "off"):
        cublaslt._opened.cache_clear()
        fresh.setenv("S2S_CUBLASLT", value)
        assert cublaslt.found() is None
        assert cublaslt.report() == "the backend cuda's own products, without cuBLASLt: S2S_CUBLASLT says so"


def test_none_is_here(fresh: pytest.MonkeyPatch) -> None:
    fresh.setattr(cublaslt, "places", lambda release: iter(["libnothing.so.13"]))
    assert cublaslt.report().endswith("without cuBLASLt: none is here; pip install nvidia-cublas brings it")
    assert cublaslt.found() is None


def test_one_that_does_not_start_is_passed_over(path: Path, steer: Any, tmp_path: Path) -> None:
    """A library for a newer driver can't start; one behind it may. A damaged one, and another library, are named."""
    broken = tmp_path / "libcublasLt.so.13"
    broken.write_bytes(b"none")
    assert cublaslt.open_first(iter([str(broken), "libm.so.6", str(path)])).path == str(path)
    steer.fake_cublaslt_reset(1, 0, 1024)
    with pytest.raises(BackendUnavailable, match=r"13 can't be opened .*can't start \(status 1, the stand-in's text\)"):
        cublaslt.open_first(iter([str(broken), str(path)]))


def test_where_it_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel, home = tmp_path / "site" / "nvidia" / "cu13" / "lib", tmp_path / "toolkit" / "lib64"
    for folder, name in ((wheel, "libcublasLt.so.13"), (home, "libcublasLt.so.13"), (home, "libcublasLt.so.12")):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "toolkit"))
    found = [place for place in cublaslt.places((13, 1)) if "/" not in place or str(tmp_path) in place]
    newer = ["libcublasLt.so.13", str(wheel / "libcublasLt.so.13"), str(home / "libcublasLt.so.13")]
    older = ["libcublasLt.so.12", str(home / "libcublasLt.so.12")]
    assert found == newer + older
    assert [place for place in cublaslt.places((12, 6)) if "/" not in place or str(tmp_path) in place] == older


# The library itself, where it is here


def real() -> Path:
    for place in cublaslt.places((13, 9)):
        if Path(place).is_file():
            return Path(place)
    pytest.skip("no cuBLASLt on this machine (pip install nvidia-cublas)")


def test_the_librarys_own_descriptors() -> None:
    """They take our attributes and their sizes. Without a GPU it can't start."""
    functions = ctypes.CDLL(str(real()))
    for name, arguments in cublaslt.FUNCTIONS.items():
        getattr(functions, name).argtypes = list(arguments)
    made = ctypes.c_void_p()
    assert functions.cublasLtMatmulDescCreate(ctypes.byref(made), cublaslt.COMPUTE_FP32, cublaslt.TYPES["fp32"]) == 0
    values = [(cublaslt.TRANSPOSE_A, ctypes.c_int32(1)), (cublaslt.EPILOGUE, ctypes.c_uint32(36))]
    for which, value in (*values, (cublaslt.BIAS_POINTER, ctypes.c_void_p(256))):
        size = ctypes.sizeof(value)
        assert functions.cublasLtMatmulDescSetAttribute(made, which, ctypes.byref(value), size) == 0
        assert functions.cublasLtMatmulDescSetAttribute(made, which, ctypes.byref(value), size - 1) != 0
    assert functions.cublasLtMatrixLayoutCreate(ctypes.byref(made), cublaslt.TYPES["bf16"], 64, 32, 64) == 0
    assert functions.cublasLtMatmulPreferenceCreate(ctypes.byref(made)) == 0
    sizes = {cublaslt.MOST_WORKSPACE: ctypes.c_uint64(1 << 20), **{n: ctypes.c_uint32(16) for n in cublaslt.ALIGNMENTS}}
    for which, value in sizes.items():
        size = ctypes.sizeof(value)
        assert functions.cublasLtMatmulPreferenceSetAttribute(made, which, ctypes.byref(value), size) == 0
        assert functions.cublasLtMatmulPreferenceSetAttribute(made, which, ctypes.byref(value), size - 1) != 0


def test_constants_are_the_headers(tmp_path: Path) -> None:
    header = real().parents[1] / "include" / "cublasLt.h"
    if not header.is_file():
        pytest.skip(f"no {header}")
    try:
        toolkit = build.toolkit()
    except BackendError as error:
        pytest.skip(str(error))
    names = {
        "CUBLAS_COMPUTE_32F": cublaslt.COMPUTE_FP32, "CUDA_R_32F": cublaslt.TYPES["fp32"],
        "CUDA_R_16F": cublaslt.TYPES["fp16"], "CUDA_R_16BF": cublaslt.TYPES["bf16"], "CUBLAS_OP_T": cublaslt.TRANSPOSED,
        "CUBLASLT_MATMUL_DESC_TRANSA": cublaslt.TRANSPOSE_A, "CUBLASLT_MATMUL_DESC_EPILOGUE": cublaslt.EPILOGUE,
        "CUBLASLT_MATMUL_DESC_BIAS_POINTER": cublaslt.BIAS_POINTER,
        "CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES": cublaslt.MOST_WORKSPACE,
        "CUBLASLT_EPILOGUE_DEFAULT": 1, "CUBLASLT_EPILOGUE_RELU": 2, "CUBLASLT_EPILOGUE_BIAS": 4,
        "CUBLASLT_EPILOGUE_RELU_BIAS": 6, "CUBLASLT_EPILOGUE_GELU": 32, "CUBLASLT_EPILOGUE_GELU_BIAS": 36,
        "sizeof(cublasLtMatmulAlgo_t)": ctypes.sizeof(cublaslt.Algorithm),
        "sizeof(cublasLtMatmulHeuristicResult_t)": ctypes.sizeof(cublaslt.Proposal),
        "offsetof(cublasLtMatmulHeuristicResult_t, state)": cublaslt.Proposal.state.offset,
        "CUBLAS_STATUS_NOT_SUPPORTED": cublaslt.NOT_SUPPORTED,
    }  # fmt: skip
    for which, number in zip("ABCD", cublaslt.ALIGNMENTS, strict=True):
        names[f"CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_{which}_BYTES"] = number
    source = tmp_path / "check.cpp"
    checks = [f'static_assert({name} == {value}, "{name}");' for name, value in names.items()]
    source.write_text("\n".join(["#include <cstddef>", "#include <cublasLt.h>", *checks]) + "\n")
    compiler = build.find_compiler("c++", "g++", "clang++")
    command = [compiler, "-fsyntax-only", f"-I{header.parent}", f"-I{toolkit / 'include'}", source]
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
