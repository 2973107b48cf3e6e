"""What a layer computes, computed again for its gradient instead of kept."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import keras

from keras_switch.ops.layout import by_dtensor
from keras_switch.ops.state import record

_kept = contextvars.ContextVar("_kept", default=False)


@contextlib.contextmanager
def everything_kept() -> Iterator[None]:
    """Within the block nothing is rematerialized: every value can be read."""
    token = _kept.set(True)
    try:
        yield
    finally:
        _kept.reset(token)


def rematerialize(
    layer: keras.layers.Layer,
    function: Callable[..., Any],
    inputs: dict[str, Any],
) -> Any:
    """Calls a function of a layer; its gradient computes it a second time.

    Of the first time only inputs and weights are kept. `keras.remat` alone
    would do so for a function without state: a router's losses and statistics
    and the states of random generators would be of the second time, or of a
    trace that is over. Here they go in as values and come out as values, so
    that both times draw the same and each loss counts once.

    Args:
        layer: The layer that is called; all variables `function` uses are its.
        function: Takes `inputs` by name, returns a float tensor.
        inputs: Tensors, or `None`.

    Returns:
        What `function` returns.

    Raises:
        RuntimeError: over a mesh of TensorFlow.
    """
    if _kept.get():
        return function(**inputs)
    if by_dtensor():
        raise RuntimeError(
            "rematerialize over a mesh needs the JAX backend: it is not "
            "supported with TensorFlow's DTensor. Make the model with "
            "rematerialize=False."
        )
    variables = layer.variables
    run = {"jax": _jax, "tensorflow": _tensorflow, "torch": _torch}
    outputs, losses, updates = run[keras.backend.backend()](
        _Pure(function, variables), inputs
    )
    for loss in losses:
        layer.add_loss(loss)
    for variable, value in zip(variables, updates, strict=True):
        if value is not None:
            record(variable, value)
    return outputs


class _Pure:
    """A function of a layer as one of tensors and of values of variables."""

    def __init__(self, function, variables):
        self.function = function
        self.variables = variables

    def __call__(self, inputs, values):
        """What it returns, its losses, and new values or `None`."""
        state = list(zip(self.variables, values, strict=True))
        with keras.StatelessScope(state, collect_losses=True) as scope:
            before = [scope.get_current_value(v) for v in self.variables]
            outputs = self.function(**inputs)
            after = [scope.get_current_value(v) for v in self.variables]
        updates = [
            None if now is old else now
            for old, now in zip(before, after, strict=True)
        ]
        return outputs, list(scope.losses), updates


def _jax(pure, inputs):
    import jax

    # Not jax.checkpoint: what it has traced it differentiates later, when the
    # tracers are gone that custom gradients in the function close over.
    @jax.custom_vjp
    def run(inputs, values):
        return pure(inputs, values)

    def forward(inputs, values):
        return pure(inputs, values), (inputs, values)

    def backward(kept, slopes):
        inputs, values = jax.lax.optimization_barrier(kept)
        slope = slopes[0]
        inputs = {n: _opaque(x, slope) for n, x in inputs.items()}
        values = [
            value if variable.trainable else _opaque(value, slope)
            for variable, value in zip(pure.variables, values, strict=True)
        ]
        _, pull_back = jax.vjp(pure, inputs, values)
        return pull_back(slopes)

    run.defvjp(forward, backward)
    return run(inputs, [variable.value for variable in pure.variables])


def _opaque(x, slope):
    """`x`, which the compiler cannot know to be what the first time used: it
    would keep what it computes of that, since XLA drops a barrier on a CPU.

    Element by element, which sends nothing over a mesh; by the gradient where
    the shapes agree, so that nothing is computed before that is there.
    """
    import jax

    if x is None or x.dtype == bool:
        return x
    bits = slope if x.shape == slope.shape else x
    kind = {1: "int8", 2: "int16", 4: "int32", 8: "int64"}[bits.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(bits, kind)
    return jax.numpy.where((bits | 1) == 0, jax.numpy.zeros_like(x), x)


def _tensorflow(pure, inputs):
    import tensorflow as tf

    values = [tf.convert_to_tensor(v.value) for v in pure.variables]
    # Only what is handed over has a gradient; integers must not be.
    names = [n for n, x in inputs.items() if x is not None and _is_float(x)]
    trained = [i for i, v in enumerate(pure.variables) if v.trainable]
    first = []

    def run(*floats):
        given = {**inputs, **dict(zip(names, floats, strict=False))}
        state = list(values)
        for i, value in zip(trained, floats[len(names) :], strict=True):
            state[i] = value
        outputs, losses, updates = pure(given, state)
        if not first:  # the second time is for the gradient
            first.extend(updates)
        return (outputs, *losses)

    handed = [inputs[n] for n in names] + [values[i] for i in trained]
    outputs, *losses = keras.remat(run)(*handed)
    return outputs, losses, first


def _is_float(x):
    return keras.backend.is_float_dtype(
        keras.backend.standardize_dtype(x.dtype)
    )


def _torch(pure, inputs):
    # Random states are written in place before the second time.
    values = [
        v.value if v.trainable else v.value.clone() for v in pure.variables
    ]
    first = []

    def run():
        outputs, losses, updates = pure(inputs, values)
        if not first:
            first.extend(updates)
        return (outputs, *losses)

    outputs, *losses = keras.remat(run)()
    return outputs, losses, first
