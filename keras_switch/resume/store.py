"""Checkpoints in a folder: whole and digested, and the newest good one."""

import functools
import json
import os
import pathlib
import random
import re
import shutil
import tempfile
import time
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from keras_switch.files import (
    CheckpointError,
    atomic_folder,
    file_inside,
    read_bytes,
    read_json,
    sha256,
)
from keras_switch.files.atomic import PARTIAL
from keras_switch.ops.state import (
    from_writer,
    is_writer,
    largest,
    process_count,
    process_index,
)
from keras_switch.resume import joint
from keras_switch.resume.pieces import Pieces, read_pieces, write_pieces

_FORMAT = 2
_RECORD, _DIGESTS = "record.json", "SHA256SUMS"
_PART = re.compile(r"arrays-\d{5}-of-(\d{5})\.safetensors")
# What the first format had in place of parts.
_WHOLE = "arrays.npz"
_NAME = re.compile(r"step-(\d{9})")
_DAMAGED = "damaged-"
# A record holds the history of a run, which may be long.
_MAX_RECORD = 1 << 28
_MAX_DIGESTS = 1 << 24
# What processes tell each other of a checkpoint; the worst holds for all.
_GOOD, _BAD, _UNSEEN = range(3)
# Seconds until all see what one has written; network file systems take some.
_UNTIL_SEEN = 90.0


class Checkpoint(NamedTuple):
    """A checkpoint that was found good.

    Attributes:
        folder: Where it is.
        step: Steps that were done when it was taken.
        record: What its writer said of it.
        arrays: By name; read when they are indexed. A dtype that NumPy lacks
            comes as unsigned integers of its size.
    """

    folder: pathlib.Path
    step: int
    record: dict[str, Any]
    arrays: dict[str, Pieces]


class CheckpointStore:
    """A folder with the checkpoints of one run.

    A checkpoint is a folder `step-000000200` with a file
    `arrays-00000-of-00002.safetensors` of each process, `record.json`, and
    `SHA256SUMS` with the digests of them, as `sha256sum --check` reads it. It
    appears whole or not at all.

    All processes of a run call the same methods, in the same order. They meet
    in the folder, which each of them must see.

    Args:
        directory: Made when the first checkpoint is written. No other run may
            write there.
        keep: How many checkpoints are kept; the oldest go first.
    """

    def __init__(self, directory: str | os.PathLike, keep: int) -> None:
        self.directory = pathlib.Path(directory)
        self.keep = keep
        self._run = self._writes = 0

    def begin(self) -> None:
        """Makes ready to write; in the main thread, before training.

        Deletes what writers that were killed have left behind. What one that
        is not dead yet may still write has another run's number in its name.
        """
        if is_writer():
            for leftover in self.directory.glob(f"{PARTIAL}*"):
                shutil.rmtree(leftover, ignore_errors=True)
        # The others go on when the first has cleaned and tells its number.
        self._run = from_writer(random.SystemRandom().getrandbits(30))

    def write(
        self,
        step: int,
        record: dict[str, Any],
        arrays: dict[str, np.ndarray | Pieces],
        not_finite: Sequence[str] = (),
    ) -> pathlib.Path | None:
        """Writes a checkpoint, then drops those beyond `keep`.

        Each process writes its own pieces. The first waits for the others,
        makes the whole of it, and writes the record and all arrays that are
        not in pieces, which it has as the others have.

        Args:
            step: Steps that were done; names the checkpoint.
            record: What JSON can hold.
            arrays: By name.
            not_finite: Names of arrays for which it must not be saved; those
                of any process are enough.

        Returns:
            The checkpoint's folder; `None` where it is not this process that
            finishes it, or where it is not saved.

        Raises:
            OSError: if it could not be written. What was there before is
                untouched.
        """
        index, count = process_index(), process_count()
        folder = self.directory / _name(step)
        self._writes += 1  # so that no process meets another's next
        shared = self.directory / (
            f"{PARTIAL}{folder.name}-{self._run}-{self._writes}"
        )
        try:
            if not_finite:
                content = {"not_finite": list(not_finite)}
                joint.report(shared, index, content)
            else:
                own = _own(arrays, index)
                write = functools.partial(write_pieces, arrays=own)
                joint.hand_in(shared, index, _part(index, count), write)
            if index:
                return None
            reports = joint.reports(shared, count, joint.PATIENCE)
            if _warn_of_non_finite(step, reports):
                return None
            record = {"format": _FORMAT, "step": step, **record}
            self._finish(folder, shared, record, reports)
        finally:
            # The others have written all that they will, or in vain.
            if index == 0:
                shutil.rmtree(shared, ignore_errors=True)
        for old in self._folders()[self.keep :]:
            self._remove(old)
        return folder

    def newest(self) -> Checkpoint | None:
        """The newest good checkpoint; damaged ones are moved aside.

        Processes find the same one; each checks the digests of its share.

        Returns:
            The checkpoint, or `None` for a folder without any.

        Raises:
            CheckpointError: if there are checkpoints and none of them is good:
                to start anew then would look like a resumed run; if the newest
                is from an earlier version; if a process cannot see it.
        """
        while step := self._newest_step():
            folder = self.directory / _name(step - 1)
            checkpoint, found, error = _look_at(folder)
            worst = largest(found)
            if worst == _GOOD:
                return checkpoint
            if worst == _UNSEEN:
                raise CheckpointError(
                    folder, "folder", "seen by every process", "not by all"
                )
            self._put_aside(folder, error)
        damaged = list(self.directory.glob(f"{_DAMAGED}*"))
        if from_writer(len(damaged)):
            raise CheckpointError(
                self.directory,
                "newest checkpoint",
                "good",
                "only damaged ones",
                "To train from the start, name another folder or delete this.",
            )
        return None

    def _finish(self, folder, shared, record, reports):
        """Makes a checkpoint of what is there of all processes."""
        text = json.dumps(record, allow_nan=False)
        with atomic_folder(folder) as temporary:
            digests = {}
            for index, content in enumerate(reports):
                name = _part(index, len(reports))
                os.replace(shared / name, temporary / name)
                digests[name] = content["digest"]
            (temporary / _RECORD).write_text(text, encoding="utf-8")
            digests[_RECORD] = sha256(temporary / _RECORD)
            lines = [_line(name, digest) for name, digest in digests.items()]
            (temporary / _DIGESTS).write_bytes(b"".join(lines))

    def _newest_step(self):
        """1 more than the newest checkpoint's, as the first process sees it;
        0 for none."""
        folders = self._folders()
        return from_writer(_step(folders[0]) + 1 if folders else 0)

    def _folders(self):
        """Folders of checkpoints, the newest first."""
        if not self.directory.is_dir():
            return []
        found = [p for p in self.directory.iterdir() if _NAME.fullmatch(p.name)]
        return sorted(found, key=_step, reverse=True)

    def _remove(self, folder):
        # Renamed first: half a checkpoint must not bear a checkpoint's name.
        outer = tempfile.mkdtemp(prefix=PARTIAL, dir=self.directory)
        os.replace(folder, os.path.join(outer, "old"))
        shutil.rmtree(outer, ignore_errors=True)

    def _put_aside(self, folder, error):
        if not is_writer():
            if error:
                warnings.warn(str(error), stacklevel=3)
            return
        aside = folder.with_name(_DAMAGED + folder.name)
        number = 1
        while aside.exists():
            number += 1
            aside = folder.with_name(f"{_DAMAGED}{folder.name}-{number}")
        os.replace(folder, aside)
        warnings.warn(
            f"{error or 'Another process has found an error in it.'} The "
            f"checkpoint is damaged: it is now {aside}, and the one before it "
            "is used.",
            stacklevel=3,
        )


