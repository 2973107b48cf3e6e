"""Files that must lie in their folder, whatever links say."""

import os
import pathlib
import stat

from keras_switch.files.errors import CheckpointError


def file_inside(
    folder: str | os.PathLike, name: str
) -> tuple[pathlib.Path, int]:
    """Finds a file of a folder from strangers.

    Links may lead about inside the folder. A snapshot in the cache of the
    Hugging Face Hub, `<repository>/snapshots/<commit>`, is made of links to
    `<repository>/blobs`: there they may lead about in the repository.

    Args:
        folder: The folder.
        name: A file name, relative to it.

    Returns:
        The path with all links resolved, and the size in bytes.

    Raises:
        CheckpointError: if there is no such file, it is no regular file, or
            a link leads out of the folder.
    """
    path = pathlib.Path(folder) / name
    root = pathlib.Path(os.path.realpath(folder))
    if root.parent.name == "snapshots" and (root.parents[1] / "blobs").is_dir():
        root = root.parents[1]
    real = pathlib.Path(os.path.realpath(path))
    if root not in real.parents:
        raise CheckpointError(path, "file", "in its folder", f"a way to {real}")
    try:
        status = os.stat(real)
    except OSError as error:
        raise CheckpointError(path, "file", "there", error.strerror) from None
    # To open a pipe would wait for its writer for ever.
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(path, "file", "a file", "something else")
    return real, status.st_size
