"""What tests share: exported tiny bundles, made once a run. Modules that they share are in helpers/."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_names import RECURRENT


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny models: threads that wait for each other cost more than they help."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """exported(name) -> (checkpoint, bundle) of one of `tiny_models.CONFIGS`, made at its first use."""
    import tiny_models

    import s2s_export

    root = tmp_path_factory.mktemp("tiny")

    def make(name: str) -> tuple[Path, Path]:
        checkpoint, bundle = root / name, root / f"{name}.bundle"
        if not bundle.exists():
            tiny_models.save(name, checkpoint)
            s2s_export.export(checkpoint, bundle)
        return checkpoint, bundle

    return make


@pytest.fixture(scope="session")
def bundled(exported: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """bundled(name) -> the bundle of a tiny model: one of FAMILIES or of RECURRENT."""
    root = tmp_path_factory.mktemp("recurrent")

    def make(name: str) -> Path:
        if name not in RECURRENT:
            return exported(name)[1]
        path = root / f"{name}.bundle"
        if not path.exists():
            _export_recurrent(name, root / name, path)
        return path

    return make


def _export_recurrent(name: str, checkpoint: Path, path: Path) -> None:
    import torch

    import s2s_export
    from s2s_export.reference import build
    from s2s_export.reference.checkpoint import Checkpoint, save_checkpoint, weights_of
    from s2s_export.reference.config import ReferenceConfig

    torch.manual_seed(3)
    config = ReferenceConfig(vocab_size=40, d_model=24, max_source_length=30, max_target_length=30, **RECURRENT[name])
    model = build(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
    save_checkpoint(checkpoint, Checkpoint(config, weights_of(model)))
    s2s_export.export(checkpoint, path)


@pytest.fixture(scope="session")
def number_words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of the shipped translator, with its tokenizer."""
    import s2s_export

    path = tmp_path_factory.mktemp("numbers") / "number-words.bundle"
    s2s_export.export(Path(__file__).parents[1] / "examples" / "models" / "number-words", path)
    return path


@pytest.fixture
def copied(bundled: Any, tmp_path: Path) -> Callable[[str], Path]:
    """copied(name) -> a copy of that bundle for one test to build in."""

    def make(name: str) -> Path:
        target = tmp_path / f"{name}.bundle"
        if not target.exists():
            shutil.copytree(bundled(name), target, ignore=shutil.ignore_patterns("engines"))
        return target

    return make


@pytest.fixture(scope="session")
def trt() -> Any:
    return pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 's2s-export[rtx]'")
