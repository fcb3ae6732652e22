"""`s2s inspect`: flags and printing."""

from __future__ import annotations

from typing import Any

import click

from ..engines import weights_line
from ._common import output_options, print_json
from ._help import LOOK, Command


@click.command("inspect", cls=Command, section=LOOK, short_help="Show what is in a bundle.")
@click.argument("bundle", type=click.Path())
@output_options
def command(bundle: str, quiet: bool, as_json: bool) -> None:
    """Print what BUNDLE holds: family, sizes, limits, graphs, languages, engines, and the error measured at export.

    For GPU engines, also how much memory decoding takes, and where the search runs.
    """
    from ..bundle import ENCODER, KINDS, read
    from ..engines import engines
    from ..measuring import gpu_memory

    opened = read(bundle, kinds=KINDS)
    built = engines(opened)
    plans = {} if opened.kind == ENCODER else gpu_memory.of_bundle(opened, built)
    if as_json:
        print_json({**opened.manifest, "engines": built, "memory_on_gpu": plans})
        return
    manifest = opened.manifest
    _section(str(opened.path), [
        ("family", f"{manifest['family']} (model type {manifest['model_type']})"),
        ("weights", f"{manifest['precision']}, {opened.n_bytes / 2**20:.1f} MiB in all"),
        ("sizes", ", ".join(f"{name} {value}" for name, value in manifest["sizes"].items())),
        ("reads", _source(manifest["source"])),
        ("limits", ", ".join(f"{name} {'none' if v is None else v}" for name, v in manifest["limits"].items())),
        ("tokenizer", _tokenizer(manifest.get("tokenizer"))),
        *([("head", _head(manifest["head"]))] if "head" in manifest else []),
        *([("generation", _named(manifest["generation"]))] if "generation" in manifest else []),
        ("made by", ", ".join(f"{name} {value}" for name, value in manifest.get("provenance", {}).items())),
    ])  # fmt: skip
    for name, graph in manifest["graphs"].items():
        _section(name, [*_values("in", graph["inputs"]), *_values("out", graph["outputs"])])
    outputs = manifest.get("parity", {}).get("outputs", [])
    _section("error against PyTorch", [
        (f"{o['graph']}/{o['output']}", f"{o['max_error']:.2e}, relative {o['relative']:.2e}") for o in outputs
    ])  # fmt: skip
    _section("engines", [(name, _engine(engine)) for name, engine in built.items()] or [("none", "see `s2s build`")])
    if plans:
        _section("memory on a GPU", gpu_memory.describe(plans))


def _named(values: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())


def _head(head: dict[str, Any]) -> str:
    """What an encoder's output is, and the names of its labels and prompts."""
    lists = {name: ", ".join(head[name]) for name in ("labels", "prompts") if head.get(name)}
    plain = {name: value for name, value in head.items() if name not in ("task", "labels", "prompts")}
    return "; ".join([head["task"], *filter(None, [_named(plain)]), *(f"{n}: {names}" for n, names in lists.items())])


def _source(source: dict[str, Any]) -> str:
    """The kind, and the sizes that it needs."""
    sizes = [f"{name} {value}" for name, value in source.items() if isinstance(value, int)]
    return ", ".join([source.get("kind", "token_ids"), *sizes])


def _section(title: str, rows: list[tuple[str, str]]) -> None:
    click.echo(title)
    width = max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        click.echo(f"  {name:<{width}}  {value}")


def _values(direction: str, entries: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Inputs or outputs of a graph; those that each layer has are one line, such as `self_key.*`."""
    lines: dict[str, str] = {}
    for entry in entries:
        stem, dot, _ = entry["name"].partition(".")
        lines[f"{stem}.*" if dot else stem] = f"{entry['dtype']} [{', '.join(map(str, entry['shape']))}]"
    return [(f"{direction} {name}", text) for name, text in lines.items()]


def _tokenizer(entry: dict[str, Any] | None) -> str:
    if not entry:
        return "none: takes token ids only"
    languages = entry.get("languages") or {}
    return str(entry["kind"]) + (f", {len(languages)} languages" if languages else "")


def _engine(engine: dict[str, Any]) -> str:
    parts = [f"{name} {engine[name]}" for name in ("backend", "precision", "made_for", "bytes") if name in engine]
    if "operators" in engine:
        parts.append("our own kernels" if engine["operators"] else "ONNX Runtime's kernels")
        if step := engine["graphs"].get("decoder_step"):  # an encoder alone has none
            takes_places = any(entry["name"] == "places" for entry in step["inputs"])
            parts.append("sources join batches" if takes_places else "whole batches")
    if weights := weights_line(engine):
        parts.append(f"weights: {weights}")
    return ", ".join(parts)
