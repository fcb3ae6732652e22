"""generate() of transformers 4, which still has diverse beam search and constraints, run by a process of its own.

    PYTHONPATH=FOLDER python transformers4.py < cases.json > outcomes.json

FOLDER is what `pip install --target FOLDER 'transformers<4.50'` made. A case is [checkpoint, source, options]; its
outcome is the token ids and the scores of its outputs.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def main() -> None:
    import torch
    import transformers

    assert transformers.__version__.startswith("4."), transformers.__version__
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    models: dict[str, Any] = {}
    outcomes = []
    for checkpoint, source, options in json.load(sys.stdin):
        if checkpoint not in models:
            models[checkpoint] = transformers.AutoModelForSeq2SeqLM.from_pretrained(checkpoint).eval()
        with torch.no_grad():
            found = models[checkpoint].generate(
                torch.tensor([source]), return_dict_in_generate=True, output_scores=True, **options
            )
        outcomes.append([found.sequences.tolist(), found.sequences_scores.tolist()])
    json.dump(outcomes, sys.stdout)


if __name__ == "__main__":
    main()
