"""Index arithmetic for sequences of several lengths laid end to end."""

import numpy as np


def starts_of(lengths: np.ndarray) -> np.ndarray:
    """Where each sequence starts.

    Args:
        lengths: int64 `[N]`.

    Returns:
        int64 `[N]`, the sum of the lengths in front.
    """
    return np.cumsum(lengths) - lengths


def positions(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The ranges `start .. start + length - 1`, one after the other.

    Args:
        starts: int64 `[N]`.
        lengths: int64 `[N]`.

    Returns:
        int64 `[sum(lengths)]`.
    """
    shift = np.repeat(starts - starts_of(lengths), lengths)
    return shift + np.arange(shift.size)
