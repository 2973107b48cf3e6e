"""Each row times the matrix it names: what a decode step needs.

A step of generation has a row or a few of each sequence. Sorting them by
expert would bring nothing; each reads its own expert's matrix, and no other
is touched.
"""

from typing import Any

import keras
from keras import ops

from keras_switch.ops.compiled import compiled
from keras_switch.ops.export import is_exporting
from keras_switch.ops.indexing import has_values, static_size

# More rows than this share experts enough for the grouped product to win,
# where there are no more experts than rows.
MOST_ROWS = 32


def serves(num_rows: Any, num_experts: int) -> bool:
    """Whether `matmul_by_row` is the way to multiply so many rows.

    Args:
        num_rows: Number of rows; a tensor if it is known at run time only.
        num_experts: Number of matrices.
    """
    known = static_size(num_rows)
    return known is not None and known <= max(MOST_ROWS, num_experts)


def matmul_by_row(rows: Any, expert_index: Any, kernel: Any) -> Any:
    """Multiplies each row by the matrix of its own expert.

    Args:
        rows: `[N, D]`.
        expert_index: int32 `[N]`; `E` for a row of no expert.
        kernel: `[E, D, F]`, in the dtype of `rows`.

    Returns:
        `[N, F]`; 0 for rows that belong to no expert. A row's bits do not
        depend on the other rows.
    """
    arguments = map(ops.convert_to_tensor, (rows, expert_index, kernel))
    if is_exporting():
        return _at_once(*arguments)
    return _matmul_by_row(*arguments)


def matmul_by_row_reference(rows: Any, expert_index: Any, kernel: Any) -> Any:
    """The plain form: every row times every matrix, then its own is kept."""
    every = ops.einsum("nd,edf->nef", rows, kernel)
    experts = ops.arange(ops.shape(kernel)[0], dtype="int32")
    mine = ops.expand_dims(expert_index, -1) == experts  # [N, E]
    zero = ops.zeros((), dtype=every.dtype)
    return ops.sum(ops.where(ops.expand_dims(mine, -1), every, zero), axis=1)


def _at_once(rows, expert_index, kernel):
    """Without a loop, which an exported program would have for each row."""
    num_experts = kernel.shape[0]
    safe = ops.minimum(expert_index, num_experts - 1)
    matrices = ops.take(kernel, safe, axis=0)  # [N, D, F]
    products = ops.matmul(ops.expand_dims(rows, 1), matrices)[:, 0]
    owned = ops.expand_dims(expert_index < num_experts, -1)
    return ops.where(owned, products, ops.zeros((), dtype=products.dtype))


@compiled()
def _matmul_by_row(rows, expert_index, kernel):
    # Rows of one expert one after the other: its matrix stays in the cache.
    order = ops.argsort(expert_index)
    back = ops.argsort(order)
    rows = ops.take(rows, order, axis=0)
    expert_index = ops.take(expert_index, order, axis=0)
    products = _in_turn(rows, expert_index, kernel)
    return ops.take(products, back, axis=0)


def _in_turn(rows, expert_index, kernel):
    num_experts = kernel.shape[0]
    if has_values(expert_index):
        return _loop(rows, expert_index, kernel)
    safe = ops.minimum(expert_index, num_experts - 1)

    def one(arguments):
        row, index = arguments
        return _row_times(row, _matrix(kernel, index))

    products = ops.map(one, (rows, safe))
    owned = ops.expand_dims(expert_index < num_experts, -1)
    return ops.where(owned, products, ops.zeros((), dtype=products.dtype))


def _loop(rows, expert_index, kernel):
    """In Python, where it may read the index; views copy nothing."""
    num_experts = kernel.shape[0]
    nothing = ops.zeros((kernel.shape[2],), dtype=rows.dtype)
    indices = ops.convert_to_numpy(expert_index).tolist()
    return ops.stack(
        [
            _row_times(rows[i], kernel[e]) if e < num_experts else nothing
            for i, e in enumerate(indices)
        ]
    )


def _row_times(row, matrix):
    return ops.matmul(ops.expand_dims(row, 0), matrix)[0]


def _matrix(kernel, index):
    """One matrix of `[E, D, F]`."""
    if keras.backend.backend() == "tensorflow":
        # XLA would compile a slice of TensorFlow's anew for every start.
        return ops.take(kernel, index, axis=0)
    _, d, f = kernel.shape
    return ops.slice(kernel, (index, 0, 0), (1, d, f))[0]
