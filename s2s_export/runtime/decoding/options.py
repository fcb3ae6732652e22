"""Every generation option, by its Hugging Face name, with the values generate() would end up using.

`resolve` follows `_prepare_generation_config`, `_prepare_special_tokens` and `_prepare_generated_length` of
`GenerationMixin` (transformers 5.17 to 5.23): what the user gives goes before the checkpoint's
generation_config.json, which goes before transformers' own defaults. Values derived there are derived here once, so
that the search reads plain numbers:

* `max_length` and `min_length` count the decoder prompt. `max_new_tokens` goes before `max_length` wherever either came
  from, `min_new_tokens` before `min_length`. With no limit at all 20 tokens are generated.
* the prompt starts with `decoder_start_token_id`, else `bos_token_id`; it is put in front of `decoder_input_ids` that
  start otherwise.

A limit that the user gives must fit the bundle. One that comes from the checkpoint is lowered to fit, as transformers
does with its own default: whoever exported with a shorter limit than the checkpoint's asked for that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import Any

from ...errors import InvalidOption, UnknownOption
from . import foreign_options, rules, search_options
from . import option_values as values
from .generation_options import GenerationOptions
from .option import Option

__all__ = ["GenerationOptions", "resolve", "token_ids_of"]


def resolve(
    defaults: Mapping[str, Any],
    overrides: Mapping[str, Any],
    *,
    vocabulary_size: int,
    max_target_length: int | None = None,
    reads_source_ids: bool = True,
) -> GenerationOptions:
    """The options of one call.

    defaults: the contents of the checkpoint's generation_config.json. overrides: what the user gave, by name; None
    means unset where generate() allows it. max_target_length: most tokens the decoder can be fed, None where it has
    no limit. reads_source_ids: whether sources are token ids, which rules may read.
    Raises UnknownOption for a name nobody knows, and one InvalidOption that names everything else that is wrong.
    """
    problems: dict[str, str] = {}
    inherited: dict[str, str] = {}
    chosen = _global_defaults()
    chosen.update(_from_checkpoint(defaults, inherited))
    chosen.update(_from_user(overrides, problems))
    if chosen["max_length"] is None and chosen["max_new_tokens"] is None:
        problems.setdefault("max_length", "max_length is None, expected a value, or one of max_new_tokens")
    for name, text in inherited.items():
        if name not in overrides and not _is_unread(name, chosen):
            problems[name] = text
    _require_vocabulary(chosen, vocabulary_size, problems)
    if not reads_source_ids:
        _require_no_source_rules(chosen, problems)
    # A contradiction is only worth telling between values that are good in themselves.
    messages = [text for names, wrong, text in _contradictions(chosen) if wrong and problems.keys().isdisjoint(names)]
    if not problems and not messages:
        messages = _settle_lengths(chosen, defaults, overrides, max_target_length)
    messages = [*problems.values(), *messages]
    if messages:
        what = "a generation option" if len(messages) == 1 else f"{len(messages)} generation options"
        raise InvalidOption(f"{what} can't be used: {'; '.join(messages)}. Change or leave out what is named")
    return GenerationOptions.of(chosen)


def _from_checkpoint(defaults: Mapping[str, Any], problems: dict[str, str]) -> dict[str, Any]:
    """Its options that are set. A null there means unset; a name that transformers does not read is passed over."""
    found: dict[str, Any] = {}
    known = _converters()
    for name, value in defaults.items():
        if value is None:
            continue
        if name in known:
            if isinstance(value, (int, float)) and value in (0, 1):
                # generate() asks whether these are true, but whether early_stopping is True, which a 1 is not.
                if known[name] is values.boolean:
                    value = bool(value)
                elif name == "early_stopping":
                    value = value is True
            _convert_into(found, name, value, known[name], problems, " in the checkpoint's generation_config.json")
        elif (reason := foreign_options.refusal(name, value, is_default=True)) is not None:
            problems[name] = f"{reason}, and the checkpoint's generation_config.json asks for it"
    return found


def _is_unread(name: str, chosen: Mapping[str, Any]) -> bool:
    """Whether generate() does not look at this option of the checkpoint because of others, so that it may be bad."""
    of_rule = rules.options().get(name)
    if of_rule is not None and of_rule.sampling_range is not None:
        return not chosen["do_sample"]
    if name == "top_k":  # choosing between greedy and contrastive search, generate() looks at it too
        return bool(not chosen["do_sample"] and chosen["num_beams"] > 1)
    if name in ("max_length", "min_length"):
        return chosen[name.replace("_length", "_new_tokens")] is not None
    if name == "length_penalty":
        return bool(chosen["num_beams"] == 1)
    if name == "dola_layers":
        return bool(chosen["num_beams"] > 1)
    if name == "penalty_alpha":  # contrastive search is greedy, over the best k tokens
        return bool(chosen["do_sample"] or chosen["num_beams"] > 1 or (chosen["top_k"] or 0) <= 1)
    return False


def _from_user(overrides: Mapping[str, Any], problems: dict[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    known = _converters()
    for name, value in overrides.items():
        if name in known:
            if value is None and name in _NEVER_NONE:
                problems[name] = f"{name} is None, expected a value"
            elif value is None:
                found[name] = () if name == "eos_token_id" else None
            else:
                _convert_into(found, name, value, known[name], problems)
        elif not foreign_options.is_foreign(name):
            raise UnknownOption(name, known, "generation option")
        elif (reason := foreign_options.refusal(name, value, is_default=False)) is not None:
            problems[name] = reason
    return found


def _convert_into(
    found: dict[str, Any], name: str, value: Any, convert: values.Convert, problems: dict[str, str], where: str = ""
) -> None:
    try:
        found[name] = convert(value)
    except values.BadValue as bad:
        problems[name] = f"{name} is {value!r}{where}, expected {bad}"


def _require_no_source_rules(chosen: Mapping[str, Any], problems: dict[str, str]) -> None:
    for name, option in _declared().items():
        if option.reads_source and chosen[name] not in (None, option.default):
            problems[name] = f"{name} is {chosen[name]}, but the model's sources have no token ids for it to read"


def _require_vocabulary(chosen: Mapping[str, Any], vocabulary_size: int, problems: dict[str, str]) -> None:
    for name, ids_of in _token_ids().items():
        value = chosen.get(name)
        wrong = sorted({i for i in ids_of(value) if not 0 <= i < vocabulary_size}) if value is not None else []
        if wrong:
            listed = ", ".join(map(str, wrong[:8])) + (", ..." if len(wrong) > 8 else "")
            problems[name] = f"{name} has {listed}, expected token ids from 0 to {vocabulary_size - 1}"


def _contradictions(chosen: Mapping[str, Any]) -> list[tuple[tuple[str, ...], bool, str]]:
    """(the options concerned, whether they contradict each other or generate(), the message)."""
    n_beams, n_returned, samples = chosen["num_beams"], chosen["num_return_sequences"], bool(chosen["do_sample"])
    suppressed = set(chosen["suppress_tokens"] or ())
    forced_bos = {chosen["forced_bos_token_id"]} - {None}
    forced_eos = set(chosen["forced_eos_token_id"] or ())
    alternatives = bool(chosen["return_alternatives"])
    beams = ("num_beams", "num_return_sequences", "do_sample")
    found = [
        (beams, n_beams == 1 and n_returned > 1 and not samples and not alternatives,
         f"num_return_sequences is {n_returned}, expected 1 where num_beams is 1 and do_sample is not set"),
        (beams, 1 < n_beams < n_returned and not alternatives,
         f"num_return_sequences is {n_returned}, expected at most num_beams, {n_beams}"),
        (("forced_bos_token_id", "suppress_tokens"), bool(forced_bos) and forced_bos <= suppressed,
         f"forced_bos_token_id {chosen['forced_bos_token_id']} is also in suppress_tokens"),
        (("forced_eos_token_id", "suppress_tokens"), bool(forced_eos) and forced_eos <= suppressed,
         f"forced_eos_token_id {sorted(forced_eos)} is also in suppress_tokens"),
        (("exponential_decay_length_penalty", "eos_token_id"),
         chosen["exponential_decay_length_penalty"] is not None and not chosen["eos_token_id"],
         "exponential_decay_length_penalty needs eos_token_id, which is not set"),
        (("decoder_start_token_id", "bos_token_id"),
         chosen["decoder_start_token_id"] is None and chosen["bos_token_id"] is None,
         "decoder_start_token_id and bos_token_id are both unset, expected one of them"),
    ]  # fmt: skip
    found += search_options.contradictions(chosen)
    ranges = {name: option.sampling_range for name, option in rules.options().items() if option.sampling_range}
    for name, (fits, expected) in ranges.items():
        value = chosen[name]
        wrong = samples and value is not None and not fits(value)
        found.append(((name,), wrong, f"{name} is {value}, expected {expected}"))
    return found


def _settle_lengths(
    chosen: dict[str, Any], defaults: Mapping[str, Any], overrides: Mapping[str, Any], max_target_length: int | None
) -> list[str]:
    """Makes of the limits given the final `max_length` and `min_length`, prompt included. Returns what is wrong."""
    prompt_length = len(GenerationOptions.of(chosen).prompt)
    messages = []
    # The last token of an output is never fed, so an output may be one longer than what can be fed.
    longest = None if max_target_length is None else max_target_length + 1
    name = "max_new_tokens" if chosen["max_new_tokens"] is not None else "max_length"
    max_length: int = chosen[name]
    if name == "max_new_tokens":
        max_length += prompt_length
    elif overrides.get(name) is None and defaults.get(name) is None:
        # transformers lowers its own default to the number of positions, one less than would do.
        max_length += prompt_length
        longest = max_target_length
    if longest is not None and max_length > longest:
        if overrides.get(name) is not None:
            messages.append(
                f"{name} is {overrides[name]}, which allows outputs of {max_length} tokens, expected at most {longest} "
                "(the limit that the bundle was exported with)"
            )
        max_length = longest
    if prompt_length >= max_length:
        messages.append(f"the decoder prompt has {prompt_length} tokens, expected fewer than max_length, {max_length}")
    for guide in chosen["guides"] or ():
        if guide.longest is not None and prompt_length + guide.longest >= max_length:
            messages.append(
                f"a choice has {guide.longest} tokens and an end token, but there is room for "
                f"{max_length - prompt_length}; raise max_new_tokens or leave it out"
            )
    chosen["max_length"] = max_length
    if chosen["min_new_tokens"] is not None:
        chosen["min_length"] = chosen["min_new_tokens"] + prompt_length
    return messages


def _global_defaults() -> dict[str, Any]:
    """What transformers sets where neither the user nor the checkpoint does (its `_get_default_generation_params`)."""
    own = {field.name: field.default for field in fields(GenerationOptions) if field.name != "of_rules"}
    return {**own, "max_length": 20, **{name: option.default for name, option in _declared().items()}}


def _converters() -> dict[str, values.Convert]:
    """Of every option, by name."""
    return {**_CONVERT, **{name: option.convert for name, option in _declared().items()}}


def _declared() -> dict[str, Option]:
    """The options that are declared elsewhere: by rules, and for searches of our own."""
    return {**rules.options(), **search_options.OPTIONS}


def _token_ids() -> dict[str, Callable[[Any], Iterable[int]]]:
    """How token ids are found in a value, of every option that has some."""
    of_rules = {name: option.token_ids for name, option in _declared().items() if option.token_ids is not None}
    return {**_TOKEN_IDS, **of_rules}


def token_ids_of(options: GenerationOptions) -> set[int]:
    """Every token id that the options name."""
    named = options.values()
    return {i for name, ids_of in _token_ids().items() if named[name] is not None for i in ids_of(named[name])}


# Options of the search itself. Those of a decoding rule are in the rule's file.
_CONVERT: Mapping[str, values.Convert] = {
    "max_length": values.integer(1, whole_floats=True),
    "max_new_tokens": values.integer(1, whole_floats=True),
    "min_new_tokens": values.integer(0),
    "num_beams": values.integer(1),
    "num_return_sequences": values.integer(1, whole_floats=True),
    # Far beyond 64, where length alone decides, length**penalty leaves a float's range.
    "length_penalty": values.number("a number from -64 to 64", lambda v: -64.0 <= v <= 64.0),
    "early_stopping": values.early_stopping,
    "decoder_start_token_id": values.one_token_id,
    "bos_token_id": values.special_token_id,
    "eos_token_id": values.token_ids,
    "pad_token_id": values.special_token_id,
    "decoder_input_ids": values.prompt,
    "do_sample": values.boolean,
    "seed": values.integer(0),
}

_NEVER_NONE = frozenset({"num_beams", "num_return_sequences", "length_penalty"})


def _one(value: int) -> tuple[int, ...]:
    return (value,)


def _several(value: tuple[int, ...]) -> tuple[int, ...]:
    return value


_TOKEN_IDS: Mapping[str, Callable[[Any], Iterable[int]]] = {
    "decoder_start_token_id": _one,
    "bos_token_id": _one,
    "pad_token_id": _one,
    "eos_token_id": _several,
    "decoder_input_ids": _several,
}
