"""Which tokens share a row of a batch."""

import bisect
from typing import Any, NamedTuple

import numpy as np

# How many open rows with enough room for the inputs are asked whether they
# also have room for the targets.
_TRIES = 16


class Rows(NamedTuple):
    """Rows of pieces; a piece is a stretch of one document.

    Args:
        starts: int64 `[P]`, where in the flat tokens a piece starts.
        lengths: int64 `[P]`.
        offsets: int64 `[R + 1]`; row r holds the pieces `offsets[r]` to
            `offsets[r + 1] - 1`.
    """

    starts: np.ndarray
    lengths: np.ndarray
    offsets: np.ndarray


def cut_documents(
    offsets: np.ndarray, window: int, min_tokens: int
) -> tuple[np.ndarray, np.ndarray]:
    """Cuts every document into pieces of `window` tokens and a rest.

    Args:
        offsets: int64 `[documents + 1]`, where documents start and end.
        window: the longest piece.
        min_tokens: shorter rests, and documents, are left out.

    Returns:
        `(starts, lengths)` of the pieces, int64 `[P]`, in the order of the
        text.
    """
    documents = np.diff(offsets)
    count = -(-documents // window)
    number = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    starts = np.repeat(offsets[:-1], count) + number * window
    lengths = np.minimum(np.repeat(offsets[1:], count) - starts, window)
    long_enough = lengths >= min_tokens
    return starts[long_enough], lengths[long_enough]


def one_piece_rows(starts: np.ndarray, lengths: np.ndarray) -> Rows:
    """A row for every piece.

    Args:
        starts: int64 `[P]`.
        lengths: int64 `[P]`.

    Returns:
        `Rows`.
    """
    return Rows(starts, lengths, np.arange(len(starts) + 1))


def packed_rows(
    starts: np.ndarray,
    lengths: np.ndarray,
    objective: Any,
    input_length: int,
    target_length: int,
) -> Rows:
    """Pieces packed so that few rows hold them all.

    Longest pieces first, each goes where it leaves the least room (best-fit
    decreasing). A row holds the inputs and the targets of its pieces, eos
    included.

    Args:
        starts: int64 `[P]`.
        lengths: int64 `[P]`.
        objective: tells the lengths of inputs and targets.
        input_length: room for the inputs of a row.
        target_length: room for the targets of a row.

    Returns:
        `Rows`, by the first piece of each.
    """
    inputs, targets = objective.lengths(lengths)
    row = _best_fit(inputs, targets, input_length, target_length)
    # Rows are numbered again, by the first of their pieces in the text.
    _, first, row = np.unique(row, return_index=True, return_inverse=True)
    row = np.argsort(np.argsort(first))[row]
    order = np.argsort(row, kind="stable")
    counts = np.bincount(row)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    return Rows(starts[order], lengths[order], offsets)


def _best_fit(inputs, targets, input_length, target_length):
    """The row of every piece."""
    rows = np.zeros(len(inputs), np.int64)
    room = []  # Sorted (inputs, targets, row) of the rows with room.
    num_rows, least = 0, int(inputs.min())
    for piece in np.argsort(-inputs, kind="stable").tolist():
        need, need_target = int(inputs[piece]), int(targets[piece])
        first = bisect.bisect_left(room, (need, need_target, -1))
        for index in range(first, min(first + _TRIES, len(room))):
            if room[index][1] >= need_target:
                left, left_target, row = room.pop(index)
                break
        else:
            left, left_target, row = input_length, target_length, num_rows
            num_rows += 1
        rows[piece] = row
        if left - need >= least:
            place = (left - need, left_target - need_target, row)
            bisect.insort(room, place)
    return rows
