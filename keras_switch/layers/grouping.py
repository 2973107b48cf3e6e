"""Groups of tokens: those that compete for capacity together."""

from typing import Any

from keras import ops

from keras_switch.layers.capacity import larger, smaller
from keras_switch.ops.layout import data_shards


def group(values: Any, x: Any, group_size: int | None) -> Any:
    """Cuts a batch into groups.

    Args:
        values: `[B, T, ...]`.
        x: `[B, T, D]`, for its shape.
        group_size: int, tokens of a group, taken from the flattened batch;
            `None` for groups of one row.

    Returns:
        `[G, S, ...]`; the last group is filled up with zeros.
    """
    if group_size is None:
        return values
    parts, tokens, size, groups = _sizes(x, group_size)
    rest = tuple(ops.shape(values)[2:])
    rows = ops.reshape(values, (parts, tokens, *rest))
    extra = (parts, groups * size - tokens, *rest)
    rows = ops.concatenate([rows, ops.zeros(extra, rows.dtype)], axis=1)
    return ops.reshape(rows, (parts * groups, size, *rest))


def ungroup(outputs: Any, x: Any, group_size: int | None) -> Any:
    """Puts groups back to the shape of a batch.

    Args:
        outputs: `[G, S, D]`.
        x: `[B, T, D]`, as it was given to `group`.
        group_size: as it was given to `group`.

    Returns:
        `[B, T, D]`.
    """
    if group_size is None:
        return outputs
    parts, tokens, size, groups = _sizes(x, group_size)
    flat = ops.reshape(outputs, (parts, groups * size, -1))
    return ops.reshape(flat[:, :tokens], ops.shape(x))


def _sizes(x, group_size):
    """Parts of the batch, tokens of each, tokens and number of its groups.

    A part is what lies on one device: no group is of two.
    """
    batch, length, _ = ops.shape(x)
    parts = data_shards()
    if parts > 1 and batch % parts:
        parts = 1
    tokens = batch * length // parts
    size = larger(smaller(group_size, tokens), 1)
    return parts, tokens, size, (tokens + size - 1) // size
