"""Each expert's whole feed-forward on its own rows, one expert after another.

Exactly the rows there are, and the hidden layer of one expert stays in the
caches. Only where a product may have a size that is not known before it runs:
on torch, and on TensorFlow outside XLA, on a CPU.
"""

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from keras_switch.ops.export import is_exporting, split_by
from keras_switch.ops.indexing import has_values
from keras_switch.ops.matmul import fewest_rows

# A graph holds the feed-forward of every expert: no more than these.
MOST_IN_GRAPH = 256


def can_loop(rows: Any, num_experts: int) -> bool:
    """Whether `loop_over_experts` may be called here.

    Args:
        rows: a tensor of the call.
        num_experts: `E`.
    """
    backend = keras.backend.backend()
    if backend == "torch" or has_values(rows):
        return has_values(rows) or is_exporting()
    return (
        backend == "tensorflow"
        and num_experts <= MOST_IN_GRAPH
        and _on_tensorflow_s_cpu()
    )


def _on_tensorflow_s_cpu():
    import tensorflow as tf
    from tensorflow.python.ops import control_flow_util

    # XLA compiles for sizes that it knows.
    graph = tf.compat.v1.get_default_graph()
    if control_flow_util.GraphOrParentsInXlaContext(graph):
        return False
    # Sizes would have to come from the accelerator, one after another.
    return not tf.config.list_physical_devices("GPU")


def loop_over_experts(
    feed_forward: Callable[..., Any],
    rows: Any,
    sizes: Any,
    kernels: Sequence[Any],
) -> Any:
    """Applies each expert to its rows.

    Its gradient would write a whole bank of kernels for each expert: give it
    another, see `with_gradient_of`.

    Args:
        feed_forward: of rows `[n, D]` and the kernels of one expert; returns
            `[n, D]`, each row for itself.
        rows: `[N, D]`, sorted by expert.
        sizes: int32 `[E]`, rows of each expert; their sum is at most `N`.
        kernels: tensors `[E, ...]`.

    Returns:
        `[N, D]`; 0 for rows that belong to no expert.
    """
    if is_exporting():
        parts = split_by(rows, sizes)
        return _of_parts(feed_forward, parts, kernels)
    count = ops.shape(rows)[0]
    fewest = fewest_rows(rows.shape[1])
    # With enough rows, what follows included, a row has the same bits always.
    padded = ops.pad(rows, ((0, fewest), (0, 0)))

    def run(expert, start, size, larger):
        window = padded[start : start + larger(size, fewest)]
        mine = [kernel[expert] for kernel in kernels]
        return feed_forward(window, *mine)[:size]

    parts, start = [], 0
    if has_values(sizes):
        for expert, size in enumerate(ops.convert_to_numpy(sizes).tolist()):
            if size:
                parts.append(run(expert, start, size, max))
                start += size
    else:
        for expert in range(sizes.shape[0]):
            size = sizes[expert]
            part = ops.cond(
                size > 0,
                lambda e=expert, i=start, n=size: run(e, i, n, ops.maximum),
                lambda: rows[:0],
            )
            parts.append(part)
            start = start + size
    parts.append(ops.zeros((count - start, rows.shape[1]), rows.dtype))
    return ops.concatenate(parts, axis=0)


def _of_parts(feed_forward, parts, kernels):
    """Without a condition: a program has no use for one around 0 rows."""
    *parts, rest = parts
    outputs = [
        feed_forward(part, *(kernel[expert] for kernel in kernels))
        for expert, part in enumerate(parts)
    ]
    return ops.concatenate([*outputs, ops.zeros_like(rest)], axis=0)


def with_gradient_of(plain: Callable, fast: Callable) -> Callable:
    """A function with the values of `fast` and the gradient of `plain`.

    Args:
        plain: of tensors; returns a tensor.
        fast: the same function, computed in another way.

    Returns:
        The function.
    """
    return {"jax": _on_jax, "tensorflow": _on_tensorflow, "torch": _on_torch}[
        keras.backend.backend()
    ](plain, fast)


def _on_jax(plain, fast):
    import jax

    @jax.custom_gradient
    def function(*tensors):
        def gradient(upstream):
            return jax.vjp(plain, *tensors)[1](upstream)

        return fast(*tensors), gradient

    return function


def _on_tensorflow(plain, fast):
    import tensorflow as tf

    @tf.custom_gradient
    def function(*tensors):
        def gradient(upstream):
            with tf.GradientTape() as tape:
                tape.watch(tensors)
                y = plain(*tensors)
            return tape.gradient(y, tensors, upstream)

        return fast(*tensors), gradient

    return function


def _on_torch(plain, fast):
    import torch

    if not torch.is_grad_enabled():
        return fast

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(context, *tensors):
            context.save_for_backward(*tensors)
            return fast(*tensors)

        @staticmethod
        def backward(context, upstream):
            tensors, needed = context.saved_tensors, context.needs_input_grad
            wanted = [t for t, n in zip(tensors, needed, strict=True) if n]
            again = torch.is_grad_enabled()  # a gradient of the gradient
            with torch.enable_grad():
                y = plain(*tensors)
            found = iter(
                torch.autograd.grad(y, wanted, upstream, create_graph=again)
            )
            return tuple(next(found) if n else None for n in needed)

    return Function.apply
