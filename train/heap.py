"""Keeps freed memory in the process, so that a step does not page it in anew.

XLA and TensorFlow free and allocate every buffer of a step. For blocks this
large glibc's malloc asks the kernel for fresh pages each time, and the kernel
clears them: on a CPU this can cost more than the arithmetic.
"""

import ctypes
import os
import platform

# Numbers of malloc.h, which the manual page mallopt(3) describes.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_M_ARENA_MAX = -8


def retain() -> str:
    """Tells glibc to keep what is freed; call it before the first step.

    The price is resident memory: what was once in use stays with the process.

    Returns:
        A line for the log that says what was done, or why nothing was.
    """
    if platform.libc_ver()[0] != "glibc":
        return "heap: left alone, this is not glibc's malloc"
    if os.path.exists("/dev/nvidiactl"):
        return "heap: left alone, the steps run on an accelerator"
    mallopt = ctypes.CDLL(None).mallopt
    settings = (
        (_M_MMAP_MAX, 0),
        (_M_TRIM_THRESHOLD, -1),  # never
        (_M_ARENA_MAX, 1),
    )
    # mallopt returns 1 for success; all three must hold to be of use.
    if not all([mallopt(name, value) for name, value in settings]):
        return "heap: left alone, mallopt refused"
    return "heap: freed memory is kept in the process (--noretain_heap)"


def release() -> None:
    """Gives what is free now back to the system, once: call it after work that
    takes more memory than what follows, such as loading."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
