"""Damaged bundles, engines and tokenizers, opened and used, and damaged lines. Run by survivor.py as a script:

KIND BASES FOLDER SEED FIRST LAST REPORT

BASES is a JSON file: a list of what is mutated. A bundle: its path, the target to open, and whether operators of the
sanitizers' build are used. A tokenizer: its folder and its entry of the manifest.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import line_mutations
import mutate
import survivor

SOURCES = [[5, 6, 7], [9]]
TEXTS = [">>fra<< Hello world, it's 3.14 €", "", "x </s> y", "日本 \u200b🙂"]
UNSIGNED = 0.15  # the share of cases in which the sums are left as they were


def mutated(path: Path, rng: random.Random) -> bytes:
    raw = path.read_bytes()
    if path.suffix == ".json":
        return mutate.json_of(raw, rng)
    return mutate.graph_of(raw, rng) if path.suffix == ".onnx" else mutate.bytes_of(raw, rng)


def link_tree(source: Path, target: Path) -> None:
    """Hard links: a case replaces the few files that it changes."""
    if target.exists():
        shutil.rmtree(target)
    shutil.copytree(source, target, copy_function=os.link)


def replace(path: Path, raw: bytes) -> None:
    path.unlink()
    path.write_bytes(raw)


def sign(root: Path, names: list[str]) -> None:
    """Write the sums of changed files wherever they stand, as who means harm would."""
    for record in (root / "manifest.json", *root.glob("engines/*/engine.json")):
        try:
            data = json.loads(record.read_bytes())
        except (ValueError, RecursionError):
            continue
        for name in names:
            raw = (root / name).read_bytes()
            digest, own = hashlib.sha256(raw).hexdigest(), os.path.relpath(root / name, record.parent)
            for key, value in (("files", {"bytes": len(raw), "sha256": digest}), ("made_from", digest)):
                entries = data.get(key) if isinstance(data, dict) else None
                if isinstance(entries, dict) and (own if key == "files" else name) in entries:
                    entries[own if key == "files" else name] = value
        replace(record, json.dumps(data).encode())


class BundleCases:
    def __init__(self, bases: list[dict[str, Any]], folder: Path, seed: int) -> None:
        self.bases, self.folder, self.seed = bases, folder, seed
        if any(base.get("sanitized") for base in bases):
            from s2s_export import plugin_sources

            maker = plugin_sources.module("cpu.build")
            library = maker.library(sanitize=True)
            maker.library = lambda: library

    def __call__(self, number: int) -> None:

        rng = random.Random(f"{self.seed}/{number}")
        base = self.bases[number % len(self.bases)]
        source, root = Path(base["path"]), self.folder / "bundle"
        link_tree(source, root)
        used = [
            path.relative_to(root).as_posix()
            for path in sorted(root.rglob("*"))
            if path.is_file() and (path.parent.parent.name != "engines" or path.parent.name == base["target"])
        ]
        if base["target"] != "portable" and rng.random() < 0.8:
            used = [name for name in used if name.startswith("engines/")]
        names = rng.sample(used, rng.choice([1, 1, 1, 2]) if len(used) > 1 else 1)
        for name in names:
            replace(root / name, mutated(root / name, rng))
        changed = any((root / name).read_bytes() != (source / name).read_bytes() for name in names)
        signed = rng.random() >= UNSIGNED
        if signed:
            sign(root, [name for name in names if not name.endswith(("manifest.json", "engine.json"))])
        USES[base.get("use", "ids")](root, base["target"])
        damaged = [name for name in names if not name.endswith(("manifest.json", "engine.json"))]
        if changed and not signed and damaged == names:
            raise AssertionError(f"{names} changed and opened all the same")


def use_ids(root: Path, target: str) -> None:
    import s2s_export

    use(s2s_export.load(root, "onnxruntime", target, threads=1))


def use_sound(root: Path, target: str) -> None:
    import tiny_whisper

    import s2s_export

    session = s2s_export.load(root, "onnxruntime", target, threads=1)
    sound = tiny_whisper.clip(1, 1.7)
    session.generate([sound[: tiny_whisper.SAMPLES]], num_beams=2, max_new_tokens=4)
    session.transcribe(sound, timestamps="word", temperature=0, num_beams=2).finish()


def use_picture(root: Path, target: str) -> None:
    import tiny_pictures

    import s2s_export

    session = s2s_export.load(root, "onnxruntime", target, threads=1)
    session.read([tiny_pictures.picture(1)], num_beams=2, max_new_tokens=4)


def use_encoder(root: Path, target: str) -> None:
    import s2s_export

    session = s2s_export.load_encoder(root, target=target, threads=1)
    session.classify(["the red dog", "a dog"])


def use(session: Any) -> None:
    """Greedy, beams, rules that want the whole distribution, alignments, and text where there is a tokenizer."""
    options = {"num_beams": 2, "max_new_tokens": 4}
    session.generate(SOURCES, **options)
    session.generate(SOURCES, **options, repetition_penalty=1.3, no_repeat_ngram_size=2)
    if session.has_attention:
        session.generate(SOURCES, max_new_tokens=3, alignments=True)
    if session.has_tokenizer:
        session.translate(TEXTS[:1], **options, truncate=True)


USES = {"ids": use_ids, "sound": use_sound, "picture": use_picture, "encoder": use_encoder}


class TokenizerCases:
    def __init__(self, bases: list[dict[str, Any]], folder: Path, seed: int) -> None:
        self.bases, self.folder, self.seed = bases, folder, seed

    def __call__(self, number: int) -> None:
        from s2s_export.runtime import text

        rng = random.Random(f"{self.seed}/{number}")
        base = self.bases[number % len(self.bases)]
        root = self.folder / "tokenizer"
        link_tree(Path(base["path"]), root)
        entry = base["entry"]
        files = sorted(path for path in root.rglob("*") if path.is_file())
        if not files or rng.random() < 0.4:
            try:
                entry = json.loads(mutate.json_of(json.dumps(entry).encode(), rng))
            except (ValueError, RecursionError):
                return
        else:
            path = rng.choice(files)
            replace(path, mutated(path, rng))
        read_and_write(text.load(root, entry), rng)


def read_and_write(tokenizer: Any, rng: random.Random) -> None:
    """Everything that a session asks a tokenizer. What can't be done must be one of our errors, each for itself."""
    from s2s_export.errors import S2SError
    from s2s_export.runtime import text

    asked: list[Callable[[], Any]] = []
    for line in TEXTS:
        asked.append(lambda line=line: tokenizer.truncate(tokenizer.encode(line), 5))
    ids = [0, 1, 2, 3, 5, 40, 299, 10**6, *(rng.randrange(400) for _ in range(6))]
    for skip in (True, False):
        asked.append(lambda skip=skip: tokenizer.decode(ids, skip_special_tokens=skip))
    asked += [
        lambda: tokenizer.tokens(ids),
        lambda: tokenizer.source_tokens(ids),
        lambda: tokenizer.encode_target("x y"),
    ]
    for code in list(tokenizer.languages)[:2]:
        asked.append(lambda code=code: tokenizer.target_overrides(code))
        asked.append(lambda code=code: tokenizer.encode("x", source_lang=code, target_lang=code))

    def streamed() -> None:
        stream = text.StreamDecoder(tokenizer)
        for token in ids:
            stream.push([token])
        stream.finish()

    for question in [*asked, streamed]:
        try:
            question()
        except S2SError as error:  # a text or ids that it can't do; loading was not refused
            assert survivor.is_sentence(error), error


