"""The same training on one device, on a mesh of 8, and what was compiled.

With `ALL_MESHES=1` in the environment, on three meshes of 8.
"""

import os
import re

import keras
import numpy as np
import pytest

from keras_switch_train.collectives import by_kind, collectives
from tests.mesh import processes, training

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="layouts need JAX"
)
MESHES = ((4, 2),)
if os.environ.get("ALL_MESHES"):
    MESHES = ((8, 1), (4, 2), (2, 4))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Of each mesh, and of one device: arrays, and the compiled step."""
    folders, running = {}, {}
    for mesh in (None, *MESHES):
        folders[mesh] = tmp_path_factory.mktemp("mesh")
        arguments = {"mesh": mesh, "folder": str(folders[mesh])}
        running[mesh] = processes.start("tests.mesh.training", arguments, 8)
    for process in running.values():
        processes.finish(process)
    return folders


def arrays(folder):
    with np.load(folder / "arrays.npz") as file:
        return dict(file)


@pytest.mark.parametrize("mesh", MESHES)
def test_a_mesh_computes_what_one_device_does(mesh, results):
    """Losses of 20 steps and of an evaluation, the last batch of 3 rows."""
    wanted, found = arrays(results[None]), arrays(results[mesh])
    assert set(wanted) == set(found)
    assert wanted["fit loss"] > 3 and len(wanted) > 60
    for name, array in wanted.items():
        np.testing.assert_allclose(
            found[name], array, rtol=1e-5, atol=1e-5, err_msg=name
        )


@pytest.mark.parametrize("mesh", MESHES)
def test_four_all_to_alls_for_each_sparse_layer(mesh, results):
    found = collectives((results[mesh] / "program.txt").read_text())
    sent = [c for c in found if c.kind == "all-to-all"]
    for layer in ("encoder_layer_1", "decoder_layer_1"):
        mine = [c for c in sent if f"{layer}/feed_forward" in c.where]
        assert len(mine) == 4
        backward = [c for c in mine if "transpose(" in c.where]
        assert len(backward) == 2
    assert by_kind(found)["all-to-all"][0] == 8


@pytest.mark.parametrize("mesh", MESHES)
def test_their_bytes_are_those_of_the_paper(mesh, results):
    """E * C * D * 4 bytes a group, and each device has its groups."""
    found = collectives((results[mesh] / "program.txt").read_text())
    capacity = max(4, -(-5 * training.LENGTH // (4 * 8)))  # at least 4
    groups = training.ROWS // mesh[0]
    wanted = groups * 8 * capacity * training.SIZES["hidden_dim"] * 4
    sent = [c for c in found if c.kind == "all-to-all"]
    assert [c.bytes for c in sent] == [wanted] * 8


@pytest.mark.parametrize("mesh", MESHES)
def test_no_weight_of_an_expert_is_gathered(mesh, results):
    text = (results[mesh] / "program.txt").read_text()
    gathered = [c for c in collectives(text) if c.kind == "all-gather"]
    width, hidden = 32, 64
    part = width * hidden * 4 // mesh[1]  # of one expert, on one device
    assert all(c.bytes < part for c in gathered)
    assert re.search("num_partitions=8", text)
