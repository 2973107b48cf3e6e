"""A matrix product whose rows do not depend on how many there are."""

from typing import Any

import keras
from keras import ops

from keras_switch.ops.indexing import static_size

# Matrix libraries sum in another order for a handful of rows: MKL for fewer
# than 12, XLA for fewer than 63 at some sizes. A product of at least this many
# keeps a row's result bit-equal whatever it is batched with.
FEWEST_ROWS = 64 if keras.backend.backend() == "jax" else 16
# Buffers exist for every expert, so there the price of more rows is paid E
# times: enough for MKL, and for most sizes on XLA (2e-6 apart at the others).
FEWEST_BUFFER_ROWS = 16


def matmul_rows(x: Any, kernel: Any) -> Any:
    """`[G, S, D]`, `[D, F]` -> `[G, S, F]`, through enough rows."""
    groups, tokens, width = ops.shape(x)
    count = static_size(groups, tokens)
    if count is None or count >= FEWEST_ROWS:
        return ops.matmul(x, kernel)
    rows = ops.reshape(x, (count, width))
    rows = ops.pad(rows, ((0, FEWEST_ROWS - count), (0, 0)))
    product = ops.matmul(rows, kernel)[:count]
    return ops.reshape(product, (groups, tokens, ops.shape(kernel)[1]))