class LineCases:
    """`s2s generate`'s lines: a mutated one between two good ones, which must come out as they do alone."""

    good = b'{"id": "good", "text": "x y", "max_new_tokens": 3}'

    def __init__(self, bases: list[dict[str, Any]], folder: Path, seed: int) -> None:
        import s2s_export

        self.seed = seed
        self.session = s2s_export.load(bases[0]["path"], threads=1)
        self.expected = self.decoded([self.good])[0]

    def decoded(self, lines: list[bytes]) -> list[Any]:
        from s2s_export.runtime import cases

        def no_number(name: str) -> None:
            raise AssertionError(f"{name} is not JSON")

        found = [cases.read_case(self.session, line, number) for number, line in enumerate(lines, 1)]
        written = [cases.to_json(result).encode("utf-8") for result in cases.decode_cases(self.session, found)]
        return [json.loads(line, parse_constant=no_number) for line in written]

    def __call__(self, number: int) -> None:
        from s2s_export.errors import LONGEST, InputError

        line = line_mutations.line(random.Random(f"{self.seed}/{number}"))
        before, found, after = self.decoded([self.good, line, self.good])
        assert before == after == self.expected, line[:200]
        assert ("error" in found) != ("outputs" in found), line[:200]
        if "error" in found:
            message = found["error"]
            assert message.isprintable() and len(message) <= LONGEST and "unexpected" not in message, message[:300]
            raise InputError("the line was refused")


class CheckpointCases:
    """Checkpoints with one damaged file, exported and used."""

    def __init__(self, bases: list[dict[str, Any]], folder: Path, seed: int) -> None:
        import torch

        torch.set_num_threads(1)
        self.bases, self.folder, self.seed = bases, folder, seed

    def __call__(self, number: int) -> None:
        import s2s_export

        rng = random.Random(f"{self.seed}/{number}")
        root = self.folder / "checkpoint"
        link_tree(Path(self.bases[number % len(self.bases)]["path"]), root)
        # As often a small file as the weights; pieces of JSON in a safetensors file are its header.
        path = rng.choice(sorted(file for file in root.iterdir() if file.is_file()))
        replace(path, mutated(path, rng))
        s2s_export.export(root, self.folder / "exported", force=True)
        use(s2s_export.load(self.folder / "exported", threads=1))


KINDS = {"checkpoints": CheckpointCases, "bundles": BundleCases, "tokenizers": TokenizerCases, "lines": LineCases}


def main(kind: str, bases: str, folder: str, seed: str, first: str, last: str, report: str) -> None:
    found = json.loads(Path(bases).read_text(encoding="utf-8"))
    cases = KINDS[kind](found, Path(folder), int(seed))
    sanitized = any(base.get("sanitized") for base in found)  # the sanitizer reserves terabytes of addresses
    survivor.serve(cases, int(first), int(last), report, limit_memory=not sanitized)


if __name__ == "__main__":
    main(*sys.argv[1:])
