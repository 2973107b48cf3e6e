"""What compiles here, and functions dear to run operation by operation."""

import functools
from collections.abc import Callable
from typing import Any

import keras


def compiled(*static: str) -> Callable:
    """Compiles a function of tensors on JAX; leaves it alone elsewhere.

    Eager JAX compiles a conditional or a loop anew at every call, because its
    branches are new functions each time; under `jit` once for each shape.

    Args:
        *static: names of arguments that are not tensors.
    """

    def decorate(function: Callable) -> Callable:
        if keras.backend.backend() != "jax":
            return function
        import jax

        jitted = jax.jit(function, static_argnames=static)

        @functools.wraps(function)
        def call(*args: Any) -> Any:
            return jitted(*args)

        return call

    return decorate


def on_xla_s_cpu() -> bool:
    """Whether JAX compiles for a CPU, with what that is slow at."""
    if keras.backend.backend() != "jax":
        return False
    import jax

    distribution = keras.distribution.distribution()
    if distribution is not None:
        # Those that a program is compiled for need not be there.
        devices = distribution.device_mesh.backend_mesh.devices
        return devices.flat[0].platform == "cpu"
    return jax.default_backend() == "cpu"
