"""torch.nn.Transformer without a step function: Tajik to Persian script with the model of the package tg2fa-translit.

    pip install --no-deps tg2fa-translit
    python examples/06_tajik_to_persian.py [--bundle FOLDER] [WORD...]

The package runs the decoder over all letters so far for each new letter. Its nn.Transformer goes into a
`TransformerModule`, whose layers the export recognises: keys and values are cached, and nothing is traced.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path

import s2s_export


def package_parts() -> tuple[object, dict[str, int], dict[int, str]]:
    """The package's model, its Cyrillic vocabulary, and its Persian letters by id."""
    try:
        from tg2fa_translit.decode import fa_voc, tg_voc
        from tg2fa_translit.transformer import transformer
    except ImportError as error:
        raise SystemExit("the package tg2fa-translit is not installed; pip install --no-deps tg2fa-translit") from error
    return transformer, tg_voc, fa_voc


def module() -> s2s_export.TransformerModule:
    model = package_parts()[0]
    return s2s_export.TransformerModule(
        model.transformer,
        source_embedding=model.src_tok_emb.embedding,
        target_embedding=model.tgt_tok_emb.embedding,
        output=model.generator,
        positions=model.positional_encoding.pos_embedding[:512],
        embedding_scale=math.sqrt(model.src_tok_emb.emb_size),
    )


CONFIG = s2s_export.ModuleConfig(
    decoder_start_token_id=2, eos_token_id=3, pad_token_id=1, source_vocabulary_size=43, name="tg2fa-translit"
)


def ids_of(word: str) -> list[int]:
    letters = package_parts()[1]
    return [2, *(letters[letter] for letter in word), 3]


def text_of(ids: list[int]) -> str:
    """As the package: all but the first and the last, which is the end where the decoder came to one."""
    letters = package_parts()[2]
    return "".join(letters[i] for i in ids[1:-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, help="where to write the bundle, by default a temporary folder")
    parser.add_argument("words", nargs="*", default=["салом", "китоб", "забони тоҷикӣ"])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = arguments.bundle or Path(folder) / "tg2fa"
        s2s_export.export_module(module(), CONFIG, bundle, force=True)
        session = s2s_export.load(bundle)
        sources = [ids_of(word) for word in arguments.words]
        for word, found in zip(arguments.words, session.generate(sources, num_beams=4, max_new_tokens=60), strict=True):
            print(f"{word:20} {text_of(list(found[0].token_ids))}")


if __name__ == "__main__":
    main()
