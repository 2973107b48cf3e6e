"""Checkpoints in a folder: whole and digested, and the newest good one."""

import json
import os
import pathlib
import re
import shutil
import tempfile
import warnings
from typing import Any, NamedTuple

import numpy as np

from keras_switch.files import (
    CheckpointError,
    atomic_folder,
    read_json,
    sha256,
)
from keras_switch.files.atomic import PARTIAL

_FORMAT = 1
_ARRAYS, _RECORD, _DIGESTS = "arrays.npz", "record.json", "SHA256SUMS"
_NAME = re.compile(r"step-(\d{9,})")
_DAMAGED = "damaged-"
# A record holds the history of a run, which may be long.
_MAX_RECORD = 1 << 28


class Checkpoint(NamedTuple):
    """A checkpoint that was found good.

    Attributes:
        folder: Where it is.
        step: Steps that were done when it was taken.
        record: What its writer said of it.
    """

    folder: pathlib.Path
    step: int
    record: dict[str, Any]

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays by name. A dtype that NumPy lacks comes as unsigned
        integers of its size."""
        with np.load(self.folder / _ARRAYS, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}


class CheckpointStore:
    """A folder with the checkpoints of one run.

    A checkpoint is a folder `step-000000200` of three files: `arrays.npz`,
    `record.json`, and `SHA256SUMS` with the digests of the two, as
    `sha256sum --check` reads it. It appears whole or not at all.

    Args:
        directory: Made when the first checkpoint is written. No other run may
            write there.
        keep: How many checkpoints are kept; the oldest go first.
    """

    def __init__(self, directory: str | os.PathLike, keep: int) -> None:
        self.directory = pathlib.Path(directory)
        self.keep = keep

    def write(
        self, step: int, record: dict[str, Any], arrays: dict[str, np.ndarray]
    ) -> pathlib.Path:
        """Writes a checkpoint, then drops those beyond `keep`.

        Args:
            step: Steps that were done; names the checkpoint.
            record: What JSON can hold.
            arrays: By name.

        Returns:
            The checkpoint's folder.

        Raises:
            OSError: if it could not be written. What was there before is
                untouched.
        """
        record = {"format": _FORMAT, "step": step, **record}
        folder = self.directory / f"step-{step:09d}"
        with atomic_folder(folder) as temporary:
            with open(temporary / _ARRAYS, "wb") as file:
                np.savez(file, **{n: _plain(a) for n, a in arrays.items()})
            (temporary / _RECORD).write_text(
                json.dumps(record, allow_nan=False), encoding="utf-8"
            )
            (temporary / _DIGESTS).write_bytes(_digests(temporary))
        for old in self._folders()[self.keep :]:
            self._remove(old)
        return folder

    def newest(self) -> Checkpoint | None:
        """The newest good checkpoint; damaged ones are moved aside.

        Returns:
            The checkpoint, or `None` for a folder without any.

        Raises:
            CheckpointError: if there are checkpoints and none of them is good:
                to start anew then would look like a resumed run.
        """
        for folder in self._folders():
            try:
                return _read(folder)
            except CheckpointError as error:
                aside = self._move_aside(folder)
                warnings.warn(
                    f"{error} The checkpoint is damaged: it is now {aside}, "
                    "and the one before it is used.",
                    stacklevel=2,
                )
        if list(self.directory.glob(f"{_DAMAGED}*")):
            raise CheckpointError(
                self.directory,
                "newest checkpoint",
                "good",
                "only damaged ones",
                "To train from the start, name another folder or delete this.",
            )
        return None

    def clean(self) -> None:
        """Deletes what writers that were killed left behind."""
        for leftover in self.directory.glob(f"{PARTIAL}*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def _folders(self):
        """Folders of checkpoints, the newest first."""
        if not self.directory.is_dir():
            return []
        found = [
            (int(match[1]), path)
            for path in self.directory.iterdir()
            if (match := _NAME.fullmatch(path.name))
        ]
        return [path for _, path in sorted(found, reverse=True)]

    def _remove(self, folder):
        # Renamed first: half a checkpoint must not bear a checkpoint's name.
        outer = tempfile.mkdtemp(prefix=PARTIAL, dir=self.directory)
        os.replace(folder, os.path.join(outer, "old"))
        shutil.rmtree(outer, ignore_errors=True)

    def _move_aside(self, folder):
        aside = folder.with_name(_DAMAGED + folder.name)
        number = 1
        while aside.exists():
            number += 1
            aside = folder.with_name(f"{_DAMAGED}{folder.name}-{number}")
        os.replace(folder, aside)
        return aside


def _plain(array):
    """Other dtypes than NumPy's own would be written as nameless bytes."""
    if array.dtype.isbuiltin != 2:
        return array
    return array.view(f"u{array.dtype.itemsize}")


def _digests(folder):
    return "".join(
        f"{sha256(folder / name)}  {name}\n" for name in (_ARRAYS, _RECORD)
    ).encode()


def _read(folder):
    try:
        names = sorted(os.listdir(folder))
        wanted = sorted((_ARRAYS, _RECORD, _DIGESTS))
        if names != wanted:
            raise CheckpointError(folder, "files", wanted, names)
        # Not parsed: whatever differs in a bit is damaged.
        if (folder / _DIGESTS).read_bytes() != _digests(folder):
            raise CheckpointError(
                folder / _DIGESTS, "digests", "those of the files", "others"
            )
    except OSError as error:
        raise CheckpointError(
            folder, "files", "readable", error.strerror
        ) from error
    record = read_json(folder / _RECORD, _MAX_RECORD)
    step = int(_NAME.fullmatch(folder.name)[1])
    for field, value in (("format", _FORMAT), ("step", step)):
        if record.get(field) != value:
            raise CheckpointError(
                folder / _RECORD, field, value, record.get(field)
            )
    return Checkpoint(folder, step, record)
