"""Bundles with CPU engines, built once a run, in copies: other tests count a tiny bundle's engines."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def built(exported, tmp_path_factory):
    """built(name, *targets) -> a bundle of a tiny family with these engines."""
    from s2s_export.building.build import build

    root = tmp_path_factory.mktemp("engines")

    def make(name: str, *targets: str, kernels: str = "auto") -> Path:
        bundle = root / kernels / f"{name}.bundle"
        if not bundle.exists():
            shutil.copytree(exported(name)[1], bundle)
        for target in targets:
            build(bundle, recipe(root / kernels, target, kernels))
        return bundle

    return make


def recipe(folder: Path, target: str, kernels: str) -> str:
    """A target's recipe with these kernels, under the target's name."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{target}.toml"
    precision = target.removeprefix("cpu-")
    path.write_text(f'flavour = "cpu"\nprecision = "{precision}"\n[options]\nkernels = "{kernels}"\n')
    return str(path)
