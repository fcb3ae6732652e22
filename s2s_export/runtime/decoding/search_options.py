"""Options of the search itself that are not generate()'s of transformers 5, each an `Option` as a rule's are.

They change which candidates a search follows or where it ends, so they are no rules. The search on a GPU has none of
them: `in_use` names those that a call switches on, and it refuses them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import option_values as values
from .generation_options import GenerationOptions
from .option import Option

OPTIONS: Mapping[str, Option] = {
    # How many outputs finish before a source is closed, in multiples of num_beams (arXiv 2204.05424).
    "patience": Option(values.above_0, default=1.0),
    # beta of the coverage penalty of GNMT (arXiv 1609.08144, equation 14).
    "coverage_penalty": Option(values.number("a number of at least 0", lambda value: value >= 0.0), default=0.0),
    # Diverse beam search (arXiv 1610.02424), as transformers 4 had it.
    "num_beam_groups": Option(values.integer(1), default=1),
    "diversity_penalty": Option(values.number("a number of at least 0", lambda value: value >= 0.0), default=0.0),
    # Most generated tokens for each token of the source.
    "max_length_ratio": Option(values.above_0),
    "stop_strings": Option(values.stop_strings),
    "return_alternatives": Option(values.boolean, default=False),
    "min_alternative_expansion_prob": Option(
        values.number("a number from 0 to 1", lambda value: 0.0 <= value <= 1.0), default=0.0
    ),
    "force_words_ids": Option(values.force_words, token_ids=lambda words: [i for w in words for a in w for i in a]),
    "terms": Option(values.terms, token_ids=lambda terms: terms.target_ids(), reads_source=True),
}
# Of no effect by themselves: they say how another option works.
ONLY_WITH = {"diversity_penalty": "num_beam_groups", "min_alternative_expansion_prob": "return_alternatives"}


def in_use(options: GenerationOptions) -> list[str]:
    """The names of those that these options switch on."""
    given = options.values()
    return [
        name
        for name, option in OPTIONS.items()
        if name not in ONLY_WITH and given.get(name) not in (None, option.default)
    ]


def contradictions(chosen: Mapping[str, Any]) -> list[tuple[tuple[str, ...], bool, str]]:
    """(the options concerned, whether they contradict each other, the message): see `options.resolve`."""
    n_beams, n_groups, n_returned = chosen["num_beams"], chosen["num_beam_groups"] or 1, chosen["num_return_sequences"]
    patience = chosen["patience"] or 1.0
    n_outputs = n_groups * pool_size(n_beams // n_groups or 1, patience)
    constrained = [name for name in ("force_words_ids", "terms") if chosen[name]]
    grouped = n_groups > 1
    alternatives = bool(chosen["return_alternatives"])
    special = [
        *constrained,
        *(["num_beam_groups"] if grouped else []),
        *(["return_alternatives"] if alternatives else []),
    ]
    stops = set(chosen["eos_token_id"] or ())
    is_whole = any(guide.is_whole for guide in chosen["guides"] or ())
    cut = [name for name in ("stop_strings", "max_length_ratio") if chosen[name]]
    forced = {i for word in chosen["force_words_ids"] or () for way in word for i in way}
    forced |= set(chosen["terms"].target_ids()) if chosen["terms"] else set()
    return [
        (("num_beams", "num_beam_groups"), grouped and n_beams % n_groups != 0,
         f"num_beam_groups is {n_groups}, expected a divisor of num_beams, {n_beams}"),
        (("num_beam_groups", "diversity_penalty"), not grouped and bool(chosen["diversity_penalty"]),
         f"diversity_penalty is {chosen['diversity_penalty']}, expected num_beam_groups above 1 beside it"),
        (("num_beams", "patience"), patience != 1.0 and n_beams == 1,
         f"patience is {patience}, expected num_beams above 1 beside it"),
        (("num_beams", "patience", "num_return_sequences"),
         n_beams > 1 and not alternatives and n_outputs < n_returned <= n_beams,
         f"patience is {patience}, which finishes {n_outputs} outputs, expected at least num_return_sequences, "
         f"{n_returned}"),
        (("num_beams", *constrained), bool(constrained) and n_beams == 1,
         f"{' and '.join(constrained)} needs a beam search, expected num_beams above 1"),
        (("do_sample", *special), bool(special) and bool(chosen["do_sample"]),
         f"{' and '.join(special)} can't be used when sampling, expected do_sample unset"),
        (tuple(special), len(special) > len(constrained) and len(special) > 1,
         f"{' and '.join(special)} can't be combined, expected one of them"),
        (("guides", "stop_strings", "max_length_ratio"), is_whole and bool(cut),
         f"{' and '.join(cut)} would cut what choices or a regex allow, expected one or the other"),
        (("eos_token_id", *constrained), bool(forced & stops),
         f"{' and '.join(constrained)} has the end token {sorted(forced & stops)}, expected text only"),
        (("coverage_penalty", "num_beams"), bool(chosen["coverage_penalty"]) and n_beams == 1 and not alternatives,
         "coverage_penalty ranks finished outputs of a beam search, expected num_beams above 1"),
        (("min_alternative_expansion_prob", "return_alternatives"),
         bool(chosen["min_alternative_expansion_prob"]) and not alternatives,
         "min_alternative_expansion_prob needs return_alternatives, which is not set"),
        (("target_prefix_ids", "prefix_bias_beta"),
         bool(chosen["target_prefix_ids"]) and not chosen["prefix_bias_beta"],
         "target_prefix_ids needs prefix_bias_beta, which is not set; decoder_input_ids forces a beginning"),
        (("prefix_bias_beta", "target_prefix_ids"),
         bool(chosen["prefix_bias_beta"]) and not chosen["target_prefix_ids"],
         f"prefix_bias_beta is {chosen['prefix_bias_beta']}, expected target_prefix beside it"),
    ]  # fmt: skip


def pool_size(n_beams: int, patience: float | None) -> int:
    """How many finished outputs of a source are kept, and have to be there before the source is closed."""
    return max(1, round(n_beams * (patience or 1.0)))
