"""What `--mesh` and its companions say: where a model lies."""

import contextlib
import math
import os
import re
from typing import Any

from absl import logging

from keras_switch_train import flags


def axes() -> dict[str, int]:
    """`--mesh` as sizes by name, in order.

    Raises:
        UsageError: if it is not `name:size,name:size`.
    """
    found = {}
    for part in flags.MESH.value:
        name, _, size = part.partition(":")
        if name in found or not (size.isdecimal() and int(size)):
            raise flags.UsageError(
                "--mesh must name each axis once and give its size, as in "
                f"batch:4,model:2; received {','.join(flags.MESH.value)!r}."
            )
        found[name] = int(size)
    if found and "batch" not in found:
        raise flags.UsageError(
            "--mesh must have an axis called batch, which splits batches; "
            f"received {', '.join(found)}."
        )
    return found


def start(by_tensorflow: bool = True) -> None:
    """Joins the other processes and spreads what is made from here on.

    Call it before anything is computed.

    Args:
        by_tensorflow: Whether the binary runs over a mesh of TensorFlow, on
            which only the tasks themselves train, and none generates.

    Raises:
        UsageError: if the mesh does not fit the flags or the devices.
    """
    sizes, count = axes(), flags.NUM_PROCESSES.value
    if not sizes:
        if count > 1:
            raise flags.UsageError(
                "--mesh must be given with --num_processes, as in batch:8."
            )
        return
    backend = flags.BACKEND.value
    if backend == "torch" or (backend == "tensorflow" and count > 1):
        raise flags.UsageError(
            "--mesh needs --backend=jax, or tensorflow and one process; "
            f"received {backend} and --num_processes={count}."
        )
    if backend == "tensorflow" and not by_tensorflow:
        raise flags.UsageError(
            "--mesh needs --backend=jax in this binary: TensorFlow's DTensor "
            "cannot run all of it; received tensorflow. pretrain trains there."
        )
    _check_processes(count)
    make_virtual_devices()
    import keras

    if count > 1:
        keras.distribution.initialize(
            flags.COORDINATOR.value, count, flags.PROCESS_ID.value
        )
    devices, wanted = (
        keras.distribution.list_devices(),
        math.prod(sizes.values()),
    )
    if len(devices) != wanted:
        raise flags.UsageError(
            f"--mesh must use all devices; received a mesh of {wanted}, and "
            f"there are {len(devices)}. To try a mesh on a CPU, set XLA_FLAGS="
            f"--xla_force_host_platform_device_count={wanted}."
        )
    with flags.blame("mesh"):
        distribution = distribution_of(sizes, devices, flags.LAYOUT.value)
    keras.distribution.set_distribution(distribution)


def make_virtual_devices() -> None:
    """Makes TensorFlow split the CPU as XLA_FLAGS tells JAX to.

    Call it before TensorFlow computes anything.
    """
    import keras

    wanted = re.search(
        r"xla_force_host_platform_device_count=(\d+)",
        os.environ.get("XLA_FLAGS", ""),
    )
    if keras.backend.backend() != "tensorflow" or wanted is None:
        return
    import tensorflow as tf

    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(
        cpu, [tf.config.LogicalDeviceConfiguration()] * int(wanted[1])
    )


def eager() -> contextlib.AbstractContextManager:
    """A context to generate in, and to call what is loaded in it eagerly.

    On TensorFlow neither works over a mesh: there it is one device.
    """
    from keras_switch.ops import layout

    if layout.by_dtensor():
        return layout.undistributed()
    return contextlib.nullcontext()


def _check_processes(count):
    index, where = flags.PROCESS_ID.value, flags.COORDINATOR.value
    if count > 1 and where is None:
        raise flags.UsageError(
            "--coordinator must be given with --num_processes, as in "
            "--coordinator=10.0.0.1:1234, the address of process 0."
        )
    if index >= count:
        raise flags.UsageError(
            f"--process_id must be below --num_processes={count}; received "
            f"{index}."
        )


def distribution_of(
    sizes: dict[str, int], devices: list, layout: str = "expert"
) -> Any:
    """Spreads models over some devices.

    Args:
        sizes: Of the axes of a mesh, by name.
        devices: As many as it has.
        layout: As `--layout`.

    Returns:
        A `keras.distribution.ModelParallel`.
    """
    import keras

    from keras_switch import models

    mesh = keras.distribution.DeviceMesh(
        tuple(sizes.values()), tuple(sizes), devices
    )
    expert = {"expert": "auto", "data": None}[layout]
    if expert and "expert" in sizes:
        expert = "expert"
    layout_map = models.SwitchBackbone.get_layout_map(
        mesh, expert_parallel_dim_name=expert
    )
    return keras.distribution.ModelParallel(
        layout_map=layout_map,
        batch_dim_name="batch",
        # Each process makes the rows of its own.
        auto_shard_dataset=False,
    )


def share(data: Any) -> Any:
    """The rows of each batch that this process trains on.

    Args:
        data: A `Pipeline`, `HeldOut`, `TaskBatches` or `TaskHeldOut`.

    Returns:
        It, or a `keras_switch.data.Share` of it.
    """
    import keras

    from keras_switch.data import Share

    distribution = keras.distribution.distribution()
    if distribution is None or distribution.num_processes == 1:
        return data
    count = min(distribution.num_processes, distribution.num_model_replicas)
    with flags.blame("batch_size"):
        return Share(data, distribution.data_shard_id, count)


def check_batch_size() -> None:
    """Refuses batches that the mesh does not divide, after `start`.

    Tasks fill up such batches; other models do not.

    Raises:
        UsageError: naming what `--batch_size` must be a multiple of.
    """
    from keras_switch.ops.layout import data_shards

    rows, shards = flags.BATCH_SIZE.value, data_shards()
    if rows % shards:
        raise flags.UsageError(
            f"--batch_size must be a multiple of {shards}, the size of the "
            f"mesh's axis batch; received {rows}."
        )


def own_folder(workdir: str) -> str:
    """A folder for what each process writes for itself.

    Process 0 writes to `--workdir`, and so is like a run of one process.
    """
    index = flags.PROCESS_ID.value
    if index == 0:
        return workdir
    folder = os.path.join(workdir, f"process-{index}")
    os.makedirs(folder, exist_ok=True)
    return folder


@contextlib.contextmanager
def one_after_another(what: str):
    """Process 0 does the block first, then the others at once.

    For what the first leaves in a cache that they share.
    """
    from keras_switch.ops import state

    if not state.is_writer():
        state.wait_for_all(what)
    yield
    if state.is_writer():
        state.wait_for_all(what)
    logging.debug("%s: done", what)
