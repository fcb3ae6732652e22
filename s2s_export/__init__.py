"""s2s_export: trained encoder-decoders as three deployable graphs, and a runtime without torch that drives them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from .exporting.export import export
    from .exporting.own_module.attention import TransformerModule
    from .exporting.own_module.cached_attention import cached_attention
    from .exporting.own_module.config import Features, ModuleConfig, Pictures
    from .exporting.own_module.export import export_module
    from .runtime.decoding import Hypothesis
    from .runtime.encoding import EncoderSession, load_encoder
    from .runtime.session import Session, load

__all__ = [
    "EncoderSession",
    "Features",
    "Hypothesis",
    "ModuleConfig",
    "Pictures",
    "Session",
    "TransformerModule",
    "__version__",
    "cached_attention",
    "export",
    "export_module",
    "load",
    "load_encoder",
]
# What `export_module` needs, by the module of exporting/own_module that defines it.
_OWN_MODULE = {
    "export_module": "export",
    **dict.fromkeys(("Features", "ModuleConfig", "Pictures"), "config"),
    "TransformerModule": "attention",
    "cached_attention": "cached_attention",
}


def __getattr__(name: str) -> Any:
    # Lazily: `load` must not pull in what only `export` needs, and importing the package must stay cheap.
    if name == "export":
        from .exporting.export import export

        return export
    if name in _OWN_MODULE:
        from importlib import import_module

        try:
            found = import_module(f".exporting.own_module.{_OWN_MODULE[name]}", __name__)
        except ImportError as error:
            from .errors import MissingExtra

            raise MissingExtra(error.name or "torch", "export", f"s2s_export.{name}") from error
        return getattr(found, name)
    if name in ("load", "Session"):
        from .runtime import session

        return getattr(session, name)
    if name in ("load_encoder", "EncoderSession"):
        from .runtime import encoding

        return getattr(encoding, name)
    if name == "Hypothesis":
        from .runtime.decoding import Hypothesis

        return Hypothesis
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
