"""A matrix product whose rows do not depend on how many there are."""

from typing import Any

import keras
from keras import ops

from keras_switch.ops.indexing import static_size

# XLA's by the length of the sums; the first bound above it counts.
_FEWEST_ON_JAX = ((512, 64), (768, 48), (1024, 24))


def fewest_rows(width: int) -> int:
    """Rows from which on a product gives a row the same bits.

    Matrix libraries sum in another order for a handful of rows: MKL for fewer
    than 12, XLA for as many as 63 where sums are short. Measured on CPUs.

    Args:
        width: Length of the sums, the last dimension of the rows.
    """
    if keras.backend.backend() == "jax":
        for bound, rows in _FEWEST_ON_JAX:
            if width < bound:
                return rows
    return 16


def matmul_rows(x: Any, kernel: Any) -> Any:
    """`[G, S, D]`, `[D, F]` -> `[G, S, F]`, through enough rows."""
    groups, tokens, width = ops.shape(x)
    count = static_size(groups, tokens)
    fewest = fewest_rows(width)
    if count is None or count >= fewest:
        return ops.matmul(x, kernel)
    rows = ops.reshape(x, (count, width))
    rows = ops.pad(rows, ((0, fewest - count), (0, 0)))
    product = ops.matmul(rows, kernel)[:count]
    return ops.reshape(product, (groups, tokens, ops.shape(kernel)[1]))
