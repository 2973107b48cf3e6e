"""A preset folder that is whole or absent, with its manifest."""

import contextlib
import contextvars
import json
import os
import pathlib
import shutil
from collections.abc import Iterator

from keras_switch.files import MANIFEST, atomic_folder, manifest_of
from keras_switch.models.preset_folder import (
    CONFIG,
    INDEX,
    PREPROCESSOR,
    SHARD,
    TASK,
    TASK_WEIGHTS,
    TOKENIZER,
    VOCABULARY,
    WEIGHTS,
    is_part,
)

_TOKENIZER = {TOKENIZER, VOCABULARY}
_BACKBONE = {CONFIG, "metadata.json", WEIGHTS, INDEX}
# What is no longer true once a part is written; a whole that contains the
# part goes, too: loading puts it together again from its parts.
STALE = {
    "backbone": _BACKBONE | {TASK, TASK_WEIGHTS},
    "tokenizer": _TOKENIZER | {PREPROCESSOR, TASK},
    "preprocessor": _TOKENIZER | {PREPROCESSOR, TASK},
    "task": _BACKBONE | _TOKENIZER | {PREPROCESSOR, TASK, TASK_WEIGHTS},
}
# The folder that is being written, where a task has its parts save themselves.
_OPEN: contextvars.ContextVar[str | None] = contextvars.ContextVar(
    "_OPEN", default=None
)


@contextlib.contextmanager
def preset_to_write(preset_dir: str | os.PathLike, part: str) -> Iterator[str]:
    """Gives a folder that becomes the preset if the block succeeds.

    Parts that are in `preset_dir` already stay, and so does whatever else is
    in it, unless it is a part that is written anew.

    Args:
        preset_dir: The folder of the preset.
        part: `"backbone"`, `"tokenizer"`, `"preprocessor"` or `"task"`.

    Returns:
        A context manager giving a folder to save the part into.
    """
    if is_open(preset_dir):
        yield _OPEN.get()
        return
    # A link to a folder stays a link.
    preset_dir = os.path.realpath(preset_dir)
    with atomic_folder(preset_dir) as folder:
        if os.path.isdir(preset_dir):
            _take_over(pathlib.Path(preset_dir), folder, STALE[part])
        token = _OPEN.set(os.fspath(folder))
        try:
            yield os.fspath(folder)
        finally:
            _OPEN.reset(token)
        names = [*os.listdir(folder), VOCABULARY]
        parts = [n for n in names if is_part(n) and (folder / n).is_file()]
        manifest = json.dumps(manifest_of(folder, parts), indent=2)
        (folder / MANIFEST).write_text(f"{manifest}\n", encoding="utf-8")


def is_open(preset_dir: str | os.PathLike) -> bool:
    """Whether a part is being saved into the folder of its whole."""
    return os.fspath(preset_dir) == _OPEN.get()


def _take_over(old, new, stale):
    """Links all that is still true; no file is written in place, ever."""

    def left_out(folder, names):
        prefix = os.path.relpath(folder, old)
        paths = {n: os.path.normpath(os.path.join(prefix, n)) for n in names}
        shards = WEIGHTS in stale
        return [
            name
            for name, path in paths.items()
            if path in stale
            or path == MANIFEST
            or (shards and SHARD.fullmatch(path))
        ]

    shutil.copytree(
        old,
        new,
        symlinks=True,
        ignore=left_out,
        copy_function=_link,
        dirs_exist_ok=True,
    )


def _link(old, new):
    try:
        os.link(old, new, follow_symlinks=False)
    except OSError:  # a file system without links
        shutil.copy2(old, new, follow_symlinks=False)
