"""Names that tests are made for; a conftest can't be imported by name."""

FAMILIES = ["marian", "marian-two-vocabularies", "bart", "mbart", "m2m_100", "pegasus", "t5", "t5-gated", "mt5"]
RECURRENT = {
    "lstm": {"model": "lstm"},
    "gru": {"model": "gru"},
    "attention": {"model": "attention", "score": "dot", "cell": "lstm", "encoder_layers": 1},
}
