"""The Python interface: export a checkpoint, open the bundle, translate, and look at n-best lists and a stream.

    python examples/02_export_and_translate.py

Exporting needs s2s-export[export]; everything after it needs the base install only.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import s2s_export

CHECKPOINT = Path(__file__).parent / "models" / "number-words"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "number-words.bundle"
        report = s2s_export.export(CHECKPOINT, bundle)
        worst = max(error.relative for error in report.parity)
        print(f"exported {report.manifest['family']}, largest relative error against PyTorch {worst:.1e}\n")

        session = s2s_export.load(bundle)
        texts = [">>deu<< nineteen ninety-eight", ">>fra<< the third of March 1998"]
        for text, translation in zip(texts, session.translate(texts), strict=True):
            print(f"{text}  ->  {translation}")

        print("\nthe three best, with scores:")
        (hypotheses,) = session.generate([session.encode(texts[0])], num_beams=6, num_return_sequences=3)
        for hypothesis in hypotheses:
            print(f"{hypothesis.score:8.4f}  {hypothesis.text}")

        print("\npiece by piece, with four beams:")
        for part in session.stream(texts[1], num_beams=4):
            print(part, end="|", flush=True)
        print()


if __name__ == "__main__":
    main()
