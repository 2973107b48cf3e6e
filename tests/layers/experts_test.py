"""The bank: each expert is the feed-forward with that expert's kernels."""

import keras
import numpy as np
import pytest

from keras_switch.layers.experts import Experts
from tests import bridge, reference

G, E, C, D, F = 2, 3, 4, 6, 5


def make(activation="relu", **kwargs):
    layer = Experts(E, F, activation=activation, **kwargs)
    layer.build((None, None, D))
    rng = np.random.default_rng(3)
    for variable in layer.trainable_variables:
        variable.assign(rng.normal(size=variable.shape).astype("float32"))
    return layer


def expert(layer, activation, e, rows):
    kernels = {
        v.path.split("/")[-2]: bridge.numpy(v)[e].astype("float64")
        for v in layer.trainable_variables
    }
    return reference.dense(activation, rows, kernels)


@pytest.mark.parametrize("activation", ["relu", "gated-gelu"])
def test_buffers(activation, rng):
    layer = make(activation)
    x = rng.normal(size=(G, E, C, D)).astype("float32")
    y = bridge.numpy(layer(x))
    for e in range(E):
        wanted = expert(layer, activation, e, x[:, e])
        np.testing.assert_allclose(y[:, e], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sizes", [[3, 0, 5], [0, 8, 0], [2, 2, 2]])
@pytest.mark.parametrize("activation", ["relu", "gated-gelu"])
def test_sorted_rows(activation, sizes, rng):
    layer = make(activation)
    x = rng.normal(size=(8, D)).astype("float32")
    y = bridge.numpy(layer(x, sizes=np.array(sizes, "int32")))
    start = 0
    for e, size in enumerate(sizes):
        rows = slice(start, start + size)
        wanted = expert(layer, activation, e, x[rows])
        wanted = wanted.reshape(size, D)
        np.testing.assert_allclose(y[rows], wanted, rtol=1e-5, atol=1e-5)
        start += size
    assert (y[start:] == 0).all()


def test_every_expert_is_drawn_on_its_own():
    """A Glorot initializer would take the expert axis for a window."""
    layer = Experts(64, 32)
    layer.build((None, None, 16))
    for variable in layer.trainable_variables:
        value = bridge.numpy(variable)
        std = 0.88 * np.sqrt(0.1 / value.shape[1])
        assert value.std() == pytest.approx(std, rel=0.05)
        deviations = value.reshape(64, -1).std(-1)
        np.testing.assert_allclose(deviations, std, rtol=0.25)
        assert len(np.unique(value[:, 0, 0])) == 64


def test_config_round_trip():
    layer = Experts(E, F, activation="gated-gelu", dropout=0.3, init_scale=0.2)
    config = keras.saving.serialize_keras_object(layer)
    again = keras.saving.deserialize_keras_object(config)
    assert again.get_config() == layer.get_config()


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="JAX compiles")
def test_an_eager_evaluation_compiles_once():
    """Each conditional of eager JAX is compiled anew, unless it is in a jit of
    a function that is known: a second a call, and memory for each."""
    import jax

    layer = Experts(4, 19)  # a shape of no other test
    layer.build((None, 11))
    rows = np.ones((32, 11), "float32")
    sizes = np.array([20, 12, 0, 0], "int32")
    layer(rows, sizes=sizes, training=False)
    compiled = []

    def listen(event, seconds, **_):
        if "backend_compile" in event:
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        layer(rows, sizes=sizes, training=False)
        assert not compiled
        layer(rows[:16], sizes=sizes // 2, training=False)
        assert compiled  # the listener hears
    finally:
        jax.monitoring.clear_event_listeners()
