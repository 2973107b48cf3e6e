"""The training step of a model that is never made: compiled for a mesh.

Imports Keras: import it in `main`. JAX only.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import keras

from keras_switch import models, optimizers, sharding
from keras_switch.models.weight_shapes import weight_shapes
from keras_switch.ops.layout import undistributed
from keras_switch_train.collectives import by_kind, collectives

# XLA for CPUs begins early what waits for nothing, so that many cores have
# work, and keeps it: the random numbers of all dropout, for one. Accelerators,
# whose memory is in question, need less.
_IN_ORDER = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
_OLD_IN_ORDER = {"xla_cpu_enable_concurrency_optimized_scheduler": False}


class Batch(NamedTuple):
    """The size of a batch."""

    rows: int
    input_length: int
    target_length: int


def lower_step(arguments: Mapping[str, Any], batch: Batch) -> Any:
    """A step of Adafactor for the present distribution, to be compiled.

    Nothing is allocated: weights and batches are shapes.

    Args:
        arguments: Of `SwitchBackbone`; `dtype` may be among them.
        batch: The whole batch of all devices.

    Returns:
        What JAX lowered: its `compile()` gives the program.
    """
    import jax

    # What is really made has a few numbers, and the devices of the distribution
    # need not be there.
    with undistributed():
        optimizer = optimizers.Adafactor(1e-3)
    layout_of = keras.distribution.distribution().get_variable_layout
    made = []

    def make():
        with keras.StatelessScope(initialize_variables=False):
            backbone = models.SwitchBackbone(**arguments)
            lm = models.SwitchSeq2SeqLM(backbone, compile=False)
            for variable in lm.variables:
                # Keras does so when a variable gets its value; slots of the
                # optimizer lie where their variable does.
                variable._layout = layout_of(variable)
            optimizer.build(lm.trainable_variables)
        made.append(lm)
        return 0

    jax.eval_shape(make)
    (lm,) = made
    with undistributed():
        lm.compile(optimizer, weighted_metrics=[], routing_metrics=None)
    state = tuple(
        [_shape_of(variable) for variable in variables]
        for variables in (
            lm.trainable_variables,
            lm.non_trainable_variables,
            optimizer.variables,
            lm.metrics_variables,
        )
    )
    where = jax.tree.map(lambda leaf: leaf.sharding, state)
    step = jax.jit(lm.train_step, donate_argnums=0, out_shardings=(None, where))
    return step.lower(state, _batch(batch))


def programs(lowered: Any) -> list[Any]:
    """Compiles a step in each order in question.

    Args:
        lowered: From `lower_step`, for the present distribution.

    Returns:
        For a CPU two programs, in its own order and in that for least memory,
        which is not always less; else one.
    """
    import jax

    found = [lowered.compile()]
    mesh = keras.distribution.distribution().device_mesh.backend_mesh
    if mesh.devices.flat[0].platform != "cpu":
        return found
    try:
        return [*found, lowered.compile(_IN_ORDER)]
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" not in str(error):
            raise
        return [*found, lowered.compile(_OLD_IN_ORDER)]


def _shape_of(variable):
    import jax

    distribution = keras.distribution.distribution()
    layout = distribution.get_variable_layout(variable).backend_layout
    return jax.ShapeDtypeStruct(
        tuple(variable.shape), variable.dtype, sharding=layout
    )


def _batch(batch):
    import jax

    distribution = keras.distribution.distribution()

    def tokens(length, dtype="int32"):
        shape = (batch.rows, length)
        layout = distribution.get_data_layout(shape).backend_layout
        return jax.ShapeDtypeStruct(shape, dtype, sharding=layout)

    x = {
        f"{stack}_{name}": tokens(length)
        for stack, length in (
            ("encoder", batch.input_length),
            ("decoder", batch.target_length),
        )
        for name in ("token_ids", "padding_mask")
    }
    targets = batch.target_length
    return x, tokens(targets), tokens(targets, "float32")


def costs(program: Any) -> dict[str, float]:
    """What a compiled step costs one device.

    Args:
        program: A compiled step.

    Returns:
        A dict: `flops`; `temporary`, bytes of gradients, activations and
        buffers; and for each kind of collective, how many there are and their
        bytes.
    """
    found = by_kind(collectives(program.as_text()))
    result = {
        "flops": program.cost_analysis()["flops"],
        "temporary": program.memory_analysis().temp_size_in_bytes,
    }
    for kind, (count, size) in found.items():
        result[f"{kind}, count"] = count
        result[f"{kind}, bytes"] = size
    return result


@undistributed()
def state_bytes(
    arguments: Mapping[str, Any], layout_map: Any, itemsize: int = 4
) -> dict[str, int]:
    """Bytes of the weights and of Adafactor's slots on one device.

    Args:
        arguments: All arguments of `SwitchBackbone`.
        layout_map: A `LayoutMap`.
        itemsize: Bytes of a weight.

    Returns:
        A dict: `weights`, `optimizer`.
    """
    shapes = weight_shapes(arguments)
    optimizer = optimizers.Adafactor(1e-3)
    slots = 0
    for path, shape in shapes.items():
        layout = layout_map[path]
        for name, of_slot in optimizer.slot_shapes(shape, path).items():
            axes = optimizer.slot_axes(name, shape, path, layout.axes)
            slots += sharding.bytes_of_part(
                of_slot, axes, layout_map.device_mesh
            )
    return {
        "weights": sharding.bytes_on_device(layout_map, shapes, itemsize),
        "optimizer": slots,
    }
