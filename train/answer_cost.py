"""What a model costs whoever serves it: bytes, milliseconds an answer."""

import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any


def folder_bytes(folder: str) -> int:
    """Bytes of all files in a folder and in those below it."""
    return sum(
        os.path.getsize(os.path.join(parent, name))
        for parent, _, names in os.walk(folder)
        for name in names
    )


def latency(
    answer: Callable[[list], list[str]], examples: Sequence[Any]
) -> dict[str, Any]:
    """How long an answer takes, from its text to its text, one at a time.

    Args:
        answer: Answers some examples.
        examples: Asked one by one, in their order, twice: the first time
            compiles what their lengths need, and is not counted.

    Returns:
        `answers`, how many were timed; `median_ms` and `longest_ms`.
    """
    for example in examples:
        answer([example])
    times = []
    for example in examples:
        start = time.perf_counter()
        answer([example])
        times.append(1e3 * (time.perf_counter() - start))
    return {
        "answers": len(times),
        "median_ms": statistics.median(times),
        "longest_ms": max(times),
    }
