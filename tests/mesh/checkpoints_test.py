"""Two processes of four devices, four devices, one, and two processes again."""

import json
import math

import keras
import numpy as np
import pytest

import keras_switch
from keras_switch.resume.store import CheckpointStore
from tests.mesh import checkpoints, processes

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


def assert_written_in_halves(folder):
    """Of the second process half of the experts, of the first all else."""
    newest = CheckpointStore(folder / "checkpoints", 2).newest()
    sizes = {
        name: math.prod(array.shape) * array.dtype.itemsize
        for name, array in newest.arrays.items()
    }
    experts = sum(
        size
        for name, size in sizes.items()
        if checkpoints.is_of_experts(newest.arrays[name].shape)
    )
    written = []
    for path in sorted(newest.folder.glob("*.safetensors")):
        content = path.read_bytes()
        header = int.from_bytes(content[:8], "little")
        written.append(len(content) - 8 - header)
    assert experts > sum(sizes.values()) / 2
    assert written == [sum(sizes.values()) - experts / 2, experts / 2]


def seen(folder, name, count):
    files = [folder / f"seen-{name}-{index}.json" for index in range(count)]
    found = [json.loads(file.read_text()) for file in files]
    return [max(f[key] for f in found) for key in ("gathered", "read")]


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
    # No process has had more than numbers of others, or read for a device
    # more than its part of the experts.
    assert seen(moved, "a", 2) == [1, 0]
    assert_written_in_halves(moved)
    stage("b", [2, 2], moved, 2, devices=4)
    assert seen(moved, "b", 1) == [0, 1 / 4]
    stage("c", None, moved, 3, devices=1)
    last = stage("d", [8, 1], moved, 4, devices=4, count=2, generates=True)
    assert seen(moved, "d", 2) == [1, 1 / 8]
    assert_near(last, wanted)
