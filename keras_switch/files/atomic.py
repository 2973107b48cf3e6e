"""Folders and files that are either whole or absent, also after a crash."""

import contextlib
import ctypes
import hashlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

# What a killed writer leaves behind starts with this; readers skip it.
PARTIAL = ".partial-"
# Of Linux's renameat2: paths from the working folder, and both names kept.
_HERE, _RENAME_EXCHANGE = -100, 2


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Gives a temporary name that becomes `path` if the block succeeds.

    A reader sees the old file or the new one, never half of it, whatever
    interrupts the writer, a power cut included; two writers at once do no harm
    either.

    Args:
        path: The file to write. Its folder is made if it is missing.

    Returns:
        A context manager giving the temporary path, in the same folder.

    Example:
        with atomic_write("tokens.npz") as temporary:
            temporary.write_bytes(content)
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=PARTIAL, dir=path.parent) as folder:
        temporary = pathlib.Path(folder) / path.name
        yield temporary
        _synchronize(temporary)
        os.replace(temporary, path)
        _synchronize(path.parent)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Gives a new folder that becomes `path` if the block succeeds.

    A folder that is there already is replaced: on Linux the two change names
    at once. Elsewhere the old one is moved aside first, and a writer killed
    between the two moves leaves it whole as `old` in a folder beside `path`
    whose name starts with `.partial-`.

    Args:
        path: The folder to write. Its parents are made if they are missing.

    Returns:
        A context manager giving the temporary folder, beside `path`.

    Raises:
        NotADirectoryError: if `path` is a file.
    """
    path = pathlib.Path(path)
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"{path} must be a folder; it is a file.")
    path.parent.mkdir(parents=True, exist_ok=True)
    outer = pathlib.Path(tempfile.mkdtemp(prefix=PARTIAL, dir=path.parent))
    try:
        temporary = outer / "new"
        temporary.mkdir()
        yield temporary
        for folder, _, names in os.walk(temporary, topdown=False):
            for name in names:
                _synchronize(pathlib.Path(folder) / name)
            _synchronize(folder)
        if not (path.exists() and _exchange(temporary, path)):
            if path.exists():
                os.replace(path, outer / "old")
            os.replace(temporary, path)
        _synchronize(path.parent)
    finally:
        shutil.rmtree(outer, ignore_errors=True)


def sha256(path: str | os.PathLike) -> str:
    """The SHA-256 digest of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _exchange(one, other):
    """Lets two folders change names at once; false where that can't be."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    one, other = os.fsencode(one), os.fsencode(other)
    return renameat2(_HERE, one, _HERE, other, _RENAME_EXCHANGE) == 0


def _synchronize(path):
    """Waits until a file or a folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
