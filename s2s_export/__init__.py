"""s2s_export: trained encoder-decoders as three deployable graphs, and a runtime without torch that drives them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from .exporting.export import export
    from .runtime.decoding import Hypothesis
    from .runtime.session import Session, load

__all__ = ["Hypothesis", "Session", "__version__", "export", "load"]


def __getattr__(name: str) -> Any:
    # Lazily: `load` must not pull in what only `export` needs, and importing the package must stay cheap.
    if name == "export":
        from .exporting.export import export

        return export
    if name in ("load", "Session"):
        from .runtime import session

        return getattr(session, name)
    if name == "Hypothesis":
        from .runtime.decoding import Hypothesis

        return Hypothesis
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
