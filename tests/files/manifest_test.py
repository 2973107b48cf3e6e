"""Manifests: what is written is read, and nothing else."""

import hashlib
import json

import pytest

from keras_switch.files import MANIFEST, CheckpointError, manifest_of
from keras_switch.files.manifest import Entry, read_manifest

KNOWN = ("a.json", "assets/b").__contains__


def write(folder, content):
    (folder / MANIFEST).write_text(json.dumps(content))


def test_what_is_written_is_read(tmp_path):
    (tmp_path / "assets").mkdir()
    (tmp_path / "a.json").write_bytes(b"{}")
    (tmp_path / "assets" / "b").write_bytes(b"")
    write(tmp_path, manifest_of(tmp_path, ["assets/b", "a.json"]))
    assert read_manifest(tmp_path, KNOWN) == {
        "a.json": Entry(2, hashlib.sha256(b"{}").hexdigest()),
        "assets/b": Entry(0, hashlib.sha256(b"").hexdigest()),
    }


ENTRY = {"size": 2, "sha256": "0" * 64}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"version": 2, "files": {"a.json": ENTRY}}, "version must be 1"),
        ({"version": True, "files": {"a.json": ENTRY}}, "version must be 1"),
        ({"version": 1}, "object of files, version"),
        ({"version": 1, "files": {}}, "an object of files; received {}"),
        ({"version": 1, "files": ["a.json"]}, "an object of files"),
        ({"version": 1, "files": {"../a": ENTRY}}, "received '../a'"),
        ({"version": 1, "files": {"a.json": {"size": 2}}}, "sha256, size"),
        (
            {"version": 1, "files": {"a.json": ENTRY | {"size": -1}}},
            "a.json.size must be an int from 0",
        ),
        (
            {"version": 1, "files": {"a.json": ENTRY | {"size": True}}},
            "a.json.size",
        ),
        (
            {"version": 1, "files": {"a.json": ENTRY | {"sha256": "G" * 64}}},
            "64 hexadecimal digits",
        ),
        (
            {"version": 1, "files": {"a.json": ENTRY | {"mode": 7}}},
            "an object of sha256, size",
        ),
    ],
)
def test_anything_else_is_refused(tmp_path, content, message):
    write(tmp_path, content)
    with pytest.raises(CheckpointError, match=message):
        read_manifest(tmp_path, KNOWN)
