"""Products of every expert's rows with its own matrix, and their gradients.

Letters: `E` experts, `N` rows of each, `D` and `F` widths. The plain form is
an einsum; what XLA makes of it on a CPU loses time, measured by
`benchmark.py --what=layer`:

- In float32 it hands a product to YNNPACK, which packs the matrix of an expert
  at each call: for a handful of rows that is most of the time. With the rows
  transposed, which are few, matrices are read as they lie. Also a row then has
  the same bits however many there are, from 8 on (YNNPACK: 17 to 49).
- A product of bfloat16 that returns bfloat16 is computed in float32. One that
  returns float32 uses the instructions that the CPU has for it.
"""

from typing import Any

import keras
from keras import ops

from keras_switch.ops import matmul
from keras_switch.ops.compiled import on_xla_s_cpu
from keras_switch.ops.indexing import static_size, upstream_of

# Up to here copies of rows are cheaper than a packed matrix.
_FEW_ROWS = 128


def fewest_rows(kernel: Any) -> int:
    """Rows of an expert from which on its product gives a row the same bits.

    Measured on CPUs of two cores.

    Args:
        kernel: `[E, D, F]`, in the dtype of the rows.
    """
    width, units = kernel.shape[1:]
    if not _transposes(kernel):
        return matmul.fewest_rows(width)
    # Long sums of a small product are shared out among threads.
    if width > 512 and units < 512:
        return -(-8192 // units)
    return 8


def expert_matmul(rows: Any, kernel: Any, same_bits: bool = False) -> Any:
    """Multiplies rows of each expert by its kernel.

    Args:
        rows: `[E, N, D]`.
        kernel: `[E, D, F]`, in the dtype of `rows`.
        same_bits: Whether a row's product must not depend on how many rows
            there are, from `fewest_rows` on.

    Returns:
        `[E, N, F]`; differentiable in both.
    """
    if not on_xla_s_cpu():
        return _plain(rows, kernel)

    def forward(rows, kernel):
        def grad(*args, upstream=None):
            upstream = upstream_of(args, upstream)
            return (
                expert_matmul_transposed(upstream, kernel),
                expert_outer(rows, upstream),
            )

        if not _transposes(rows, few=not same_bits):
            return _plain(rows, kernel), grad
        return _dot(_swapped(rows), kernel, 1, 1), grad

    return ops.custom_gradient(forward)(rows, ops.convert_to_tensor(kernel))


def expert_matmul_transposed(rows: Any, kernel: Any) -> Any:
    """Multiplies rows of each expert by its kernel, transposed.

    Args:
        rows: `[E, N, F]`.
        kernel: `[E, D, F]`, in the dtype of `rows`.

    Returns:
        `[E, N, D]`.
    """
    if not _transposes(rows, few=True):
        return _plain(rows, kernel, transpose_b=True)
    import jax

    # Nor is the product to be merged with the copy that follows.
    product = _dot(kernel, _swapped(rows), 2, 1)
    return ops.swapaxes(jax.lax.optimization_barrier(product), 1, 2)


def expert_outer(rows: Any, others: Any) -> Any:
    """Sums the outer products of each expert's rows.

    Args:
        rows: `[E, N, D]`.
        others: `[E, N, F]`.

    Returns:
        `[E, D, F]`.
    """
    return _plain(rows, others, transpose_a=True)


def _plain(a, b, transpose_a=False, transpose_b=False):
    """`[E, ...]` matrix products."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        # Its einsum would transpose kernels in memory, for gradients.
        return tf.matmul(a, b, transpose_a=transpose_a, transpose_b=transpose_b)
    equation = "{},{}->eik".format(
        "eji" if transpose_a else "eij", "ekj" if transpose_b else "ejk"
    )
    if on_xla_s_cpu() and _dtype(a) == "bfloat16":
        import jax.numpy as jnp

        product = jnp.einsum(equation, a, b, preferred_element_type="float32")
        return product.astype(a.dtype)
    return ops.einsum(equation, a, b)


def _dtype(x):
    return keras.backend.standardize_dtype(x.dtype)


def _transposes(rows, few=False):
    """Whether a product goes by way of transposed rows."""
    if not on_xla_s_cpu():
        return False
    if _dtype(rows) != "float32":
        return False
    count = static_size(ops.shape(rows)[1])
    return not few or (count is not None and count <= _FEW_ROWS)


def _swapped(x):
    """`[E, A, B]` -> `[E, B, A]` in memory: XLA is not to merge the copy into
    the product that follows."""
    import jax

    return jax.lax.optimization_barrier(ops.swapaxes(x, 1, 2))


def _dot(a, b, axis, other_axis):
    import jax

    axes = (((axis,), (other_axis,)), ((0,), (0,)))
    return jax.lax.dot_general(a, b, axes)
