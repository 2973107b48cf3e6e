"""Where downloads and encoded corpora are kept."""

import os
import pathlib


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
