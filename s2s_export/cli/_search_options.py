"""Flags for what a search is asked beyond generate()'s options; docs/options.md explains each."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..errors import InputError, UsageError
from ._help import ENGINE, MORE, option

if TYPE_CHECKING:
    from ..runtime.finishing import Finishing
    from ..runtime.session import Session

F = TypeVar("F", bound=Callable[..., Any])

NUMBERS: dict[str, tuple[type, str]] = {
    "patience": (float, "Finish this many times num_beams outputs before a search ends."),
    "coverage_penalty": (float, "Weight of the coverage penalty of GNMT in the scores of outputs."),
    "num_beam_groups": (int, "Diverse beam search: split the beams into this many groups."),
    "diversity_penalty": (float, "Lower a token's score for each beam of an earlier group that takes it."),
    "presence_penalty": (float, "Lower the scores of tokens that occurred already."),
    "frequency_penalty": (float, "Lower the scores of tokens by this for each time that they occurred."),
    "max_length_ratio": (float, "Most tokens to generate for each token of the source."),
    "min_length_ratio": (float, "Fewest tokens to generate for each token of the source."),
    "prefix_bias_beta": (float, "Draw outputs to --target-prefix with this weight instead of forcing it."),
    "min_alternative_expansion_prob": (float, "Least probability of an alternative's first token."),
}
TEXTS: dict[str, tuple[str, str]] = {
    "target_prefix": ("TEXT", "The beginning of every output."),
    "typed_prefix": ("TEXT", "The beginning of every output as typed; its last word may be unfinished."),
    "terms": ("GLOSSARY.TSV", "Terms: source form, tab, target form (tab, another target form ...)."),
    "regex": ("PATTERN", "Every output matches this regular expression as a whole."),
}
LISTS: dict[str, str] = {
    "force_words": "A text that every output holds; may be repeated.",
    "stop_strings": "A text that ends an output; may be repeated.",
    "keep": "Copy what this pattern matches from the source; or gettext, icu, qt, html, url; may be repeated.",
}
FLAGS = {
    "keep_unknown": "Copy words of the source that the vocabulary can't spell.",
    "mbr": "Order the outputs of a source by minimum Bayes risk with chrF.",
    "confidence": "With --json: the probability of each word and of the whole output.",
    "return_alternatives": "Return --num-return-sequences outputs that begin with the most likely tokens.",
}


def search_options(command: F) -> F:
    """The flags of NUMBERS, TEXTS, LISTS, FLAGS, and --choices."""
    choices = option(
        "--choices",
        section=MORE,
        type=click.File("rb"),
        metavar="FILE",
        callback=_lines,
        help="Every output is a line of this file.",
    )
    command = choices(command)
    for name, text in reversed(FLAGS.items()):
        command = option(_flag(name), name, section=MORE, is_flag=True, default=None, help=text)(command)
    for name, text in reversed(LISTS.items()):
        command = option(_flag(name), name, section=MORE, multiple=True, callback=_none, help=text)(command)
    for name, (metavar, text) in reversed(TEXTS.items()):
        command = option(_flag(name), name, section=MORE, metavar=metavar, help=text)(command)
    for name, (kind, text) in reversed(NUMBERS.items()):
        command = option(_flag(name), name, section=MORE, type=kind, help=text)(command)
    return command


def ensemble_options(command: F) -> F:
    """--ensemble and --ensemble-average."""
    command = option(
        "--ensemble-average",
        section=ENGINE,
        default="log_probs",
        show_default=True,
        help="What an ensemble averages: log_probs (Marian) or probs (fairseq).",
    )(command)
    return option(
        "--ensemble",
        section=ENGINE,
        multiple=True,
        metavar="BUNDLE",
        help="Decode with the average of this bundle too, which has the same vocabulary; may be repeated.",
    )(command)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _none(context: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> list[str] | None:
    """Unset where the flag was not given."""
    return list(value) or None


def _lines(context: click.Context, parameter: click.Parameter, value: Any) -> list[str] | None:
    if value is None:
        return None
    from ..runtime.text import from_utf8, read_lines

    found = [from_utf8(line) for line in read_lines(value)]
    if not [line for line in found if line.strip()]:
        raise InputError(f"--choices {value.name}: has no lines; expected an allowed output in each")
    return [line for line in found if line.strip()]


def finishing_of(options: dict[str, Any], session: Session, *, stream: bool) -> Finishing:
    """What is done to outputs, taken out of the options. Raises InvalidOption, UsageError."""
    from ..runtime.finishing import Finishing

    found = Finishing(
        confidence=bool(options.pop("confidence")),
        mbr=bool(options.pop("mbr")),
        keep=tuple(options.pop("keep") or ()),
        keep_unknown=bool(options.pop("keep_unknown")),
    )
    if stream and found != Finishing():
        raise UsageError("--stream prints text while it is decoded; leave out --mbr, --keep and --confidence")
    found.check(session)
    return found
