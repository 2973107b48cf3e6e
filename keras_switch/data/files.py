"""Folders and files that are either whole or absent."""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator


def cache_directory(cache_dir: str | os.PathLike | None = None) -> pathlib.Path:
    """The folder for downloads and encoded corpora; made if it is missing.

    Args:
        cache_dir: a folder; None = the environment variable
            `KERAS_SWITCH_CACHE`, or else `keras_switch` in the user's cache
            folder (`XDG_CACHE_HOME`, `~/.cache`).

    Returns:
        The folder.

    Raises:
        NotADirectoryError: if the path is taken by a file.
    """
    path = pathlib.Path(cache_dir or _default_cache()).expanduser()
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(
            f"cache_dir must be a folder; received {str(path)!r}, a file."
        )
    path.mkdir(parents=True, exist_ok=True)
    return path


def _default_cache():
    named = os.environ.get("KERAS_SWITCH_CACHE")
    if named:
        return named
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return pathlib.Path(home) / "keras_switch"


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Gives a temporary name that becomes `path` if the block succeeds.

    A reader sees the old file or the new one, never half of it, whatever
    interrupts the writer; two writers at once do no harm either.

    Args:
        path: the file to write. Its folder is made if it is missing.

    Returns:
        A context manager giving the temporary path, in the same folder.

    Example:
        with atomic_write("tokens.npz") as temporary:
            temporary.write_bytes(content)
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=".partial-", dir=path.parent
    ) as folder:
        temporary = pathlib.Path(folder) / path.name
        yield temporary
        os.replace(temporary, path)
