"""What a folder holds, file by file, so that damage is found first."""

import os
import pathlib
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from keras_switch.files.atomic import sha256
from keras_switch.files.errors import CheckpointError
from keras_switch.files.json_file import read_json

MANIFEST = "manifest.json"
VERSION = 1
_MAX_SIZE = 1 << 62
_DIGEST = re.compile(r"[0-9a-f]{64}")


class Entry(NamedTuple):
    """A file as the manifest has it."""

    size: int  # bytes
    sha256: str


def manifest_of(
    folder: str | os.PathLike, names: Iterable[str]
) -> dict[str, object]:
    """The content of a manifest for files of a folder.

    Args:
        folder: The folder.
        names: The files, relative to it, with `/`.
    """
    files = {}
    for name in sorted(names):
        path = pathlib.Path(folder) / name
        files[name] = {"size": path.stat().st_size, "sha256": sha256(path)}
    return {"version": VERSION, "files": files}


def read_manifest(
    folder: str | os.PathLike, is_known: Callable[[str], bool]
) -> dict[str, Entry]:
    """Reads the manifest of a folder; the files are not opened.

    Args:
        folder: The folder.
        is_known: Whether a file of this name may be part of the folder.

    Returns:
        Entries by file name.

    Raises:
        CheckpointError: if it is not what `manifest_of` makes.
    """
    path = pathlib.Path(folder) / MANIFEST
    content = read_json(path)
    _check_keys(path, MANIFEST, content, {"version", "files"})
    version, files = content["version"], content["files"]
    if type(version) is not int or version != VERSION:
        raise CheckpointError(path, "version", VERSION, repr(version))
    if not isinstance(files, dict) or not files:
        raise CheckpointError(path, "files", "an object of files", repr(files))
    return {
        name: _entry(path, name, value, is_known)
        for name, value in files.items()
    }


def _entry(path, name, value, is_known):
    if not is_known(name):
        raise CheckpointError(
            path, "files", "names of files that belong here", repr(name)
        )
    _check_keys(path, name, value, {"size", "sha256"})
    size, digest = value["size"], value["sha256"]
    if type(size) is not int or not 0 <= size < _MAX_SIZE:
        received = repr(size)[:40] if type(size) is not int else "another"
        raise CheckpointError(
            path, f"{name}.size", f"an int from 0 to {_MAX_SIZE}", received
        )
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise CheckpointError(
            path, f"{name}.sha256", "64 hexadecimal digits", repr(digest)
        )
    return Entry(size, digest)


def _check_keys(path, field, value, keys):
    if not isinstance(value, dict) or set(value) != keys:
        raise CheckpointError(
            path, field, f"an object of {', '.join(sorted(keys))}", repr(value)
        )
