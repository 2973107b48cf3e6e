"""The same training on TensorFlow: on one device, and on a mesh of 8.

A mesh takes DTensor a minute to compile; with `ALL_MESHES=1` in the
environment all three are tested.
"""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest

from tests.mesh import processes, training_test

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="DTensor is TensorFlow's"
)
MESHES = training_test.MESHES


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Of each mesh, and of one device: arrays, and what was sent."""
    folders, running = {}, {}
    for mesh in (None, *MESHES):
        folders[mesh] = tmp_path_factory.mktemp("mesh")
        arguments = {"mesh": mesh, "folder": str(folders[mesh])}
        running[mesh] = processes.start(
            "tests.mesh.training", arguments, 8, "tensorflow"
        )
    for process in running.values():
        processes.finish(process)
    return folders


@pytest.mark.parametrize("mesh", MESHES)
def test_a_mesh_computes_what_one_device_does(mesh, results):
    """Losses of 20 steps and of an evaluation, the last batch of 3 rows."""
    wanted = training_test.arrays(results[None])
    found = training_test.arrays(results[mesh])
    assert set(wanted) == set(found)
    assert wanted["fit loss"] > 3 and len(wanted) > 60
    for name, array in wanted.items():
        np.testing.assert_allclose(
            found[name], array, rtol=1e-5, atol=1e-5, err_msg=name
        )


@pytest.mark.parametrize("mesh", MESHES)
def test_four_all_to_alls_for_each_sparse_layer(mesh, results):
    """In the two layers of a training step."""
    text = (results[mesh] / "collectives.json").read_text()
    functions = json.loads(text).values()
    sent = [kinds.get("CollectiveAllToAllV2", 0) for kinds in functions]
    assert max(sent) == 8
    assert not any("CollectiveGatherV2" in kinds for kinds in functions)


@pytest.mark.parametrize("mesh", MESHES)
def test_a_preset_of_a_mesh_is_that_of_one_device(mesh, results):
    import keras_switch

    lm = keras_switch.SwitchSeq2SeqLM.from_preset(str(results[mesh] / "preset"))
    found = training_test.arrays(results[mesh])
    for variable in lm.trainable_variables:
        np.testing.assert_array_equal(
            keras.ops.convert_to_numpy(variable),
            found[f"weight {variable.path}"],
        )


TOO_LATE = """
import tensorflow as tf
(cpu,) = tf.config.list_physical_devices("CPU")
two = [tf.config.LogicalDeviceConfiguration()] * 2
tf.config.set_logical_device_configuration(cpu, two)
from tensorflow.experimental import dtensor
own = dtensor.create_mesh([("x", 2)], devices=["CPU:0", "CPU:1"])
one = dtensor.copy_to_mesh(tf.ones(2), dtensor.Layout(["unsharded"], own))
dtensor.relayout(one, dtensor.Layout(["x"], own))
import keras, keras_switch
devices = keras.distribution.list_devices()
mesh = keras.distribution.DeviceMesh((2,), ("batch",), devices)
from keras_switch.ops import dtensor
dtensor.mesh_of(mesh)
"""


def test_settings_that_come_too_late_are_found_out():
    # Without what an import of keras_switch has set in this process.
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith("DTENSOR_")
    }
    done = subprocess.run(
        [sys.executable, "-c", TOO_LATE],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert "must be imported before DTensor is used" in done.stderr
