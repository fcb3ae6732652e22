"""A bundle with text that every test of the server shares: the trained one of examples/, on the portable graphs."""

from __future__ import annotations

from pathlib import Path

import pytest
from serving_client import serving

import s2s_export

CHECKPOINT = Path(__file__).parents[2] / "examples" / "models" / "number-words"


@pytest.fixture(scope="session")
def words(tmp_path_factory) -> Path:
    bundle = tmp_path_factory.mktemp("served") / "en-mul"
    s2s_export.export(CHECKPOINT, bundle)
    return bundle


@pytest.fixture(scope="session")
def session(words):
    return s2s_export.load(words, threads=1)


@pytest.fixture(scope="module")
def served(words):
    """A server over the bundle, by the name en-mul."""
    with serving([f"en-mul={words}"], workers=2) as found:
        yield found
