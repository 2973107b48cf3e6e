"""DTensor, which does on TensorFlow what `keras.distribution` does on JAX.

Keras 3.15 lets a distribution be set on TensorFlow, and then does nothing with
it. Here its meshes and layouts are made DTensor's, and variables and batches
laid out by them. Nothing in this file is used on another backend.
"""

import contextlib
import functools
import itertools
import os
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

# DTensor reads them once, when it is first used.
_SETTINGS = {
    # Where reductions are joined, a variable that is written may be read
    # before it is: what a router measured would be that of the step before.
    "DTENSOR_ENABLE_COMBINE_ALL_REDUCES_OPTIMIZATION": "0",
    # Otherwise a buffer that changes hands is gathered whole, then cut.
    "DTENSOR_USE_ALL_TO_ALL_RELAYOUT": "1",
}
if keras.backend.backend() == "tensorflow":
    os.environ.update(_SETTINGS)
_meshes = weakref.WeakKeyDictionary()


def mesh_of(device_mesh: Any) -> Any:
    """The `dtensor.Mesh` of a `keras.distribution.DeviceMesh`.

    Raises:
        RuntimeError: if DTensor was used before keras_switch was imported, so
            that it works by settings with which results are wrong.
    """
    from tensorflow.experimental import dtensor

    if device_mesh not in _meshes:
        axes = zip(device_mesh.axis_names, device_mesh.shape, strict=True)
        mesh = dtensor.create_mesh(
            list(axes), devices=list(device_mesh.devices.flatten())
        )
        if not _reads_what_was_written(mesh):
            wanted = " ".join(f"{k}={v}" for k, v in _SETTINGS.items())
            raise RuntimeError(
                "keras_switch must be imported before DTensor is used: it "
                "would return values of variables from before they were "
                f"written. Import it first, or set {wanted} in the environment."
            )
        _meshes[device_mesh] = mesh
    return _meshes[device_mesh]


def _reads_what_was_written(mesh):
    """Whether a program that writes a quotient of two sums reads it back."""
    import tensorflow as tf
    from tensorflow.experimental import dtensor

    # An axis that splits, or nothing would be reduced.
    axis = max(mesh.dim_names, key=mesh.dim_size)
    size = mesh.dim_size(axis)
    rows = dtensor.Layout([axis], mesh)
    values = _placed(np.ones(size, "float32"), rows)
    whole = dtensor.Layout([], mesh)
    variable = dtensor.DVariable(_placed(np.zeros((), "float32"), whole))

    @tf.function(autograph=False)
    def write_and_read(values):
        sums = tf.reduce_sum(2 * values), tf.reduce_sum(values)
        variable.assign(sums[0] / tf.maximum(sums[1], 1.0))
        return variable.read_value()

    with dtensor.default_mesh(mesh):
        return float(fetched(write_and_read(values))) == 2.0


def layout_of(layout: Any) -> Any:
    """The `dtensor.Layout` of a `keras.distribution.TensorLayout`."""
    from tensorflow.experimental import dtensor

    axes = [dtensor.UNSHARDED if a is None else a for a in layout.axes]
    return dtensor.Layout(axes, mesh_of(layout.device_mesh))


def relayout(x: Any, layout: Any) -> Any:
    """A tensor laid out anew; its gradient goes back as it was."""
    from tensorflow.experimental import dtensor

    return dtensor.relayout(x, layout_of(layout))


def placed(value: Any, layout: Any) -> Any:
    """An array of the host on the devices, each with its own part.

    Args:
        value: `[...]`.
        layout: A `keras.distribution.TensorLayout` that divides it.
    """
    return _placed(np.asarray(value), layout_of(layout))


def _placed(value, layout):
    import tensorflow as tf
    from tensorflow.experimental import dtensor

    parts = []
    for index, device in _parts(layout, value.shape):
        with tf.device(device):
            parts.append(tf.constant(value[index]))
    return dtensor.pack(parts, layout)


def fetched(value: Any) -> np.ndarray:
    """A tensor as an array of the host: no device gets it whole."""
    from tensorflow.experimental import dtensor

    if not is_spread(value):
        return keras.ops.convert_to_numpy(value)
    if hasattr(value, "read_value"):
        value = value.read_value()
    layout = dtensor.fetch_layout(value)
    parts = dtensor.unpack(value)
    whole = np.empty(value.shape, parts[0].numpy().dtype)
    where = _parts(layout, value.shape)
    for (index, _), part in zip(where, parts, strict=True):
        whole[index] = part.numpy()
    return whole


