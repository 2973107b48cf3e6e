"""A task of one's own, from a CSV or JSONL file."""

import csv
import io
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from keras_switch.tasks.splits import (
    SIDES,
    Row,
    Splits,
    split_as_given,
    split_rows,
)
from keras_switch.tasks.task import CLASSIFICATION, Task

SUFFIXES = (".csv", ".jsonl")
_COLUMNS = ("input", "target")
_SIDE, _GROUP = "split", "group"
# Targets are taken for labels if there are at most so many different ones,
# and each comes so often on average.
_MOST_LABELS, _LEAST_USES = 200, 5
_LATER = 0.1


def from_file(
    path: str | os.PathLike,
    template: str = "{input}",
    metrics: Sequence[str] | None = None,
    name: str | None = None,
) -> Task:
    """A task from a UTF-8 file of inputs and targets.

    A `.csv` file has a line with the names of its columns; in a `.jsonl` file
    each line is an object. `input` and `target` are strings. The column
    `split` may say on which side a row is (`train`, `validation` or `test`);
    rows that are on two of them are then dropped from the earlier one.
    Without it, a tenth is for validation and another for the test, by the hash
    of the column `group`, or else of the input.

    The file is read at once, so that what is wrong with it is said here.

    Args:
        path: of the file.
        template: as in `Task`.
        metrics: as in `Task`; `None` is `accuracy` and `macro_f1` where the
            targets are labels (at most 200 that come 5 times on average), and
            otherwise those of `Task`.
        name: of the task; by default the file's, without its extension.

    Returns:
        A `Task`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is not as above, with the line.

    Example:
        task = keras_switch.tasks.from_file("mine.jsonl", "question: {input}")
    """
    path = pathlib.Path(path).expanduser()
    sides = _split(path, _read(path))
    classification = _are_labels(sides)
    if metrics is None:
        metrics = CLASSIFICATION if classification else Task.metrics
    return Task(
        name or path.stem,
        # The rows as they were checked, whatever becomes of the file.
        lambda cache_dir=None: sides,
        template,
        tuple(metrics),
        classification,
    )


def _are_labels(sides):
    targets = [example.target for side in sides for example in side]
    different = len(set(targets))
    often = len(targets) >= _LEAST_USES * different
    return different <= _MOST_LABELS and often


def _read(path) -> list[tuple[int, dict[str, Any]]]:
    """The rows with the numbers of their lines."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(
            f"a file of a task must end with {' or '.join(SUFFIXES)}; "
            f"received {str(path)!r}."
        )
    if not path.is_file():
        raise FileNotFoundError(
            f"a task must be a file that is there; received {str(path)!r}."
        )
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"a file of a task must be UTF-8 text; received {str(path)!r}, "
            f"which is not at byte {error.start}: {error.reason}. "
            "iconv -f latin1 -t utf-8 turns one of Latin-1 into it."
        ) from error
    rows = _csv_rows(path, text) if suffix == ".csv" else _json_rows(path, text)
    if not rows:
        raise ValueError(
            f"{path} must hold rows with {' and '.join(_COLUMNS)}; received "
            "none."
        )
    return rows


def _csv_rows(path, text):
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    rows = []
    try:
        for row in reader:
            rows.append((reader.line_num, row))
            if None in row:
                raise ValueError(
                    f"{path} must have {len(reader.fieldnames)} columns; "
                    f"received more in line {reader.line_num}. A text with a "
                    "comma in it stands in double quotes."
                )
    except csv.Error as error:
        raise ValueError(
            f"{path} must be CSV; received {error} behind line "
            f"{reader.line_num}. JSONL holds any text."
        ) from error
    return rows


def _json_rows(path, text):
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{path} must hold a JSON object on each line; received "
                f"{line[:60]!r} in line {number}: {error}."
            ) from error
        if not isinstance(row, dict):
            raise ValueError(
                f"{path} must hold a JSON object on each line; received "
                f"{type(row).__name__} in line {number}."
            )
        rows.append((number, row))
    return rows


def _split(path, rows) -> Splits:
    checked = [_check(path, number, row) for number, row in rows]
    try:
        if not any(side for side, _ in checked):
            return split_rows((row for _, row in checked), _LATER, _LATER)
        by_side = {
            name: [row for side, row in checked if side == name]
            for name in SIDES
        }
        return split_as_given(by_side)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _check(path, number, row):
    """A row, and the side that it says."""
    for name in _COLUMNS:
        if name not in row:
            columns = ", ".join(map(repr, row)) or "none"
            raise ValueError(
                f"{path} must have the columns {' and '.join(_COLUMNS)}; "
                f"received {columns} in line {number}."
            )
    for name in (*_COLUMNS, _SIDE, _GROUP):
        value = row.get(name, "")
        empty = name in _COLUMNS and not str(value or "").strip()
        if not isinstance(value, str) or empty:
            raise ValueError(
                f"{name} must be a string{' with text' if empty else ''}; "
                f"received {value!r} in line {number} of {path}."
            )
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{name} must be text that UTF-8 can hold; received half a "
                f"character in line {number} of {path}: {error.reason}."
            ) from error
    side = row.get(_SIDE, "")
    if _SIDE in row and side not in SIDES:
        raise ValueError(
            f"{_SIDE} must be one of {', '.join(SIDES)}; received {side!r} in "
            f"line {number} of {path}."
        )
    group = row.get(_GROUP) or row["input"]
    return side, Row(row["input"], row["target"], group)
