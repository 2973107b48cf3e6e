"""Output folders that say which command made them, so that a rerun can tell."""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from keras_switch_train import flags

# Lies beside the files of a preset, whose loader never reads it.
_NAME = "made_by.json"
_NEW = "--output must be a new folder, or empty; received"


def settings(binary: str, preset: str, **values: Any) -> dict[str, Any]:
    """What makes two commands the same one.

    Args:
        binary: Its name.
        preset: The folder that is read; its manifest tells a preset from a
            later one of the same name.
        **values: What the flags say, as JSON has it.
    """
    from keras_switch import files

    manifest = os.path.join(preset, "manifest.json")
    digest = files.sha256(manifest) if os.path.isfile(manifest) else None
    told = {"preset": os.path.abspath(preset), "manifest": digest}
    return {"binary": binary, **told, **values}


def check_output(output: str) -> None:
    """Refuses a folder with files that no command like these has made.

    Raises:
        UsageError: if so.
    """
    if os.path.isdir(output):
        names = os.listdir(output)
        if not names or _NAME in names:
            return
    if os.path.lexists(output):
        raise flags.UsageError(f"{_NEW} {output!r}.")


def is_done(output: str, wanted: dict[str, Any]) -> bool:
    """Whether the same command has finished already; it says so, then.

    Args:
        output: `--output`, after `check_output`.
        wanted: From `settings`.

    Raises:
        UsageError: if another command has made the folder.
    """
    from keras_switch import files

    path = os.path.join(output, _NAME)
    if not os.path.isfile(path):
        return False
    with flags.blame("output"):
        found = files.read_json(path)
    if found != wanted:
        other = sorted(
            name
            for name in {*found, *wanted}
            if found.get(name) != wanted.get(name)
        )
        raise flags.UsageError(
            f"{_NEW} {output!r}, which was made with another "
            f"{', '.join(other)}."
        )
    print(f"{output} is made already; nothing is left to do")
    return True


@contextlib.contextmanager
def folder(output: str, made_by: dict[str, Any]) -> Iterator[pathlib.Path]:
    """Gives a temporary folder that becomes `output`, whole or not at all.

    Args:
        output: As `--output`.
        made_by: From `settings`.
    """
    from keras_switch import files

    with flags.blame("output"), files.atomic_folder(output) as temporary:
        yield temporary
        text = json.dumps(made_by, indent=1)
        (temporary / _NAME).write_text(text, encoding="utf-8")
