"""JSON from strangers: read strictly."""

import json
import os
import re
import stat
from typing import Any

from keras_switch.files.errors import CheckpointError

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
# A value takes some 100 bytes of memory, of the file perhaps 2: so many in any
# file, and one for each 64 bytes of a file that may be larger.
MAX_VALUES = 1 << 17
# Of a string that never ends, all the rest; nothing is looked at twice.
_STRING = re.compile(r'"(?:[^"\\]++|\\.?)*+"?', re.DOTALL)
_NOT_BRACKETS = re.compile(r"[^][{}]+")


def read_json(
    path: str | os.PathLike, max_bytes: int = MAX_BYTES
) -> dict[str, Any]:
    """Reads a JSON object; refuses what JSON readers usually let pass.

    Args:
        path: File of one JSON object, in UTF-8.
        max_bytes: Largest size that is read.

    Returns:
        The object.

    Raises:
        CheckpointError: if the file is missing, no file, too large, or as
            `parse_json`.
    """
    return parse_json(path, read_bytes(path, max_bytes), max_bytes)


def read_bytes(path: str | os.PathLike, max_bytes: int) -> bytes:
    """Reads a file that must not be larger than it says.

    Raises:
        CheckpointError: if it is missing, no file, or larger than
            `max_bytes`.
    """
    try:
        # To open a pipe would wait for its writer for ever.
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(path, "file", "a file", "something else")
        data = b""
        if status.st_size <= max_bytes:
            with open(path, "rb") as file:
                data = file.read(max_bytes + 1)
    except OSError as error:
        raise CheckpointError(
            path, "file", "readable", error.strerror
        ) from None
    if max(status.st_size, len(data)) > max_bytes:
        raise CheckpointError(
            path, "size", f"at most {max_bytes} bytes", "more"
        )
    return data


def parse_json(
    path: str | os.PathLike, data: bytes, max_bytes: int = MAX_BYTES
) -> dict[str, Any]:
    """The JSON object that a file holds.

    Args:
        path: The file, for messages.
        data: What is in it.
        max_bytes: How large it might have been; one value for each 64 bytes
            of that is parsed, or 131,072 if that is more.

    Returns:
        The object.

    Raises:
        CheckpointError: if it is not JSON in UTF-8, not an object, nested more
            than 32 deep, of too many values, has a key twice, or NaN or an
            infinity.
    """

    def pairs(items):
        seen = {}
        for name, value in items:
            if name in seen:
                raise CheckpointError(path, name, "there once", "it twice")
            seen[name] = value
        return seen

    def constant(name):
        raise CheckpointError(path, "JSON", "without NaN and infinities", name)

    def number(text):
        value = float(text)
        return constant(text) if value in (_INFINITY, -_INFINITY) else value

    _check_values(path, data, max(MAX_VALUES, max_bytes >> 6))
    text = _decode(path, data)
    _check_depth(path, text)
    try:
        value = json.loads(
            text,
            object_pairs_hook=pairs,
            parse_constant=constant,
            parse_float=number,
        )
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise CheckpointError(path, "content", "JSON", str(error)) from None
    if not isinstance(value, dict):
        raise CheckpointError(
            path, "content", "a JSON object", type(value).__name__
        )
    return value


_INFINITY = float("inf")


def _decode(path, data):
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(path, "content", "UTF-8", str(error)) from None


def _check_values(path, data, max_values):
    # Those in strings count, too: it is a bound.
    if sum(map(data.count, (b",", b"[", b"{"))) > max_values:
        raise CheckpointError(
            path, "content", f"of at most {max_values} values", "more"
        )


def _check_depth(path, text):
    depth = 0
    for character in _NOT_BRACKETS.sub("", _STRING.sub("", text)):
        depth += 1 if character in "[{" else -1
        if depth > MAX_DEPTH:
            raise CheckpointError(
                path, "nesting", f"at most {MAX_DEPTH} deep", "more"
            )
