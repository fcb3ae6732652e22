"""Generation options as command-line flags, by their Hugging Face names."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Collection
from typing import Any, TypeVar

import click

from ..errors import InvalidOption
from ._help import GENERATION, option

F = TypeVar("F", bound=Callable[..., Any])


class Name(click.Choice):
    """One of a few names; a wrong one is answered with all of them, and the nearest where one is near."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        known = [str(choice) for choice in self.choices]
        if str(value) not in known:
            near = difflib.get_close_matches(str(value), known, n=1, cutoff=0.7)  # gpu is not near to cpu
            meant = f"; did you mean '{near[0]}'?" if near else ""
            self.fail(f"{value!r} is none of {', '.join(known)}{meant}", param, ctx)
        return super().convert(value, param, ctx)


class EarlyStopping(click.ParamType):
    name = "true|false|never"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        known = {"true": True, "false": False, "never": "never"}
        if value not in known:
            self.fail(f"{value!r} is not one of true, false, never", param, ctx)
        return known[value]


FLAGS: dict[str, tuple[Any, str]] = {
    "num_beams": (int, "Number of beams; 1 is greedy search."),
    "num_return_sequences": (int, "Hypotheses returned for each source."),
    "length_penalty": (float, "Scores are divided by the length to this power."),
    "early_stopping": (EarlyStopping(), "Stop when there are as many finished hypotheses as beams."),
    "max_new_tokens": (int, "Most tokens to generate."),
    "max_length": (int, "Most tokens, decoder prompt included."),
    "min_length": (int, "Fewest tokens, decoder prompt included."),
    "min_new_tokens": (int, "Fewest tokens to generate."),
    "no_repeat_ngram_size": (int, "No n-gram of this size occurs twice."),
    "encoder_no_repeat_ngram_size": (int, "No n-gram of this size is copied from the source."),
    "repetition_penalty": (float, "Above 1, tokens that occurred already become less likely."),
    "do_sample": (bool, "Sample instead of taking the best tokens."),
    "temperature": (float, "Divides the logits before sampling."),
    "top_k": (int, "Sample from this many of the best tokens."),
    "top_p": (float, "Sample from the best tokens whose probabilities add up to this."),
    "seed": (int, "Seed of the sampling."),
}


def generation_options(command: F, without: Collection[str] = ()) -> F:
    """without: options that the command has in another form."""
    for name, (kind, text) in reversed(FLAGS.items()):
        if name in without:
            continue
        flag = f"--{name.replace('_', '-')}"
        if kind is bool:
            command = option(flag, name, section=GENERATION, is_flag=True, default=None, help=text)(command)
        else:
            command = option(flag, name, section=GENERATION, type=kind, help=text)(command)
    return command


def given(options: dict[str, Any]) -> dict[str, Any]:
    """The options that the user set; the others come from the checkpoint."""
    return {name: value for name, value in options.items() if value is not None}


def further_options(command: F) -> F:
    """--option NAME=VALUE: `named` puts what it holds among the options."""
    return option(
        "--option",
        "further",
        section=GENERATION,
        multiple=True,
        metavar="NAME=VALUE",
        help="Any other generation option by its Hugging Face name, its value as JSON or as text, such as "
        "'bad_words_ids=[[5]]'; may be repeated. docs/options.md has them all.",
    )(command)


def named(further: Collection[str], options: dict[str, Any]) -> dict[str, Any]:
    """The options that the user set, by flags and by --option. Raises InvalidOption."""
    found = given(options)
    for text in further:
        name, equals, value = text.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name:
            raise InvalidOption(f"--option is '{text}'; expected NAME=VALUE, such as --option num_beams=4")
        if name in found:
            raise InvalidOption(f"{name} is given twice; expected it once; leave out one of them")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found
