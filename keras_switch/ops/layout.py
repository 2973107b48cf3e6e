"""Where tensors lie on a mesh of devices, by `keras.distribution`."""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import keras

from keras_switch.ops import dtensor


def check_backend() -> None:
    """Refuses the backend on which nothing can be laid out.

    Raises:
        RuntimeError: naming what to use instead.
    """
    backend = keras.backend.backend()
    if backend not in ("jax", "tensorflow"):
        raise RuntimeError(
            f"Layouts need the JAX or the TensorFlow backend; received "
            f"{backend}, on which keras.distribution does not run. Set "
            "KERAS_BACKEND before keras is imported."
        )


def check_strategy(model: keras.Model) -> None:
    """Refuses the strategy of `tf.distribute` that Keras 3 does not train by.

    Keras 3.15 stops at the first batch, which it cannot reduce to a sample,
    and past that at the logs of a step, which it reduces along an axis that
    scalars do not have; both with an error that names neither.

    Args:
        model: About to train or to be evaluated.

    Raises:
        RuntimeError: naming what to use instead.
    """
    if keras.backend.backend() != "tensorflow":
        return
    import tensorflow as tf

    strategy = model.distribute_strategy
    several = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
    if several and strategy.cluster_resolver.cluster_spec():
        raise RuntimeError(
            "fit and evaluate need a strategy of one process on TensorFlow, "
            "such as tf.distribute.MirroredStrategy; received "
            "MultiWorkerMirroredStrategy, which Keras 3 does not support. "
            "Several processes train on the JAX backend, by "
            "keras.distribution."
        )


@contextlib.contextmanager
def undistributed() -> Iterator[None]:
    """Within the block what is made lies on one device."""
    distribution = keras.distribution.distribution()
    keras.distribution.set_distribution(None)
    try:
        yield
    finally:
        keras.distribution.set_distribution(distribution)


def by_dtensor() -> bool:
    """Whether TensorFlow's DTensor lays out what is made at present."""
    return is_distributed() and keras.backend.backend() == "tensorflow"


def data_shards() -> int:
    """Into how many parts batches are split; 1 without a distribution."""
    distribution = keras.distribution.distribution()
    if distribution is None:
        return 1
    return distribution.num_model_replicas


def local_shards() -> int:
    """Into how many parts a batch that this process hands over is split.

    Of several processes each hands over its own rows, unless Keras shares out
    a whole batch between them (`auto_shard_dataset`).
    """
    distribution = keras.distribution.distribution()
    if distribution is None or distribution.auto_shard_dataset:
        return data_shards()
    return max(1, data_shards() // distribution.num_processes)


def is_distributed() -> bool:
    """Whether models are spread over devices at present."""
    return keras.distribution.distribution() is not None


def lay_out(x: Any, path: str) -> Any:
    """Lays out a tensor as the present distribution wants that of `path`.

    Args:
        x: A tensor.
        path: The name of the tensor, for the rules of a `LayoutMap`.

    Returns:
        `x`, where no rule speaks of it, or where an axis of it is not a
        multiple of the devices it would be split over.
    """
    distribution = keras.distribution.distribution()
    if distribution is None:
        return x
    layout = distribution.get_tensor_layout(path)
    if layout is None or indivisible_axis(x.shape, layout) is not None:
        return x
    if by_dtensor():
        return dtensor.relayout(x, layout)
    return keras.distribution.distribute_tensor(x, layout)


def lay_out_variables(variables: list[keras.Variable]) -> None:
    """Puts variables where the rules want them, on TensorFlow.

    JAX makes them there. On TensorFlow they are made on the host.

    Args:
        variables: Those that are on the mesh already stay as they are.
    """
    if not by_dtensor():
        return
    distribution = keras.distribution.distribution()
    for variable in variables:
        if getattr(variable, "_layout", None) is None:
            # As Keras calls it on JAX: slots of optimizers take it over.
            variable._layout = distribution.get_tensor_layout(variable.path)
    dtensor.spread(variables, distribution.device_mesh)


def on_devices(batch: Any) -> Any:
    """A nest of arrays `[B, ...]` as tensors, split as the mesh splits rows."""
    distribution = keras.distribution.distribution()
    if by_dtensor():
        return dtensor.on_mesh(batch, distribution)

    def place(array):
        array = keras.ops.convert_to_tensor(array)
        if distribution is None:
            return array
        layout = distribution.get_data_layout(array.shape)
        return keras.distribution.distribute_tensor(array, layout)

    return keras.tree.map_structure(place, batch)


def step_function(
    step: Callable[[Any], Any],
    prepare: Callable[[Any], None],
    eager: bool,
    repeat: int,
) -> Callable[[Any], Any] | None:
    """What `fit` calls for each step; `None` where Keras' own will do.

    Args:
        step: From a batch to logs.
        prepare: Called with the first batch: makes every variable there is,
            and puts it on the mesh.
        eager: Whether to leave the step uncompiled.
        repeat: Batches of a call.
    """
    if not by_dtensor():
        return None
    distribution = keras.distribution.distribution()
    return dtensor.function(step, prepare, distribution, eager, repeat)


def compilable_gradients(
    optimizer: keras.optimizers.Optimizer,
) -> contextlib.AbstractContextManager:
    """A context in which an optimizer is handed what a mesh can compile."""
    if by_dtensor():
        return dtensor.dense_gradients(optimizer)
    return contextlib.nullcontext()


def indivisible_axis(shape: tuple, layout: Any) -> int | None:
    """The first axis that a layout cannot split evenly, or `None`."""
    for axis, (size, names) in enumerate(zip(shape, layout.axes, strict=False)):
        parts = split(layout.device_mesh, names)
        if parts > 1 and (size is None or size % parts):
            return axis
    return None


def split(device_mesh: Any, names: Any) -> int:
    """Into how many parts an axis is split.

    Args:
        device_mesh: A `keras.distribution.DeviceMesh`.
        names: An axis of the mesh, several of them, or `None`.
    """
    if names is None:
        return 1
    names = (names,) if isinstance(names, str) else names
    sizes = dict(zip(device_mesh.axis_names, device_mesh.shape, strict=True))
    return math.prod(sizes[name] for name in names)
