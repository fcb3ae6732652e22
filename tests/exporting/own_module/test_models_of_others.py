"""Models that others wrote and trained, from packages on PyPI: thousands of words, with the packages' own outputs.

pip install --no-deps g2p-en tg2fa-translit g2p-fa
"""

from __future__ import annotations

import importlib.util
import random
import re
import sys
import time
import types
import warnings
from pathlib import Path

import pytest
import torch

import s2s_export

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[3] / "examples"
N_WORDS = 2000


def example(name, package):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"the package {package} is not installed: pip install --no-deps {package.replace('_', '-')}")
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def compare(example, theirs, words, text_of, path, **options):
    """Both decode all words; the outputs must be equal. Prints how fast each is, on one thread."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the packages
        s2s_export.export_module(example.module(), example.CONFIG, path / "bundle")
    session = s2s_export.load(path / "bundle", threads=1)
    begin = time.perf_counter()
    expected = [theirs(word) for word in words]
    middle = time.perf_counter()
    found = session.generate([example.ids_of(word) for word in words], num_beams=1, **options)
    end = time.perf_counter()
    print(f"{len(words)} words: {middle - begin:.2f} s by the package, {end - middle:.2f} s by the bundle")
    different = [
        (word, own, text_of(list(best.token_ids)))
        for word, own, (best,) in zip(words, expected, found, strict=True)
        if own != text_of(list(best.token_ids))
    ]
    assert not different


def english_words():
    """Words of the standard library's sources."""
    text = "".join(path.read_text(errors="ignore") for path in sorted(Path(random.__file__).parent.glob("*.py"))[:120])
    words = sorted(set(re.findall(r"[a-z]{2,18}", text.lower())))
    return random.Random(1).sample(words, N_WORDS)


def made_up(letters, longest):
    chance = random.Random(2)
    return ["".join(chance.choices(letters, k=chance.randint(1, longest))) for _ in range(N_WORDS)]


@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)  # of the package
def test_g2p_en(tmp_path, monkeypatch):
    """The package is imported without the dictionaries that it would download."""
    own = example("05_spelling_to_phonemes", "g2p_en")
    stubs = {
        "nltk": {"pos_tag": None, "data": types.SimpleNamespace(find=lambda name: None)},
        "nltk.corpus": {"cmudict": types.SimpleNamespace(dict=dict)},
        "nltk.tokenize": {"TweetTokenizer": lambda: types.SimpleNamespace(tokenize=str.split)},
        "inflect": {"engine": lambda: None},
    }
    for name, contents in stubs.items():
        module = types.ModuleType(name)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its escape sequences
        from g2p_en.g2p import G2p
    package = G2p()
    assert package.graphemes == own.LETTERS and package.phonemes == own.PHONEMES
    compare(own, package.predict, english_words(), own.phonemes_of, tmp_path, max_new_tokens=20)


def test_tg2fa_translit(tmp_path):
    own = example("06_tajik_to_persian", "tg2fa_translit")
    from tg2fa_translit.decode import decode, tg_keys

    model = own.package_parts()[0]
    words = made_up(tg_keys[7:], 12)
    by_length: dict[int, list[str]] = {}
    for word in words:  # the package's limit of length follows from the source's
        by_length.setdefault(len(word), []).append(word)
    for length, some in sorted(by_length.items()):
        path = tmp_path / str(length)
        path.mkdir()
        with torch.no_grad():
            compare(own, lambda word: decode(model, word), some, own.text_of, path, max_new_tokens=length + 11)


def test_g2p_fa(tmp_path):
    own = example("07_persian_to_phonemes", "g2p_fa")
    from g2p_fa.g2p_fa import G2P_Fa

    package = G2P_Fa()
    package.model.eval()  # which the package forgets, so that its own dropout changes its outputs

    def theirs(word):
        try:
            with torch.no_grad():
                return package(word)
        except IndexError:  # no end within its 30 positions
            return None

    def text_of(ids):
        return own.phonemes_of(ids) if own.END in ids else None

    words = made_up(own.LETTERS, 12)
    compare(own, theirs, words, text_of, tmp_path, max_new_tokens=29)
