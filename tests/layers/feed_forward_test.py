"""The dense feed-forward against the oracle."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_switch.layers.feed_forward import FeedForward
from tests import bridge, reference

B, T, D, F = 2, 8, 6, 5
ACTIVATIONS = ["relu", "silu", "gated-gelu", "gated-silu", "gated-relu"]


def make(activation="relu", **kwargs):
    layer = FeedForward(F, activation=activation, name="ff", **kwargs)
    layer.build((None, None, D))
    rng = np.random.default_rng(3)
    for variable in layer.trainable_variables:
        variable.assign(rng.normal(size=variable.shape).astype("float32"))
    return layer


def weights(layer):
    return {
        v.path.split("/")[-2]: bridge.numpy(v).astype("float64")
        for v in layer.trainable_variables
    }


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_equals_oracle(activation, rng):
    layer = make(activation)
    x = rng.normal(size=(B, T, D)).astype("float32")
    wanted = reference.dense(activation, x, weights(layer))
    np.testing.assert_allclose(
        bridge.numpy(layer(x)), wanted, rtol=1e-5, atol=1e-5
    )


def test_gated_by_hand():
    """relu of wi_0, times wi_1, through wo; no biases."""
    layer = FeedForward(2, activation="gated-relu")
    layer.build((None, 1))
    kernels = {"wi_0": [[2.0, -1.0]], "wi_1": [[3.0, 3.0]]}
    kernels["wo"] = [[10.0], [100.0]]
    for variable in layer.trainable_variables:
        variable.assign(kernels[variable.path.split("/")[-2]])
    y = bridge.numpy(layer(np.array([[1.0], [-1.0]], "float32")))
    np.testing.assert_allclose(y, [[60.0], [-300.0]])


def test_gated_gelu_is_the_tanh_form(rng):
    """T5 1.1's; the exact one differs in the fourth digit."""
    layer = FeedForward(1, activation="gated-gelu")
    layer.build((None, 1))
    for variable in layer.trainable_variables:
        variable.assign(np.ones((1, 1), "float32"))
    h = np.linspace(-3, 3, 61, dtype="float32")
    tanh, _ = reference.activate("gelu", h.astype("float64"))
    y = bridge.numpy(layer(h[:, None]))[:, 0]
    np.testing.assert_allclose(y, tanh * h, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("activation", ["relu", "gated-gelu"])
def test_public_paths(activation):
    layer = make(activation)
    names = ["wi_0", "wi_1"] if "gated" in activation else ["wi"]
    shapes = {v.path: tuple(v.shape) for v in layer.trainable_variables}
    wanted = {f"ff/{name}/kernel": (D, F) for name in names}
    assert shapes == {**wanted, "ff/wo/kernel": (F, D)}


def test_dropout_is_at_the_activation_and_in_training_only():
    """With one hidden unit a row is 0 or twice the evaluation's."""
    layer = FeedForward(1, dropout=0.5)
    layer.build((None, None, D))
    for variable in layer.trainable_variables:
        variable.assign(np.ones(variable.shape, "float32"))
    x = np.ones((8, 50, D), "float32")
    np.testing.assert_array_equal(bridge.numpy(layer(x)), D)
    y = bridge.numpy(layer(x, training=True))
    assert set(np.unique(y)) == {0.0, 2.0 * D}
    np.testing.assert_array_equal(y.min(-1), y.max(-1))
    assert 0.35 < (y == 0).mean() < 0.65


def test_initialisation():
    layer = FeedForward(256, init_scale=0.4)
    layer.build((None, None, 64))
    for variable in layer.trainable_variables:
        value = bridge.numpy(variable)
        std = np.sqrt(0.4 / value.shape[0])
        # Cut at two deviations the normal has 0.88 of its deviation left.
        assert value.std() == pytest.approx(0.88 * std, rel=0.05)
        assert np.abs(value).max() <= 2 * std


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "float16"])
def test_dtype_policies(policy, rng):
    layer = make("gated-gelu", dtype=policy)
    x = rng.normal(size=(B, T, D)).astype("float32")
    y = layer(x)
    compute = policy.removeprefix("mixed_")
    assert keras.backend.standardize_dtype(y.dtype) == compute
    stored = {
        v.path.split("/")[-2]: bridge.numpy(ops.cast(v, "float32"))
        for v in layer.trainable_variables
    }
    wanted = reference.dense("gated-gelu", x, stored)
    got = bridge.numpy(ops.cast(y, "float32"))
    assert np.abs(got - wanted).max() < 0.03 * np.abs(wanted).max()


def test_config_round_trip():
    layer = FeedForward(F, activation="gated-silu", dropout=0.2, init_scale=2)
    config = keras.saving.serialize_keras_object(layer)
    again = keras.saving.deserialize_keras_object(config)
    assert again.get_config() == layer.get_config()
    wanted = {"intermediate_dim": F, "activation": "gated-silu"}
    assert wanted.items() <= layer.get_config().items()


def test_functional_shape():
    x = keras.Input((None, D))
    assert FeedForward(F)(x).shape == (None, None, D)


@pytest.mark.parametrize(
    "kwargs,name",
    [
        ({"intermediate_dim": 0}, "intermediate_dim"),
        ({"intermediate_dim": 2.0}, "intermediate_dim"),
        ({"intermediate_dim": True}, "intermediate_dim"),
        ({"activation": "relux"}, "activation"),
        ({"dropout": 1.0}, "dropout"),
        ({"init_scale": 0}, "init_scale"),
    ],
)
def test_refuses(kwargs, name):
    with pytest.raises(ValueError, match=f"{name} must"):
        FeedForward(**{"intermediate_dim": F, **kwargs})


def test_biases_follow_each_product(rng):
    layer = make("gated-relu", use_bias=True)
    w = {v.path.split("/", 1)[1]: bridge.numpy(v) for v in layer.weights}
    assert w["wi_0/bias"].shape == (F,) and w["wo/bias"].shape == (D,)
    x = rng.normal(size=(B, T, D)).astype("float32")
    gate = np.maximum(x @ w["wi_0/kernel"] + w["wi_0/bias"], 0)
    hidden = gate * (x @ w["wi_1/kernel"] + w["wi_1/bias"])
    wanted = hidden @ w["wo/kernel"] + w["wo/bias"]
    np.testing.assert_allclose(bridge.numpy(layer(x)), wanted, atol=1e-4)
