"""Data parallelism on TensorFlow: run in a process of its own.

python -m tests.mesh.replicas '{"count": 2, "folder": "somewhere"}'
"""

import contextlib
import json
import sys
from pathlib import Path

import numpy as np

from tests.mesh import training


def scope(count):
    """As many replicas, each on a virtual device; none for 1."""
    if count == 1:
        return contextlib.nullcontext()
    import tensorflow as tf

    (device,) = tf.config.list_physical_devices("CPU")
    virtual = [tf.config.LogicalDeviceConfiguration()] * count
    tf.config.set_logical_device_configuration(device, virtual)
    names = [f"CPU:{i}" for i in range(count)]
    return tf.distribute.MirroredStrategy(names).scope()


def main(count, folder):
    import keras

    import keras_switch
    from tests.models import tiny

    strategy = scope(count)  # before TensorFlow has looked at its devices
    keras.utils.set_random_seed(0)
    router = keras_switch.SwitchRouter(
        exploration="argmax", load_balancing_loss_weight=0.0
    )
    with strategy:
        lm = tiny.lm(**training.SIZES, router=router)
        lm.compile(jit_compile=False)
    x, y, weight = training.data(training.ROWS * 4)
    # Every replica has as many targets, so that its mean is like the others'.
    weight[:] = 1
    options = {"sample_weight": weight, "batch_size": 8, "verbose": 0}
    history = lm.fit(x, y, shuffle=False, **options).history
    arrays = {
        v.path: keras.ops.convert_to_numpy(v) for v in lm.trainable_variables
    }
    arrays["loss"] = np.array(history["loss"])
    np.savez(Path(folder) / f"arrays-{count}.npz", **arrays)


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
