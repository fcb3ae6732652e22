"""Encoders alone, as transformers has them: which class loads a checkpoint, and what its head is.

A checkpoint's architecture says what it is for. ...ForSequenceClassification and ...ForTokenClassification give labels;
...Model, ...ForMaskedLM and ...ForPreTraining give the encoder's states, and their own heads are left out.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from ...errors import UnsupportedModel
from ..graphs.encoder_model import Classifier, EncoderModel
from ..graphs.structure import Linear, Norm, PositionTable, Stack
from . import Family

CLASSIFIERS = ("ForSequenceClassification", "ForTokenClassification")
STATES = ("Model", "ForMaskedLM", "ForPreTraining")
# Of heads that nothing here reads: a checkpoint of one class may lack those of another.
UNUSED = ("pooler.",)
Layers = tuple[tuple[Linear, str] | Norm, ...]


def load(path: Path, config: dict[str, Any]) -> Any:
    """The model of the class that its checkpoint's architecture asks for. Raises UnsupportedModel for another."""
    from ..checkpoint import load_transformers_model

    name = str((config.get("architectures") or ["Model"])[0])
    if config.get("is_decoder"):
        raise UnsupportedModel(
            f"{path}: config.json has is_decoder, so that each token sees only those before it; expected an encoder, "
            "whose tokens see one another"
        )
    if not name.endswith((*CLASSIFIERS, *STATES)):
        raise UnsupportedModel(
            f"{path}: config.json says that it is a {name}; expected an architecture that ends with one of "
            f"{', '.join((*STATES, *CLASSIFIERS))}"
        )
    head = next((head for head in CLASSIFIERS if name.endswith(head)), "")
    notices: list[str] = []
    model = load_transformers_model(path, config, notices, f"AutoModel{head}", UNUSED)
    model.notices = notices
    return model


def family(
    name: str,
    model: Any,
    stack: Stack,
    classifier_of: dict[str, Any],
    longest: int | None = None,
    *,
    norm_first: bool = False,
    pools_mean: bool = False,
) -> Family:
    """classifier_of: by the end of a class's name, what gives the layers of its head. longest: source, in tokens.

    pools_mean: whether a head of the whole source reads the mean of its tokens, and not the first.
    """
    cls = type(model).__name__
    found = next((end for end in classifier_of if cls.endswith(end)), None)
    classifier = None
    if found is not None:
        of_tokens = found == "ForTokenClassification"
        classifier = Classifier(classifier_of[found](model), of_tokens, pools_mean and not of_tokens)
    if longest is None:
        assert isinstance(stack.positions, PositionTable)
        longest = len(stack.positions.table) - stack.positions.offset
    return Family(name, EncoderModel(stack, norm_first, classifier), longest, None)


def typed(stack: Stack, table: Any) -> Stack:
    """The stack, whose tokens of type 0 are as they were, with types. table [n, W]: the embedding of each."""
    return stack if len(table) < 2 else dataclasses.replace(stack, types=table - table[:1])


def tokens_head(model: Any) -> Layers:
    """One projection of every token's state."""
    return ((Linear.of(model.classifier), "linear"),)


def _cross_encoder_activation(config: Any) -> str | None:
    """What sentence-transformers' CrossEncoder wrote into config.json of a reranker; None where it wrote nothing."""
    section = getattr(config, "sentence_transformers", None)
    name = section.get("activation_fn") if isinstance(section, dict) else None
    name = str(name or getattr(config, "sbert_ce_default_activation_function", None) or "").rpartition(".")[2]
    return {"Identity": "none", "Sigmoid": "sigmoid"}.get(name)


def head_of(model: Any) -> dict[str, Any]:
    """The manifest's `head` of a classifier: labels and activation. `model` has a config of transformers."""
    config = model.config
    n_labels = int(config.num_labels)
    names = config.id2label or {}
    labels = [str(names.get(i, names.get(str(i), f"LABEL_{i}"))) for i in range(n_labels)]
    if type(model).__name__.endswith("ForTokenClassification"):
        return {"task": "token_classification", "labels": labels, "activation": "softmax"}
    problem = config.problem_type
    # As transformers' pipeline: a single label is a probability of its own, a regression's value is none.
    activation = {"regression": "none", "multi_label_classification": "sigmoid"}.get(
        problem, "sigmoid" if n_labels == 1 else "softmax"
    )
    if n_labels == 1 and (own := _cross_encoder_activation(config)) is not None:
        activation = own
    return {"task": "sequence_classification", "labels": labels, "activation": activation}
