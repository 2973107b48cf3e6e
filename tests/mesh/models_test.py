"""Routers other than Switch's, and a decoder alone, on a mesh of 8."""

import keras
import numpy as np
import pytest

import keras_switch
from tests.mesh import models, processes

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="layouts need JAX"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    arguments = {"folder": str(folder)}
    processes.finish(processes.start("tests.mesh.models", arguments, 8))
    return folder


def arrays(folder, name, prefix):
    with np.load(folder / f"{name}.npz") as file:
        return {n: file[n] for n in file.files if n.startswith(prefix)}


@pytest.mark.parametrize("model", [*map("+".join, models.ROUTERS), "decoder"])
def test_a_mesh_computes_what_one_device_does(model, folder):
    """Losses of steps and of an evaluation, weights, what is generated."""
    assert arrays(folder, "mesh", "shards")["shards"] == 4
    wanted, found = (arrays(folder, n, model) for n in ("alone", "mesh"))
    assert set(wanted) == set(found) and len(wanted) > 20
    assert wanted[f"{model}: fit loss"] > 3
    for name, array in wanted.items():
        np.testing.assert_allclose(
            found[name], array, rtol=1e-5, atol=1e-5, err_msg=name
        )


def test_a_layer_is_called_outside_of_fit(folder):
    wanted, found = (arrays(folder, n, "layer: ") for n in ("alone", "mesh"))
    assert set(wanted) == {"layer: training", "layer: evaluation"}
    for name, array in wanted.items():
        assert np.abs(array).max() > 0.01
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-6)


def test_a_decoder_saved_on_a_mesh_loads_without_one(folder):
    lm = keras_switch.SwitchCausalLM.from_preset(str(folder / "mesh"))
    found = arrays(folder, "mesh", "decoder: weight ")
    for variable in lm.trainable_variables:
        np.testing.assert_array_equal(
            variable.value, found[f"decoder: weight {variable.path}"]
        )
