"""Where the folder `plugins/` is, and its Python modules.

The folder is sources (CUDA, C++, Python) that people may also take without this package. In a checkout it lies beside
the package, in a wheel under `_data`. Its modules are imported as `s2s_plugins.*`.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from s2s_export.errors import BuildError

PACKAGE = "s2s_plugins"


def folder() -> Path:
    """The folder `plugins/`. Raises BuildError when this installation lacks it."""
    here = Path(__file__).resolve().parent
    candidates = (here / "_data" / "plugins", here.parent / "plugins")
    for candidate in candidates:
        if (candidate / "__init__.py").is_file():
            return candidate
    raise BuildError(
        f"no plugin sources in {' or '.join(map(str, candidates))}; they come with the package; "
        "reinstall s2s-export, or build without plugins"
    )


def module(name: str = "") -> ModuleType:
    """The plugins' package, or a module of it: `module("build")`, `module("cross_attention.reference")`."""
    if PACKAGE not in sys.modules:
        root = folder()
        spec = importlib.util.spec_from_file_location(
            PACKAGE, root / "__init__.py", submodule_search_locations=[str(root)]
        )
        assert spec is not None and spec.loader is not None
        package = importlib.util.module_from_spec(spec)
        sys.modules[PACKAGE] = package
        try:
            spec.loader.exec_module(package)
        except BaseException:
            del sys.modules[PACKAGE]
            raise
    return importlib.import_module(f"{PACKAGE}.{name}" if name else PACKAGE)
