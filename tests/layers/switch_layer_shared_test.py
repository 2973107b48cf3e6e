"""Shared experts: every token's, beside any router."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_switch
from tests import bridge, reference, reference_gradients
from tests.sparing import cases

B, T, D, E = 2, 8, 6, 4
MASK = np.array([[1] * 8, [0, 1, 2, 2, 0, 1, 1, 0]])
SPECS = {
    "drops": {"capacity_factor": 0.5, "min_capacity": 1},
    "groups": {
        "capacity_factor": 0.5,
        "min_capacity": 1,
        "group_size": 5,
        "activation": "gated-silu",
        "router": "top_k",
        "k": 2,
    },
    "dropless": {"dispatch": "dropless"},
    "expert_choice": {"router": "expert_choice"},
}


def make(name, **kwargs):
    spec = reference.Spec(E, **{**SPECS[name], **kwargs})
    return spec, bridge.make_layer(spec, dim=D, num_shared_experts=2)


@pytest.mark.parametrize("name", cases(SPECS, everywhere=("drops",)))
def test_training_equals_the_oracle(name, rng, gradients):
    spec, layer = make(name, training=True)
    x, dy = rng.normal(size=(2, B, T, D))
    weight = ops.convert_to_tensor(dy.astype("float32"))

    def run(x):
        return layer(x, padding_mask=MASK, training=True)

    y = bridge.numpy(run(x.astype("float32")))
    wanted = bridge.run_oracle(spec, layer, x, MASK)
    np.testing.assert_allclose(y, wanted.y, rtol=1e-5, atol=1e-5)
    bridge.assert_statistics_equal(layer, wanted)
    assert (y[MASK == 0] == 0).all()
    # A dropped token has what the shared experts make of it.
    assert (np.abs(y[MASK != 0]).max(-1) > 1e-3).all()
    variables = bridge.variables(layer)
    assert tuple(variables["shared_wo"].shape) == (2 * 5, D)
    _, (dx,), dws = gradients(
        lambda x: ops.sum(run(x) * weight) + sum(layer.losses),
        [x],
        variables.values(),
    )
    grads = reference_gradients.gradients(
        spec, x, bridge.weights(layer), dy, MASK
    )
    np.testing.assert_allclose(dx, grads["x"], rtol=1e-5, atol=1e-5)
    for key, dw in zip(variables, dws, strict=True):
        np.testing.assert_allclose(
            dw, grads[key], rtol=1e-5, atol=1e-5, err_msg=key
        )


def test_evaluation_equals_the_oracle(rng):
    spec, layer = make("drops", eval_capacity_factor=0.5)
    x = rng.normal(size=(B, T, D)).astype("float32")
    y = bridge.numpy(layer(x, padding_mask=MASK))
    wanted = bridge.run_oracle(spec, layer, x, MASK)
    assert wanted.statistics["dropped_fraction"] > 0
    np.testing.assert_allclose(y, wanted.y, rtol=1e-5, atol=1e-5)


def test_a_token_that_is_not_finite_is_alone(rng):
    _, layer = make("drops")
    x = rng.normal(size=(B, T, D)).astype("float32")
    calm = bridge.numpy(layer(x, padding_mask=MASK))
    x[1, 0] = np.inf  # padding
    x[0, 3, 1] = np.nan
    y = bridge.numpy(layer(x, padding_mask=MASK))
    assert np.isnan(y[0, 3]).all()
    y = np.where(np.isnan(y), calm, y)
    np.testing.assert_array_equal(y, calm)


@pytest.mark.parametrize("activation", ["sigmoid", "gated-softplus"])
def test_padding_stays_zero_whatever_the_activation_of_zero(activation, rng):
    layer = keras_switch.SwitchLayer(
        E, 5, activation=activation, use_bias=True, num_shared_experts=1
    )
    layer.build((None, None, D))
    layer.shared_expert.wo.bias.assign(np.ones(D, "float32"))
    x = rng.normal(size=(B, T, D)).astype("float32")
    y = bridge.numpy(layer(x, padding_mask=MASK))
    assert (y[MASK == 0] == 0).all()
    assert (np.abs(y[MASK != 0]).max(-1) > 1e-3).all()


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "float16"])
def test_half_precision(dtype, rng):
    layer = keras_switch.SwitchLayer(
        E, 5, num_shared_experts=1, dtype=dtype, router="soft"
    )
    x = rng.normal(size=(B, T, D)).astype("float32")
    y = layer(x, training=True)
    assert keras.backend.standardize_dtype(y.dtype) == layer.compute_dtype
    assert np.isfinite(bridge.numpy(ops.cast(y, "float32"))).all()


def test_config_and_names():
    layer = keras_switch.SwitchLayer(E, 5, num_shared_experts=3)
    layer.build((None, None, D))
    again = keras_switch.SwitchLayer.from_config(layer.get_config())
    again.build((None, None, D))
    assert again.get_config() == layer.get_config()
    shapes = {
        w.path.split("/", 1)[1]: tuple(w.shape) for w in again.trainable_weights
    }
    assert shapes["shared_expert/wi/kernel"] == (D, 15)
    assert shapes["experts/wi/kernel"] == (E, D, 5)
    # The optimizer's pattern for banks of experts.
    optimizer = keras_switch.optimizers.Adafactor()
    for path in ("a/shared_expert/wi/kernel", "a/feed_forward/wi/kernel"):
        slots = optimizer.slot_shapes((256, 256), path)
        assert slots == optimizer.slot_shapes((256, 256), "a/kernel")
    plain = keras_switch.SwitchLayer(E, 5)
    assert not hasattr(plain, "shared_expert")
    with pytest.raises(ValueError, match="num_shared_experts must be an int"):
        keras_switch.SwitchLayer(E, 5, num_shared_experts=-1)
