"""What a router keeps besides its kernels is resumed, to the bit."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_switch
from tests import sparing
from tests.resume.checkpoint_test import checkpoint
from tests.resume.training import Crash, CrashAt, digest, fit

ROUTERS = {
    "hash": lambda: keras_switch.HashRouter(vocabulary_size=30),
    "loss_free": lambda: keras_switch.LossFreeRouter(k=1, update_rate=0.003),
    "noisy_top_k": lambda: keras_switch.NoisyTopKRouter(k=2),
    "random": keras_switch.RandomRouter,
}


def make_model(name):
    """Three tokens a row; their ids are read off the input."""
    inputs = keras.Input((3,))
    ids = ops.cast(ops.abs(inputs) * 10, "int32")
    x = keras.layers.Dense(4)(ops.expand_dims(inputs, -1))  # [B, 3, 4]
    layer = keras_switch.SwitchLayer(3, 4, router=ROUTERS[name]())
    y = keras.layers.Flatten()(layer(x, token_ids=ids))
    model = keras.Model(inputs, keras.layers.Dense(1)(y))
    model.compile("adam", "mse", metrics=["mae"], run_eagerly=True)
    return model, layer.router


@pytest.mark.parametrize("name", sparing.cases(ROUTERS, ("loss_free",)))
def test_a_resumed_run_has_the_bits_of_a_whole_one(name, tmp_path):
    keras.utils.set_random_seed(3)
    model, router = make_model(name)
    fit(checkpoint(tmp_path / "whole"), model=model)
    wanted = digest(model)
    if name == "loss_free":
        bias = ops.convert_to_numpy(router.bias)
        assert np.abs(bias).max() > 0.005
    keras.utils.set_random_seed(3)
    ended, _ = make_model(name)
    with pytest.raises(Crash):
        fit(checkpoint(tmp_path / "run"), CrashAt(5), model=ended)
    keras.utils.set_random_seed(8)  # another start, tables and all
    again, _ = make_model(name)
    assert digest(again) != wanted
    fit(checkpoint(tmp_path / "run"), model=again)
    assert digest(again) == wanted
