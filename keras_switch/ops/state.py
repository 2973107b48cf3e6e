"""Writing to a variable from inside a layer's call."""

from typing import Any

import keras


def record(variable: keras.Variable, value: Any) -> None:
    """Assigns `value` to a non-trainable variable where it can be kept.

    Under a JAX transformation that does not hand the variable in (a plain
    `jax.jit(layer)`) the value is a tracer that must not outlive the trace:
    there nothing is recorded.
    """
    if keras.backend.backend() == "jax":
        import jax

        traced = isinstance(value, jax.core.Tracer)
        if traced and not isinstance(variable.value, jax.core.Tracer):
            return
    variable.assign(value)


def synchronize(model: keras.Model) -> None:
    """Brings a model's variables up to date while `fit` is running: JAX keeps
    them outside the model from step to step."""
    if keras.backend.backend() == "jax":
        model.jax_state_sync()