def _name(step):
    return f"step-{step:09d}"


def _step(folder):
    return int(_NAME.fullmatch(folder.name)[1])


def _part(index, count):
    return f"arrays-{index:05d}-of-{count:05d}.safetensors"


def _line(name, digest):
    return f"{digest}  {name}\n".encode()


def _own(arrays, index):
    """What a process writes: of arrays that all have, the first all."""
    return {
        name: array if isinstance(array, Pieces) else Pieces.whole(array)
        for name, array in arrays.items()
        if isinstance(array, Pieces) or index == 0
    }


def _warn_of_non_finite(step, reports):
    bad = sorted({n for r in reports for n in r.get("not_finite", ())})
    if bad:
        warnings.warn(
            f"the state of step {step} is not saved: it has NaN or infinity in "
            f"{', '.join(bad[:3])}{' and others' if bad[3:] else ''}. The "
            "checkpoint before it is kept.",
            stacklevel=3,
        )
    return bool(bad)


def _look_at(folder):
    """A checkpoint, what this process thinks of it, and why."""
    end = time.monotonic() + _UNTIL_SEEN
    while not os.path.lexists(folder):
        if is_writer() or time.monotonic() > end:
            return None, _UNSEEN, None
        time.sleep(1.0)
    if (folder / _WHOLE).exists():
        raise CheckpointError(
            folder,
            "checkpoint",
            "of this version of keras_switch",
            f"{_WHOLE}, of an earlier one",
            "Finish the run with the version that began it, or train into "
            "another folder.",
        )
    try:
        return _read(folder), _GOOD, None
    except CheckpointError as error:
        return None, _BAD, error


def _read(folder):
    try:
        names = _check_files(folder)
    except OSError as error:
        raise CheckpointError(
            folder, "files", "readable", error.strerror
        ) from error
    record = read_json(folder / _RECORD, _MAX_RECORD)
    step = _step(folder)
    for field, value in (("format", _FORMAT), ("step", step)):
        if record.get(field) != value:
            raise CheckpointError(
                folder / _RECORD, field, value, record.get(field)
            )
    arrays = read_pieces([folder / name for name in names if name != _RECORD])
    return Checkpoint(folder, step, record, arrays)


def _check_files(folder):
    """Names of the files with digests, of which this process checks some."""
    there = sorted(os.listdir(folder))
    parts = filter(None, map(_PART.fullmatch, there))
    count = max((int(match[1]) for match in parts), default=1)
    names = [*(_part(index, count) for index in range(count)), _RECORD]
    wanted = {*names, _DIGESTS}
    if wanted != set(there):
        raise CheckpointError(
            folder,
            "files",
            "its parts, record and digests",
            f"without {sorted(wanted - set(there))[:3]} and with "
            f"{sorted(set(there) - wanted)[:3]}",
        )
    for name in there:
        file_inside(folder, name)  # no pipe, and no link out of here
    lines = read_bytes(folder / _DIGESTS, _MAX_DIGESTS).splitlines(True)
    # Not parsed: whatever differs in a bit is damaged.
    if len(lines) != len(names) or any(
        lines[i] != _line(names[i], sha256(folder / names[i]))
        for i in range(process_index(), len(names), process_count())
    ):
        raise CheckpointError(
            folder / _DIGESTS, "digests", "those of the files", "others"
        )
    return names
