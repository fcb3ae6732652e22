"""Bundles with CPU engines, built once a run, in copies: other tests count a tiny bundle's engines."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))


@pytest.fixture(scope="session")
def built(exported, tmp_path_factory):
    """built(name, *targets) -> a bundle of a tiny family with these engines."""
    from s2s_export.build import build

    root = tmp_path_factory.mktemp("engines")

    def make(name: str, *targets: str) -> Path:
        bundle = root / f"{name}.bundle"
        if not bundle.exists():
            shutil.copytree(exported(name)[1], bundle)
        for target in targets:
            build(bundle, target)
        return bundle

    return make