def is_spread(value: Any) -> bool:
    """Whether a tensor or a variable of TensorFlow lies on a mesh."""
    from tensorflow.experimental import dtensor

    return dtensor.is_dtensor(value)


def _parts(layout, shape):
    """The slices of a tensor that devices hold, and the names of those."""
    mesh = layout.mesh
    devices = mesh.local_devices()
    for place, device in zip(
        mesh.local_device_locations(), devices, strict=True
    ):
        index = []
        for size, axis in zip(shape, layout.sharding_specs, strict=True):
            if axis not in place:  # nothing splits it
                index.append(slice(None))
                continue
            part = size // mesh.dim_size(axis)
            start = place[axis] * part
            index.append(slice(start, start + part))
        yield tuple(index), device


def spread(variables: list[keras.Variable], device_mesh: Any) -> None:
    """Puts variables on a mesh, where they are not there yet.

    Each lies as its `_layout` says, as Keras calls it; those that have none
    lie on every device whole.
    """
    for variable in variables:
        # Slots that Keras makes beside a weight are on the mesh, but whole.
        if isinstance(variable.value, _variable_class()):
            continue
        layout = getattr(variable, "_layout", None)
        if layout is None:
            layout = _whole(len(variable.shape), device_mesh)
        # Keras has no public way to put another variable in its place.
        variable._value = _variable(
            placed(fetched(variable.value), layout),
            variable.trainable,
            variable.name,
        )


def _whole(rank, device_mesh):
    return keras.distribution.TensorLayout((None,) * rank, device_mesh)


def _variable(value, trainable, name):
    return _variable_class()(value, trainable=trainable, name=name)


@functools.cache
def _variable_class():
    import tensorflow as tf
    from tensorflow.experimental import dtensor

    class Variable(dtensor.DVariable):
        """Is read and assigned like any other, however it is split."""

        def numpy(self):
            return fetched(self.read_value())

        def assign(self, value, *args, **kwargs):
            value = tf.convert_to_tensor(value, self.dtype)
            if tf.executing_eagerly() and not dtensor.is_dtensor(value):
                value = _placed(value.numpy(), self.layout)
            return super().assign(value, *args, **kwargs)

    return Variable


def function(
    step: Callable[[Any], Any],
    prepare: Callable[[Any], None],
    distribution: Any,
    eager: bool,
    repeat: int,
) -> Callable[[Any], Any]:
    """What `fit` and `evaluate` call for each step, with an iterator.

    Keras' own takes its batch inside of the compiled program, as an Optional,
    which DTensor cannot compile.

    Args:
        step: From a batch on the mesh to logs. No variable may be made in
            it: devices would share one, and each would write to it.
        prepare: Called with the first batch; see `layout.step_function`.
        distribution: The present `keras.distribution.Distribution`.
        eager: Whether to leave the step uncompiled.
        repeat: Batches of a call, `steps_per_execution`.
    """
    import tensorflow as tf
    from tensorflow.experimental import dtensor

    # Each shape is compiled by itself: DTensor wants them known.
    compiled = step if eager else tf.function(step, autograph=False)

    mesh = mesh_of(distribution.device_mesh)
    prepared = False

    def run(iterator):
        nonlocal prepared
        logs = None
        for batch in itertools.islice(iterator, repeat):
            if not prepared:
                prepare(batch)
                prepared = True
            batch = on_mesh(batch, distribution)
            with dtensor.default_mesh(mesh):
                logs = compiled(batch)
        if logs is None:
            raise StopIteration
        return tf.nest.map_structure(fetched, logs)

    return run


@contextlib.contextmanager
def dense_gradients(optimizer: keras.optimizers.Optimizer) -> Iterator[None]:
    """Within the block it is handed the gradients of embeddings as tensors.

    TensorFlow's are rows and where they belong, and DTensor cannot compile
    what half of the optimizers do with those.
    """
    import tensorflow as tf

    apply, of_instance = optimizer.apply, "apply" in vars(optimizer)

    def apply_dense(grads, trainable_variables=None):
        grads = [g if g is None else tf.convert_to_tensor(g) for g in grads]
        return apply(grads, trainable_variables)

    optimizer.apply = apply_dense
    try:
        yield
    finally:
        if of_instance:  # as StabilityGuard's
            optimizer.apply = apply
        else:
            del optimizer.apply


def on_mesh(batch: Any, distribution: Any) -> Any:
    """A nest of arrays, split over the mesh by rows."""

    def place(array):
        if array is None:
            return None
        array = np.asarray(array)
        return placed(array, distribution.get_data_layout(array.shape))

    return keras.tree.map_structure(place, batch)
