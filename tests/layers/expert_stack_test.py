"""Experts that are stacks of residual blocks, and the BASE layer of them."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_switch
from keras_switch.layers import Experts, ExpertStack
from tests import bridge, reference, reference_gradients

B, T, D, E = 2, 8, 6, 4
MASK = np.array([[1] * 8, [0, 1, 2, 2, 0, 1, 1, 0]])
SPECS = {
    "gather": {"capacity_factor": 0.5, "min_capacity": 1},
    "einsum": {
        "capacity_factor": 0.5,
        "min_capacity": 1,
        "dispatch": "einsum",
        "activation": "gated-silu",
        "router": "top_k",
        "k": 2,
    },
    "dropless": {"dispatch": "dropless"},
    "base": {
        "router": "base",
        "gate": "sigmoid",
        "group_size": B * T,
        "load_balancing_loss_weight": 0.0,
    },
}


def make(name, **kwargs):
    spec = reference.Spec(E, **{**SPECS[name], **kwargs})
    return spec, bridge.make_layer(spec, dim=D, expert_blocks=3)


@pytest.mark.parametrize("name", SPECS)
def test_training_equals_the_oracle(name, rng, gradients):
    spec, layer = make(name, training=True)
    x, dy = rng.normal(size=(2, B, T, D))
    weight = ops.convert_to_tensor(dy.astype("float32"))

    def run(x):
        return layer(x, padding_mask=MASK, training=True)

    y = bridge.numpy(run(x.astype("float32")))
    wanted = bridge.run_oracle(spec, layer, x, MASK)
    np.testing.assert_allclose(y, wanted.y, rtol=1e-5, atol=2e-5)
    assert (y[MASK == 0] == 0).all()
    variables = bridge.variables(layer)
    assert len(variables) == 1 + 3 * (3 if "gated" in spec.activation else 2)
    _, (dx,), dws = gradients(
        lambda x: ops.sum(run(x) * weight) + sum(layer.losses),
        [x],
        variables.values(),
    )
    grads = reference_gradients.gradients(
        spec, x, bridge.weights(layer), dy, MASK
    )
    np.testing.assert_allclose(dx, grads["x"], rtol=1e-4, atol=5e-5)
    for key, dw in zip(variables, dws, strict=True):
        np.testing.assert_allclose(
            dw, grads[key], rtol=1e-4, atol=5e-5, err_msg=key
        )


@pytest.mark.parametrize("length", [1, T])
def test_evaluation_equals_the_oracle(length, rng):
    """Of whole sequences, and of one token, as a step of decoding."""
    spec, layer = make("gather")
    x = rng.normal(size=(B, length, D)).astype("float32")
    wanted = bridge.run_oracle(spec, layer, x)
    y = bridge.numpy(layer(x))
    np.testing.assert_allclose(y, wanted.y, rtol=1e-5, atol=2e-5)


@pytest.mark.any_backend
def test_the_oracles_gradients_equal_central_differences(rng):
    spec, layer = make("gather", training=True)
    x, dy = rng.normal(size=(2, B, T, D))
    weights = bridge.weights(layer)
    grads = reference_gradients.gradients(spec, x, weights, dy, MASK)
    # Only what does not change a route may be moved.
    for name in ("block_0_wi", "block_1_wo", "block_2_wi"):
        at = np.unravel_index(np.abs(grads[name]).argmax(), grads[name].shape)
        values = []
        for step in (1e-6, -1e-6):
            moved = {**weights, name: weights[name].copy()}
            moved[name][at] += step
            y = reference.switch_layer(spec, x, moved, MASK).y
            values.append((y * dy).sum())
        slope = (values[0] - values[1]) / 2e-6
        np.testing.assert_allclose(grads[name][at], slope, rtol=1e-4)


def test_the_base_layer_mixes_what_its_experts_make_and_its_input(rng):
    """`x + layer(x)` is the paper's, of a token that expert 1 has taken."""
    layer = keras_switch.SwitchLayer(
        2, 8, router="base", expert_blocks=2, init_scale=1.0
    )
    layer.build((None, None, D))
    kernel = np.zeros((D, 2), "float32")
    kernel[0] = [-1.0, 1.0]
    layer.router.kernel.assign(kernel)
    x = rng.normal(size=(1, 1, D)).astype("float32")
    x[0, 0, 0] = 1.5
    hidden = x[0, 0]
    for block in layer.experts.blocks:
        norm = (hidden - hidden.mean()) / np.sqrt(hidden.var() + 1e-5)
        wi, wo = (bridge.numpy(d.kernel)[1] for d in (*block._wi, block.wo))
        hidden = hidden + np.maximum(norm @ wi, 0) @ wo
    gate = 1 / (1 + np.exp(-1.5))
    wanted = gate * hidden + (1 - gate) * x[0, 0]
    np.testing.assert_allclose(
        x[0, 0] + bridge.numpy(layer(x))[0, 0], wanted, rtol=1e-5, atol=1e-6
    )


