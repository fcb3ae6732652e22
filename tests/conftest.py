"""What tests share: exported tiny bundles, made once a run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


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
