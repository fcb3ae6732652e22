"""Bundles with CPU engines, built once a run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))


@pytest.fixture(scope="session")
def built(exported):
    """built(name, *targets) -> the bundle of a tiny family with these engines."""
    from s2s_export.build import build

    def make(name: str, *targets: str) -> Path:
        bundle = exported(name)[1]
        for target in targets:
            build(bundle, target)
        return bundle

    return make
