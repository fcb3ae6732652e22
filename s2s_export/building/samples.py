"""Sources to try a model on: sentences through the bundle's own tokenizer, or random ones where it has none."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..bundle import Bundle
from ..errors import InputError, InvalidOption, S2SError
from ..runtime import text
from ..runtime.sources import Source, kind_of

SEED = 1706
MOST_WINDOWS = 4  # of sound: each takes as long to encode as a hundred sentences
LENGTHS = (1, 3, 5, 8, 12, 16, 24, 32)  # tokens of random sources
# Of different lengths and registers, with numbers, names and punctuation. Any language serves: what is measured is how
# large activations become, and every tokenizer can write these.
SENTENCES = (
    "Yes.",
    "The house is wonderful.",
    "How much does the train to Berlin cost, please?",
    "I don't think so.",
    "On 21 March 2024 the company reported a loss of $1,234.56 million.",
    "She said that she would come tomorrow, but nobody believed her.",
    "Stir the flour into 250 ml of warm milk, add two eggs and a pinch of salt, and let the dough rest for an hour.",
    "The committee's decision - which surprised many observers - was announced late on Friday evening.",
    "WARNING: do not open this cover!",
    "translate English to German: That is good.",
    "What he did not know was that the letter had already been sent, read, copied and burned.",
    "Dr. Anna Müller (Zürich) and Prof. José García (São Paulo) agree.",
    "It rained.",
    "The quick brown fox jumps over the lazy dog, and the dog, being lazy, does nothing about it whatsoever.",
    "Please call +49 30 123456 or write to info@example.org before 17:30.",
    "In 1905, Einstein published four papers; each of them changed physics.",
)


def sources(bundle: Bundle, count: int, file: str = "") -> tuple[list[Source], str]:
    """At most `count` sources within the model's limit, and in a few words where they come from.

    file: where to read them from, a line each, up to a tab.
    """
    reads_text = kind_of(bundle).has_ids
    if file and not reads_text:
        raise InvalidOption(f"{file}: holds text, which is not what the model reads; leave `samples` out")
    if file:
        return _read(bundle, count, Path(file))
    found: list[Source] = []
    entry = bundle.manifest.get("tokenizer")
    if entry and reads_text:
        try:
            tokenizer = text.load(bundle.path / "tokenizer", entry)
            found = [tokenizer.encode(sentence) for sentence in SENTENCES]
        except (S2SError, TypeError):
            found = []  # needs a language that only the user knows
    found = [ids[: bundle.max_source_length] for ids in found if ids]
    if found:
        return [
            found[i % len(found)] for i in range(min(count, len(found)))
        ], f"{min(count, len(found))} built-in sentences"
    count = count if reads_text else min(count, MOST_WINDOWS)
    return _random(bundle, count), f"{count} sources of random {'ids' if reads_text else 'values'}"


def columns_of(path: Path) -> list[list[str]]:
    """What stands between tabs in each line of a file of samples. Raises InvalidOption."""
    try:
        lines = text.lines_of(path)
    except OSError as error:
        raise InvalidOption(f"{path}: can't be read ({error.strerror or error}); expected a source a line") from error
    found = []
    for number, line in enumerate(lines, 1):
        try:
            if line.strip():
                found.append(text.from_utf8(line).split("\t"))
        except InputError as error:
            raise InvalidOption(f"{path}: line {number}: {error}") from error
    if not found:
        raise InvalidOption(f"{path}: has no lines; expected a source a line")
    return found


def _read(bundle: Bundle, count: int, path: Path) -> tuple[list[Source], str]:
    entry = bundle.manifest.get("tokenizer")
    if not entry:
        raise InvalidOption(f"{path}: can't be used as samples, as the bundle has no tokenizer; leave `samples` out")
    lines = [columns[0] for columns in columns_of(path)]
    tokenizer = text.load(bundle.path / "tokenizer", entry)
    spread = lines[:: max(1, len(lines) // count)][:count]
    limit = bundle.max_source_length
    found = [ids if limit is None else tokenizer.truncate(ids, limit) for ids in map(tokenizer.encode, spread)]
    return found, f"{len(found)} lines of {path.name}"


def _random(bundle: Bundle, count: int) -> list[Source]:
    rng = np.random.default_rng(SEED)
    kind = kind_of(bundle)
    limit = bundle.max_source_length or max(LENGTHS)
    lengths = [min(LENGTHS[i % len(LENGTHS)], limit) for i in range(count)]
    return [kind.random(rng, length) for length in lengths]
