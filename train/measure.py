"""Timing and costs of compiled functions. Imports Keras: import it in `main`.

The one module beside `keras_switch.ops` that asks which backend is in use.
"""

import concurrent.futures
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any, NamedTuple

import keras
import numpy as np

_BACKEND = keras.backend.backend()


class Timing(NamedTuple):
    """Seconds of a call."""

    median: float
    best: float


def header() -> dict[str, Any]:
    """The machine and the versions, to print above any figure."""
    versions = {
        name: metadata.version(name)
        for name in ("keras", "keras-hub", "numpy", _BACKEND)
    }
    return {
        "backend": _BACKEND,
        "device": _device(),
        "cores": len(os.sched_getaffinity(0)),
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
    cores = len(os.sched_getaffinity(0))
    parts = np.array_split(np.ones(megabytes * 250_000, "float32"), cores)
    samples = []
    with concurrent.futures.ThreadPoolExecutor(cores) as pool:
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
    trainable = [v.value for v in layer.trainable_variables]
    other = [v.value for v in layer.non_trainable_variables]

    def call(trainable, other, x):
        return layer.stateless_call(trainable, other, x, training=False)[0]

    return call, [trainable, other]


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
