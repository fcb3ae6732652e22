"""Damaged, changed, foreign and interrupted: each gives one sentence and loses nothing."""

from __future__ import annotations

import errno
import json
import shutil

import pytest
import tiny_models

import s2s_export
from s2s_export import bundle
from s2s_export.errors import BundleError, InvalidOption


@pytest.fixture
def copy(exported, tmp_path):
    path = tmp_path / "copy"
    shutil.copytree(exported("marian")[1], path)
    return path


def change_manifest(path, **changes):
    manifest = json.loads((path / "manifest.json").read_text())
    manifest.update(changes)
    (path / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("name", ["weights.bin", "encoder.onnx", "decoder_step.onnx"])
def test_a_changed_byte_is_found(copy, name):
    raw = bytearray((copy / name).read_bytes())
    raw[len(raw) // 2] ^= 1
    (copy / name).write_bytes(raw)
    with pytest.raises(BundleError, match=f"{name} was changed .sha256 mismatch"):
        s2s_export.load(copy)


def test_a_truncated_file_is_found_even_without_hashing(copy):
    raw = (copy / "weights.bin").read_bytes()
    (copy / "weights.bin").write_bytes(raw[:-1])
    with pytest.raises(BundleError, match=r"weights.bin has \d+ bytes, expected \d+"):
        s2s_export.load(copy, verify=False)


def test_a_missing_file_is_named(copy):
    (copy / "cross_kv_init.onnx").unlink()
    with pytest.raises(BundleError, match="cross_kv_init.onnx is missing"):
        s2s_export.load(copy)


def test_a_bundle_names_the_kind_of_its_sources(copy):
    assert bundle.read(copy).manifest["source"]["kind"] == "token_ids"


def test_a_bundle_made_before_kinds_were_named_reads_token_ids(copy):
    options = {"num_beams": 2, "max_new_tokens": 6}
    expected = s2s_export.load(copy).generate([[5, 6], [7]], **options)
    change_manifest(copy, source={"pad_token_id": bundle.read(copy).manifest["source"]["pad_token_id"]})
    session = s2s_export.load(copy)
    assert session.kind.name == "token_ids"
    assert session.generate([[5, 6], [7]], **options) == expected


def test_an_unknown_kind_of_source_is_refused_by_name(copy):
    change_manifest(copy, source={"kind": "smells", "pad_token_id": None})
    message = "sources of the kind 'smells', but this version knows audio_features, .*token_ids, .*; upgrade"
    with pytest.raises(BundleError, match=message):
        s2s_export.load(copy)
    change_manifest(copy, source={"kind": 3, "pad_token_id": None})
    with pytest.raises(BundleError, match=r"source.kind is 3, expected text; export the bundle again"):
        s2s_export.load(copy)


def test_a_newer_format_is_refused(copy):
    change_manifest(copy, format_version=bundle.FORMAT_VERSION + 1)
    with pytest.raises(BundleError, match=r"bundle format 2, but this version reads up to 1; upgrade"):
        s2s_export.load(copy)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "sub/../../outside"])
def test_a_path_that_leads_out_of_the_bundle_is_refused(copy, name):
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["graphs"]["encoder"]["file"] = name
    change_manifest(copy, graphs=manifest["graphs"])
    with pytest.raises(BundleError, match="leads out of the bundle"):
        s2s_export.load(copy)


def test_a_link_that_leads_out_of_the_bundle_is_refused(copy, tmp_path):
    (tmp_path / "elsewhere.onnx").write_bytes((copy / "encoder.onnx").read_bytes())
    (copy / "encoder.onnx").unlink()
    (copy / "encoder.onnx").symlink_to(tmp_path / "elsewhere.onnx")
    with pytest.raises(BundleError, match="leads out of the bundle"):
        s2s_export.load(copy)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not readable as JSON"),
        (b"[]", "not the manifest of a bundle"),
        (b'{"format": "other"}', "not the manifest of a bundle"),
        (b'{"format": "s2s-bundle", "format_version": 1}', "lacks family"),
    ],
)
def test_a_damaged_manifest_is_named(copy, content, message):
    (copy / "manifest.json").write_bytes(content)
    with pytest.raises(BundleError, match=message):
        s2s_export.load(copy)


def test_no_bundle_at_all(tmp_path):
    with pytest.raises(BundleError, match="no such folder"):
        s2s_export.load(tmp_path / "nothing")
    with pytest.raises(BundleError, match=r"no manifest.json in it"):
        s2s_export.load(tmp_path)


def test_an_existing_bundle_needs_force_and_survives_without(exported, copy):
    checkpoint = exported("marian")[0]
    before = (copy / "manifest.json").read_bytes()
    with pytest.raises(InvalidOption, match="exists already.*--force"):
        s2s_export.export(checkpoint, copy)
    assert (copy / "manifest.json").read_bytes() == before
    s2s_export.export(checkpoint, copy, force=True)
    assert s2s_export.load(copy)


def test_force_replaces_bundles_only(exported, tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("years of work")
    with pytest.raises(InvalidOption, match="holds something else"):
        s2s_export.export(exported("marian")[0], tmp_path / "precious", force=True)
    assert (tmp_path / "precious" / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("stage", ["emit graphs", "hash files", "compare with PyTorch"])
def test_an_interrupted_export_leaves_the_older_bundle_and_nothing_else(exported, copy, stage):
    before = bundle.read(copy).manifest

    def interrupt(name):
        if name == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        s2s_export.export(exported("marian")[0], copy, force=True, progress=interrupt)
    assert bundle.read(copy).manifest == before
    assert [path.name for path in copy.parent.iterdir()] == ["copy"]


def test_a_full_disk_is_one_sentence_and_leaves_nothing(exported, tmp_path, monkeypatch):
    from s2s_export.exporting.graphs.weights import WeightStore

    def full(self, raw):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(WeightStore, "_place", full)
    with pytest.raises(BundleError, match="can't be written .No space left on device.; nothing was left behind"):
        s2s_export.export(exported("marian")[0], tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_works_where_it_was_copied_to_and_names_no_path(exported, copy):
    original = exported("marian")[1]
    for path in copy.rglob("*"):
        if path.is_file():
            assert str(original.parent).encode() not in path.read_bytes()
    options = {"num_beams": 2, "max_new_tokens": 6}
    found = [s2s_export.load(p).generate([[5, 6]], **options)[0][0].token_ids for p in (original, copy)]
    assert found[0] == found[1]


def test_an_exported_model_of_another_seed_differs(exported, tmp_path):
    """The hash of the checkpoint is of its weights."""
    other = tiny_models.save("marian", tmp_path / "c", seed=1)
    s2s_export.export(other, tmp_path / "b")
    hashes = {
        bundle.read(p).manifest["provenance"]["checkpoint_sha256"] for p in (tmp_path / "b", exported("marian")[1])
    }
    assert len(hashes) == 2
