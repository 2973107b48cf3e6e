"""A preset folder: what it may hold, and that it holds what it says."""

import hashlib
import os
import pathlib
import re
import warnings
from typing import Any

from keras_switch.files import (
    MANIFEST,
    CheckpointError,
    file_inside,
    parse_json,
    read_bytes,
    read_manifest,
    sha256,
)
from keras_switch.models.preset_fields import Place

CONFIG, TASK = "config.json", "task.json"
PREPROCESSOR, TOKENIZER = "preprocessor.json", "tokenizer.json"
VOCABULARY = "assets/tokenizer/vocabulary.spm"
WEIGHTS, INDEX = "model.weights.h5", "model.weights.json"
TASK_WEIGHTS = "task.weights.h5"
SHARD = re.compile(r"model_\d{5}\.weights\.h5", re.ASCII)
_FILES = (
    *(CONFIG, TASK, PREPROCESSOR, TOKENIZER, VOCABULARY),
    *(WEIGHTS, INDEX, TASK_WEIGHTS),
    "metadata.json",  # for people: it is not read
)
_MAX_JSON = 8 << 20
MAX_VOCABULARY = 64 << 20


def is_part(name: str) -> bool:
    """Whether a file of this name, relative to the folder, is of a preset."""
    return name in _FILES or SHARD.fullmatch(name) is not None


class PresetFolder:
    """Reads the files of a preset, each checked before it is used.

    With a manifest, only what it lists is there: sizes and the absence of
    other files of a preset are checked at once, the digest of a file when it
    is read. Files that are no part of a preset, such as a README, are let be.

    Args:
        folder: The folder.
        allow_unverified: Whether it may have no manifest. It is said in a
            warning then.
        trusted: Whether it is of this package, and needs none.

    Raises:
        CheckpointError: if there is no manifest, or it is not true.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        allow_unverified: bool = False,
        trusted: bool = False,
    ) -> None:
        self.folder = pathlib.Path(folder)
        self._entries: dict[str, Any] | None = None
        if os.path.lexists(self.folder / MANIFEST):
            file_inside(self.folder, MANIFEST)
            self._entries = read_manifest(self.folder, is_part)
            self._check_list()
        elif not (trusted or allow_unverified):
            raise CheckpointError(
                self.folder / MANIFEST,
                "file",
                "there, to tell what the preset must hold",
                "nothing",
                "allow_unverified=True loads a preset without it; saving it "
                "again by keras_switch writes one.",
            )
        elif not trusted:
            warnings.warn(
                f"{self.folder} has no {MANIFEST}: it is loaded unverified.",
                stacklevel=4,
            )

    def _check_list(self):
        for name, entry in self._entries.items():
            path, size = file_inside(self.folder, name)
            if size != entry.size:
                raise CheckpointError(
                    path, "size", f"{entry.size} bytes, by {MANIFEST}", size
                )
        there = [*os.listdir(self.folder), VOCABULARY]
        for name in sorted(set(there) - set(self._entries)):
            if is_part(name) and os.path.lexists(self.folder / name):
                raise CheckpointError(
                    self.folder / MANIFEST,
                    "files",
                    "all files of the preset",
                    f"nothing of {name}",
                )

    def has(self, name: str) -> bool:
        """Whether the preset has a file."""
        if self._entries is not None:
            return name in self._entries
        return os.path.lexists(self.folder / name)

    def json(self, name: str) -> dict[str, Any]:
        """Reads a JSON file strictly.

        Raises:
            CheckpointError: if it is missing, damaged, or not JSON.
        """
        path = self.folder / name
        return parse_json(path, self.bytes(name, _MAX_JSON), _MAX_JSON)

    def bytes(self, name: str, max_bytes: int) -> bytes:
        """Reads a file of at most so many bytes.

        Raises:
            CheckpointError: if it is missing, damaged, or larger.
        """
        data = read_bytes(self._find(name), max_bytes)
        if self._entries is not None:
            digest = hashlib.sha256(data).hexdigest()
            self._check_digest(name, digest)
        return data

    def path(self, name: str) -> pathlib.Path:
        """The path of a file, for what is too large to be read at once.

        Raises:
            CheckpointError: if it is missing or damaged.
        """
        path = self._find(name)
        if self._entries is not None:
            self._check_digest(name, sha256(path))
        return path

    def place(self, name: str, field: str = "") -> Place:
        """A place in a file, for messages."""
        return Place(self.folder / name, field)

    def _find(self, name):
        if self._entries is not None and name not in self._entries:
            raise CheckpointError(
                self.folder / name, "file", f"there, by {MANIFEST}", "nothing"
            )
        return file_inside(self.folder, name)[0]

    def _check_digest(self, name, digest):
        wanted = self._entries[name].sha256
        if digest != wanted:
            raise CheckpointError(
                self.folder / name,
                "content",
                f"of SHA-256 {wanted[:16]}..., by {MANIFEST}",
                f"{digest[:16]}...",
            )
