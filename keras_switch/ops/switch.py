"""A choice at run time between functions that have gradients of their own."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from keras_switch.ops.layout import by_dtensor


def switch(index: Any, branches: Sequence[Callable], *operands: Any) -> Any:
    """Calls one of several functions; `keras.ops.switch` with gradients.

    JAX cannot differentiate a conditional in a branch of which there is a
    custom gradient. Here the gradient is a conditional itself, which computes
    the branch once more.

    Args:
        index: int scalar, which function.
        branches: They return a tensor of the same shape, and read no tensor
            that has a gradient but their arguments.
        *operands: Tensors.

    Returns:
        What the function returns; differentiable in the float operands.
    """
    if by_dtensor():  # which has conditions, and no cases
        return _nested(index, branches, operands)
    if keras.backend.backend() != "jax":
        return ops.switch(index, branches, *operands)
    import jax

    operands = [ops.convert_to_tensor(x) for x in operands]
    is_float = [
        jax.numpy.issubdtype(x.dtype, jax.numpy.floating) for x in operands
    ]

    @jax.custom_vjp
    def choose(index, *operands):
        return jax.lax.switch(index, branches, *operands)

    def forward(index, *operands):
        return choose(index, *operands), (index, operands)

    def backward(saved, upstream):
        index, operands = saved

        def gradients_of(branch):
            def call(upstream, *operands):
                gradients = jax.vjp(branch, *operands)[1](upstream)
                pairs = zip(gradients, is_float, strict=True)
                return [gradient for gradient, kept in pairs if kept]

            return call

        found = iter(
            jax.lax.switch(
                index, [gradients_of(b) for b in branches], upstream, *operands
            )
        )
        return (None, *(next(found) if kept else None for kept in is_float))

    choose.defvjp(forward, backward)
    return choose(index, *operands)


def _nested(index, branches, operands):
    first, *others = branches
    if not others:
        return first(*operands)
    return ops.cond(
        index < 1,
        lambda: first(*operands),
        lambda: _nested(index - 1, others, operands),
    )
