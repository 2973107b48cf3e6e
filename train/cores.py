"""The cores that this process may use."""

import contextlib
import os
from collections.abc import Iterator


def ids() -> list[int]:
    """Their numbers; on systems that tell no more, those of the machine."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def pin(core: int) -> None:
    """Keeps the process on one core, where the system can.

    Call it before a backend is imported, which counts its threads then.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})


@contextlib.contextmanager
def pinned(core: int) -> Iterator[None]:
    """Processes that the block starts are kept on one core, where they can be.

    Args:
        core: Its number.
    """
    before = ids()
    pin(core)
    try:
        yield
    finally:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, before)
