"""Where a product gives a row the same bits, whatever rows are beside it."""

import functools
from pathlib import Path

import numpy as np


@functools.cache
def are_kept() -> bool:
    """Whether equal bits are promised here.

    They are where they were measured, on CPUs with AVX-512. On others the
    matrix libraries of JAX and TensorFlow sum in another order for other
    numbers of rows (seen on an AMD EPYC without it, by a last bit).
    """
    path = Path("/proc/cpuinfo")
    return path.exists() and " avx512f " in path.read_text()


def assert_same(found: np.ndarray, wanted: np.ndarray) -> None:
    """Equal bits where they are kept, elsewhere equal but for rounding.

    Sums round by the size of their terms, however small they come out.
    """
    if are_kept():
        np.testing.assert_array_equal(found, wanted)
    else:
        size = np.abs(wanted).max(initial=0.0)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-6 * size)
