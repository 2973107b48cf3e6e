"""Experts with biases: each is the feed-forward with its own, by every way."""

import numpy as np
import pytest
from keras import ops

from keras_switch.layers import FeedForward, SwitchLayer
from keras_switch.layers.experts import Experts
from tests import bridge

E, D, F = 3, 6, 5
ACTIVATIONS = pytest.mark.parametrize("activation", ["relu", "gated-gelu"])


def make(activation):
    layer = Experts(E, F, activation=activation, use_bias=True, name="bank")
    layer.build((None, None, D))
    rng = np.random.default_rng(3)
    for variable in layer.trainable_variables:
        variable.assign(rng.normal(size=variable.shape).astype("float32"))
    return layer


def alone(layer, e):
    """Expert `e` as a feed-forward."""
    one = FeedForward(F, activation=layer.activation, use_bias=True)
    one.build((None, D))
    values = {v.path.split("/", 1)[1]: v for v in layer.trainable_variables}
    for variable in one.trainable_variables:
        value = bridge.numpy(values[variable.path.split("/", 1)[1]])[e]
        variable.assign(value.reshape(variable.shape))
    return lambda rows: bridge.numpy(one(rows))


@ACTIVATIONS
def test_buffers(activation, rng):
    layer = make(activation)
    x = rng.normal(size=(2, E, 4, D)).astype("float32")
    y = bridge.numpy(layer(x))
    for e in range(E):
        np.testing.assert_allclose(y[:, e], alone(layer, e)(x[:, e]), atol=1e-4)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("sizes", [[3, 0, 5], [2, 2, 2]])
def test_sorted_rows(sizes, training, rng):
    layer = make("gated-gelu")
    x = rng.normal(size=(8, D)).astype("float32")
    sizes = np.array(sizes, "int32")
    y = bridge.numpy(layer(x, sizes=sizes, training=training))
    ends = np.cumsum(sizes)
    for e, (end, size) in enumerate(zip(ends, sizes, strict=True)):
        if size:
            rows = slice(end - size, end)
            wanted = alone(layer, e)(x[rows])
            np.testing.assert_allclose(y[rows], wanted, atol=1e-4)


@ACTIVATIONS
def test_rows_that_name_their_expert(activation, rng):
    layer = make(activation)
    x = rng.normal(size=(4, D)).astype("float32")
    y = bridge.numpy(layer(x, expert_index=np.array([2, 0, 2, 1], "int32")))
    for row, e in enumerate((2, 0, 2, 1)):
        wanted = alone(layer, e)(x[row : row + 1])[0]
        np.testing.assert_allclose(y[row], wanted, atol=1e-4)


def dispatched(dispatch):
    layer = SwitchLayer(
        E, F, dispatch=dispatch, capacity_factor=9.0, use_bias=True, name="s"
    )
    layer.build((None, None, D))
    rng = np.random.default_rng(5)
    for variable in layer.trainable_variables:
        variable.assign(rng.normal(size=variable.shape).astype("float32"))
    layer.router.exploration = "argmax"
    return layer


def test_every_dispatch_has_the_same_gradients(gradients, rng):
    x = rng.normal(size=(2, 8, D)).astype("float32")
    weights = rng.normal(size=x.shape).astype("float32")
    found = {}
    for dispatch in ("einsum", "gather", "dropless"):
        layer = dispatched(dispatch)

        def loss(x, layer=layer):
            return ops.sum(ops.multiply(layer(x, training=True), weights))

        found[dispatch] = gradients(loss, [x], layer.trainable_variables)
        paths = [v.path for v in layer.trainable_variables]
    value, (dx,), grads = found["einsum"]
    biases = [g for p, g in zip(paths, grads, strict=True) if "bias" in p]
    assert len(biases) == 2 and all(np.abs(g).max() > 0.1 for g in biases)
    for other in ("gather", "dropless"):
        np.testing.assert_allclose(found[other][0], value, rtol=1e-4)
        np.testing.assert_allclose(found[other][1][0], dx, atol=1e-4)
        for mine, wanted in zip(found[other][2], grads, strict=True):
            np.testing.assert_allclose(mine, wanted, atol=1e-3)


def test_evaluation_has_the_gradients_of_training(gradients, rng):
    x = rng.normal(size=(2, 8, D)).astype("float32")
    layer = dispatched("dropless")

    def loss(training):
        return lambda x: ops.sum(ops.square(layer(x, training=training)))

    layer.router.load_balancing_loss_weight = 0.0
    variables = layer.trainable_variables
    _, _, wanted = gradients(loss(True), [x], variables)
    _, _, found = gradients(loss(False), [x], variables)
    for mine, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-3)
