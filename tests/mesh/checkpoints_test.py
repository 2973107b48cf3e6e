"""Two processes of four devices, four devices, one, and two processes again."""

import keras
import numpy as np
import pytest

import keras_switch
from tests.mesh import processes

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="layouts need JAX"
)


def stage(name, mesh, folder, epochs, devices, count=1, **more):
    """Runs one part of the run to its end, in one process or several."""
    arguments = {"name": name, "mesh": mesh, "folder": str(folder)}
    arguments |= {"epochs": epochs, **more}
    where = f"localhost:{processes.free_port()}"
    running = []
    for index in range(count):
        if count > 1:
            arguments["processes"] = {
                "coordinator": where,
                "count": count,
                "index": index,
            }
        running.append(
            processes.start("tests.mesh.checkpoints", arguments, devices)
        )
    for process in running:
        processes.finish(process)
    return arrays(folder, name)


def arrays(folder, name):
    with np.load(folder / f"arrays-{name}.npz") as file:
        return dict(file)


def assert_near(found, wanted):
    assert set(found) == set(wanted) and len(wanted) > 50
    for name, array in wanted.items():
        np.testing.assert_allclose(
            found[name], array, rtol=1e-5, atol=1e-5, err_msg=name
        )


def test_a_run_moves_from_mesh_to_mesh(tmp_path):
    alone, moved = tmp_path / "alone", tmp_path / "moved"
    alone.mkdir()
    moved.mkdir()
    preset = str(tmp_path / "preset")
    wanted = stage("alone", None, alone, 4, devices=1, generates=True)
    first = stage("a", [4, 2], moved, 1, devices=4, count=2, preset=preset)
    # What two processes saved together, one loads without a mesh.
    backbone = keras_switch.SwitchBackbone.from_preset(preset)
    for variable in backbone.trainable_variables:
        np.testing.assert_array_equal(
            variable.value, first[f"weight {variable.path}"]
        )
    stage("b", [2, 2], moved, 2, devices=4)
    stage("c", None, moved, 3, devices=1)
    last = stage("d", [8, 1], moved, 4, devices=4, count=2, generates=True)
    assert_near(last, wanted)
