"""JSON from strangers: read strictly."""

import json
import os
import re
from typing import Any

from keras_switch.files.errors import CheckpointError

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
_STRING = r'"(?:[^"\\]|\\.)*"'


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
        CheckpointError: if the file is missing, too large, not JSON, not an
            object, nested more than 32 deep, has a key twice, or NaN or an
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

    text = _read_text(path, max_bytes)
    _check_depth(path, text)
    try:
        value = json.loads(
            text, object_pairs_hook=pairs, parse_constant=constant
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


def _read_text(path, max_bytes):
    try:
        with open(path, "rb") as file:
            data = file.read(max_bytes + 1)
        if len(data) > max_bytes:
            raise CheckpointError(
                path, "size", f"at most {max_bytes} bytes", "more"
            )
        return data.decode("utf-8")
    except OSError as error:
        raise CheckpointError(
            path, "file", "readable", error.strerror
        ) from None
    except UnicodeDecodeError as error:
        raise CheckpointError(path, "content", "UTF-8", str(error)) from None


def _check_depth(path, text):
    depth = 0
    for character in re.sub(_STRING, "", text):
        depth += (character in "[{") - (character in "]}")
        if depth > MAX_DEPTH:
            raise CheckpointError(
                path, "nesting", f"at most {MAX_DEPTH} deep", "more"
            )
