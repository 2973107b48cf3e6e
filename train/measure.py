"""Timing and costs of compiled functions. Imports Keras: import it in `main`.

The one module beside `keras_switch.ops` that asks which backend is in use.
"""

import concurrent.futures
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_switch_train import cores

_BACKEND = keras.backend.backend()


class Timing(NamedTuple):
    """Seconds of a call."""

    median: float
    best: float


def header(also: Sequence[str] = ()) -> dict[str, Any]:
    """The machine and the versions, to print above any figure.

    Args:
        also: More packages that take part.
    """
    names = ("keras", "keras-hub", "numpy", _BACKEND, *also)
    versions = {name: metadata.version(name) for name in names}
    return {
        "backend": _BACKEND,
        "device": _device(),
        "cores": len(cores.ids()),
        "python": platform.python_version(),
        **versions,
    }


def _device():
    if _BACKEND == "jax":
        import jax

        name = jax.devices()[0].device_kind
    elif _BACKEND == "tensorflow":
        import tensorflow

        gpus = tensorflow.config.list_physical_devices("GPU")
        name = gpus[0].name if gpus else "cpu"
    else:
        import torch

        cuda = torch.cuda.is_available()
        name = torch.cuda.get_device_name() if cuda else "cpu"
    return _cpu_model() if name == "cpu" else name


def _cpu_model():
    """The name of the processor, which Python does not tell on Linux."""
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def read_bandwidth(megabytes: int = 400, repeats: int = 9) -> float:
    """What the memory gives to all cores that read at once, in GB/s."""
    count = len(cores.ids())
    parts = np.array_split(np.ones(megabytes * 250_000, "float32"), count)
    samples = []
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        for _ in range(repeats):
            start = time.perf_counter()
            list(pool.map(np.max, parts))
            samples.append(time.perf_counter() - start)
    return sum(part.nbytes for part in parts) / statistics.median(samples) / 1e9


def compiled(function: Callable) -> Callable:
    """The function as the backend compiles it; on torch as it is."""
    if _BACKEND == "jax":
        import jax

        return jax.jit(function)
    if _BACKEND == "tensorflow":
        import tensorflow

        return tensorflow.function(function)
    return function


def cost(function: Callable, *args: Any) -> dict[str, float] | None:
    """What the compiler says a call costs.

    Args:
        function: Of tensors.
        *args: Tensors.

    Returns:
        A dict of `flops`, and of `temporary_bytes` beside arguments and
        results; `None` on backends other than JAX.
    """
    if _BACKEND != "jax":
        return None
    import jax

    program = jax.jit(function).lower(*args).compile()
    return {
        "flops": program.cost_analysis()["flops"],
        "temporary_bytes": program.memory_analysis().temp_size_in_bytes,
    }


def forward(layer: keras.layers.Layer) -> tuple[Callable, list]:
    """A layer in evaluation as a function of its weights and its input.

    Args:
        layer: A built layer.

    Returns:
        The function, and the weights to call it with.
    """
    trainable, other = _values(layer)

    def call(trainable, other, x):
        return layer.stateless_call(trainable, other, x, training=False)[0]

    return call, [trainable, other]


def _values(layer):
    return (
        [v.value for v in layer.trainable_variables],
        [v.value for v in layer.non_trainable_variables],
    )


def evaluation(layer: keras.layers.Layer, x: Any) -> Callable:
    """A layer in evaluation, compiled; on torch as it is.

    On TensorFlow without XLA, which is slower there on a CPU.

    Args:
        layer: A built layer.
        x: Its input, a tensor of the backend.

    Returns:
        A function without arguments that waits for what it computes, and
        returns the output, the first one if there are several, and twice
        `None`, as `training` has gradients.
    """
    if _BACKEND == "jax":
        import jax

        @jax.jit
        def call(trainable, other, x):
            # State is returned too, or the compiler would leave it out.
            y, other = layer.stateless_call(trainable, other, x, training=False)
            return (_first(y), None, None), other

        return _with_state(layer, call, x)
    if _BACKEND == "tensorflow":
        import tensorflow as tf

        call = tf.function(lambda x: _first(layer(x, training=False)))
        return lambda: (call(x), None, None)
    import torch

    @torch.no_grad()
    def call():
        return _first(layer(x, training=False)), None, None

    return call


def training(layer: keras.layers.Layer, x: Any, dy: Any) -> Callable:
    """A layer in training, forward and backward, compiled as `evaluation`.

    Args:
        layer: A built layer.
        x: Its input, a tensor of the backend.
        dy: The gradient of its output.

    Returns:
        A function without arguments that waits for what it computes, and
        returns the output, the gradient of `x`, and those of the weights. The
        layer's own losses have no part in them.
    """
    if _BACKEND == "jax":
        return _jax_training(layer, x, dy)
    if _BACKEND == "tensorflow":
        import tensorflow as tf

        @tf.function
        def step(x, dy):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = layer(x, training=True)
            weights = [v.value for v in layer.trainable_variables]
            gradients = tape.gradient(y, [x, *weights], output_gradients=dy)
            return y, gradients[0], gradients[1:]

        return lambda: step(x, dy)
    import torch

    x = x.detach().requires_grad_()
    weights = [v.value for v in layer.trainable_variables]

    def step():
        y = layer(x, training=True)
        gradients = torch.autograd.grad(y, [x, *weights], dy)
        return y.detach(), gradients[0], gradients[1:]

    return step


def _jax_training(layer, x, dy):
    import jax

    @jax.jit
    def step(trainable, other, x, dy):
        def call(trainable, x):
            return layer.stateless_call(trainable, other, x, training=True)

        y, back, other = jax.vjp(call, trainable, x, has_aux=True)
        gradients, x_gradient = back(dy)
        return (y, x_gradient, gradients), other

    return _with_state(layer, step, x, dy)


def _with_state(layer, function, *args):
    """Calls a function of weights; the layer keeps the state it returns."""
    import jax

    weights = _values(layer)

    def call():
        results, state = jax.block_until_ready(function(*weights, *args))
        variables = layer.non_trainable_variables
        for variable, value in zip(variables, state, strict=True):
            variable.assign(value)
        return results

    return call


def _first(y):
    return y[0] if isinstance(y, tuple) else y


def use_all_cores() -> None:
    """Torch else takes what the machine has, not what the process may use."""
    if _BACKEND == "torch":
        import torch

        torch.set_num_threads(len(cores.ids()))


def interleaved(
    functions: dict[str, Callable], repeats: int
) -> dict[str, Timing]:
    """Times functions in turns, so that a busy machine hits all alike.

    Args:
        functions: By name; each is called without arguments, twice before
            the clock runs.
        repeats: Calls of each that count.

    Returns:
        A `Timing` for each name.
    """
    samples = {name: [] for name in functions}
    for turn in range(repeats + 2):
        for name, function in functions.items():
            start = time.perf_counter()
            _wait(function())
            if turn >= 2:
                samples[name].append(time.perf_counter() - start)
    return {
        name: Timing(statistics.median(times), min(times))
        for name, times in samples.items()
    }


def _wait(result):
    """JAX returns before it has computed; the others do not on a CPU."""
    if _BACKEND == "jax":
        import jax

        jax.block_until_ready(result)
