"""The cores that this process may use."""

import os


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
