"""A folder that processes write together, each beside its training.

Threads may not ask other processes anything by way of devices, as that would
mix with what training sends. So they meet in the folder: of each process there
appears a report, after its file is whole and on the disk.
"""

import contextlib
import json
import pathlib
import time
from collections.abc import Callable
from typing import Any

from keras_switch.files import atomic_write, read_json

# Seconds to wait for another process. Process 0 may have the smallest part.
PATIENCE = 1800.0
# Seconds from one look to the next.
_PAUSE = 0.1
# A report may name every variable.
_MAX_REPORT = 1 << 26


def hand_in(
    folder: pathlib.Path,
    index: int,
    name: str,
    write: Callable[[pathlib.Path], str],
) -> None:
    """Writes the file of this process, then its report.

    Args:
        folder: Made if it is missing.
        index: Of this process.
        name: Of the file.
        write: Is given a path to write to, and returns a digest.

    Raises:
        OSError: if it could not be written. The report says so.
    """
    try:
        with atomic_write(folder / name) as temporary:
            digest = write(temporary)
    except OSError as error:
        _report_error(folder, index, error)
        raise
    report(folder, index, {"digest": digest})


def report(folder: pathlib.Path, index: int, content: dict[str, Any]) -> None:
    """Tells process 0 how it went.

    Args:
        folder: As for `hand_in`.
        index: Of this process.
        content: For JSON. With `error`, all processes fail.
    """
    with atomic_write(_report(folder, index)) as temporary:
        temporary.write_text(json.dumps(content), encoding="utf-8")


def reports(
    folder: pathlib.Path, count: int, patience: float
) -> list[dict[str, Any]]:
    """Waits until every process has reported.

    Args:
        folder: As for `hand_in`.
        count: Of processes.
        patience: Seconds to wait.

    Returns:
        The reports, in the order of processes.

    Raises:
        OSError: if a process reports an error, has no room to report one, or
            reports nothing in time.
    """
    end = time.monotonic() + patience
    found = []
    for index in range(count):
        path = _report(folder, index)
        while not path.exists():
            if _failed(folder, index).exists():
                raise OSError(
                    f"process {index} could not write its part, nor why not: "
                    "its disk may be full."
                )
            if time.monotonic() > end:
                raise TimeoutError(
                    f"{path}, which process {index} writes when its part is "
                    f"on the disk, must be there within {patience:.0f} s; it "
                    "is not. Every process must see this folder."
                )
            time.sleep(_PAUSE)
        found.append(read_json(path, _MAX_REPORT))
    for index, content in enumerate(found):
        if "error" in content:
            raise OSError(
                f"process {index} could not write its part: {content['error']}"
            )
    return found


def _report_error(folder, index, error):
    with contextlib.suppress(OSError):
        try:
            report(folder, index, {"error": str(error)})
        except OSError:
            # A full disk may still have room for a name.
            _failed(folder, index).touch()


def _failed(folder, index):
    return folder / f"failed-{index:05d}"


def _report(folder, index):
    return folder / f"report-{index:05d}.json"