def test_a_token_that_is_dropped_or_nan_touches_no_other(rng):
    _, layer = make("gather")
    x = rng.normal(size=(B, T, D)).astype("float32")
    calm = bridge.numpy(layer(x, training=False))
    x[1, 3] = np.nan
    y = bridge.numpy(layer(x, training=False))
    assert np.isnan(y[1, 3]).all()
    y[1, 3] = calm[1, 3]
    np.testing.assert_array_equal(y, calm)


def test_quantized_and_adapted_blocks(rng):
    _, layer = make("gather")
    x = rng.normal(size=(B, T, D)).astype("float32")
    before = bridge.numpy(layer(x))
    for block in layer.experts.blocks:
        for dense in (*block._wi, block.wo):
            dense.enable_lora(2)
    np.testing.assert_allclose(bridge.numpy(layer(x)), before, atol=1e-5)
    _, layer = make("gather")
    assert not layer.experts.quantized
    for block in layer.experts.blocks:
        for dense in (*block._wi, block.wo):
            dense.quantize("int8")
    assert layer.experts.quantized
    assert np.abs(bridge.numpy(layer(x)) - before).max() < 0.3


@pytest.mark.any_backend
def test_config_and_paths():
    layer = keras_switch.SwitchLayer(E, 5, expert_blocks=2, use_bias=True)
    again = keras_switch.SwitchLayer.from_config(layer.get_config())
    assert again.expert_blocks == 2
    again.build((None, None, D))
    paths = {w.path.partition("experts/")[2] for w in again.weights}
    assert {"block_0/wi/kernel", "block_1/wo/bias"} < paths
    plain = keras_switch.SwitchLayer(E, 5)
    assert isinstance(plain.experts, Experts)
    stack = ExpertStack(E, 5, 3, activation="gelu", name="experts")
    config = ExpertStack.from_config(stack.get_config()).get_config()
    assert config == stack.get_config()
    with pytest.raises(ValueError, match="expert_blocks must be an int"):
        keras_switch.SwitchLayer(E, 5, expert_blocks=0)


@pytest.mark.optimized
def test_a_model_of_ones_own_learns(rng):
    """One BASE layer between two dense ones, by `fit`."""
    inputs = keras.Input((None, D))
    h = keras.layers.Dense(D)(inputs)
    h = h + keras_switch.SwitchLayer(
        E, 16, router="base", expert_blocks=2, group_size=B * T
    )(h)
    model = keras.Model(inputs, keras.layers.Dense(1)(h))
    model.compile(keras.optimizers.Adam(0.01), "mse")
    x = rng.normal(size=(64, T, D)).astype("float32")
    y = np.abs(x).sum(-1, keepdims=True)
    losses = model.fit(x, y, epochs=8, verbose=0).history["loss"]
    assert losses[-1] < 0.5 * losses[0]
