"""Adding what all rows of a batch share."""

from typing import Any

from keras import ops

from keras_switch.ops.compiled import on_xla_s_cpu
from keras_switch.ops.indexing import upstream_of


def shared_add(x: Any, shared: Any) -> Any:
    """Adds one tensor to each row of a batch.

    The gradient of `shared` is a sum over the batch. XLA leaves a sum over the
    first axis to YNNPACK on a CPU, where it takes far longer than the
    product with a row of ones.

    Args:
        x: `[B, ...]`.
        shared: `[1, ...]`, or whatever broadcasts to `x`.

    Returns:
        `[B, ...]`.
    """
    if tuple(shared.shape) != (1, *x.shape[1:]) or not on_xla_s_cpu():
        return x + shared

    def forward(x, shared):
        def grad(*args, upstream=None):
            upstream = upstream_of(args, upstream)
            ones = ops.ones(upstream.shape[:1], upstream.dtype)
            total = ops.einsum("b,b...->...", ones, upstream)
            return upstream, ops.expand_dims(total, 0)

        return x + shared, grad

    return ops.custom_gradient(forward)(x, shared)
