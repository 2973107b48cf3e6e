"""Policies of quantized experts in the config of the layer round them."""

import keras
import numpy as np
import pytest

import keras_switch
from keras_switch.layers.attention import Attention
from keras_switch.layers.expert_stack import ExpertStack
from keras_switch.layers.experts import Experts
from keras_switch.layers.feed_forward import FeedForward
from keras_switch.layers.policies import policy_config, policy_of

LAYERS = {
    "switch": lambda: keras_switch.SwitchLayer(4, 8, num_shared_experts=1),
    "deep": lambda: keras_switch.SwitchLayer(4, 8, expert_blocks=2),
    "feed_forward": lambda: FeedForward(8, activation="gated-silu"),
    "experts": lambda: Experts(2, 8),  # x holds a row of slots for each
    "stack": lambda: ExpertStack(2, 8, 2),
    "attention": lambda: Attention(2, 4, num_key_value_heads=1),
}


@pytest.mark.parametrize("mode", ["int8", "int4"])
@pytest.mark.parametrize("which", LAYERS)
def test_a_quantized_layer_in_a_model_of_ones_own_is_saved(
    which, mode, rng, tmp_path
):
    inputs = keras.Input((None, 6))
    layer = LAYERS[which]()
    model = keras.Model(inputs, layer(inputs))
    quantized = [
        dense.quantize(mode)
        for dense in layer._flatten_layers(include_self=False)
        if isinstance(dense, keras.layers.Dense | keras.layers.EinsumDense)
    ]
    assert len(quantized) >= 2
    x = rng.normal(size=(2, 5, 6)).astype("float32")
    wanted = model.predict(x, verbose=0)
    path = tmp_path / "model.keras"
    for _ in range(2):  # what was loaded is saved again, with its scales
        model.save(path)
        model = keras.models.load_model(path)
        np.testing.assert_array_equal(model.predict(x, verbose=0), wanted)


def test_a_plain_layer_says_nothing():
    layer = keras_switch.SwitchLayer(4, 8)
    layer.build((None, None, 6))
    assert policy_config(layer) == {}
    assert policy_of(layer, "wi") is layer.dtype_policy
