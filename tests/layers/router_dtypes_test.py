"""Every router in a layer of every dtype policy: routing stays float32."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_switch
from keras_switch.layers.routers import ROUTERS, get_router
from tests import bridge


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "bfloat16", "float16"])
@pytest.mark.parametrize("name", ROUTERS)
def test_weights_and_routes_are_float32(name, policy, rng):
    layer = keras_switch.SwitchLayer(4, 8, router=name, dtype=policy)
    x = ops.cast(rng.normal(size=(2, 6, 16)), layer.compute_dtype)
    ids = rng.integers(0, 50, (2, 6)).astype("int32")
    for training in (True, False):
        y, routes = layer(
            x, token_ids=ids, training=training, return_routing=True
        )
        assert dtype_of(y) == layer.compute_dtype
        assert np.isfinite(bridge.numpy(ops.cast(y, "float32"))).all()
    weights = [*routes] if name == "soft" else [routes.gate]
    weights += get_weights(layer.router)
    assert len(weights) > 1 or name == "hash"
    for weight in weights:
        assert dtype_of(weight) == "float32"


def dtype_of(value):
    return keras.backend.standardize_dtype(value.dtype)


def get_weights(router):
    """Of floats."""
    return [w for w in router.weights if "float" in dtype_of(w)]


@pytest.mark.parametrize("name", ROUTERS)
def test_one_expert_or_a_reason(name, rng):
    """With one expert there is nothing to choose; no router falls over it."""
    if name in ("top_k", "noisy_top_k", "loss_free", "group_limited"):
        # Of k=2 by default.
        with pytest.raises(ValueError, match="^k must be"):
            get_router(name, 1)
        return
    layer = keras_switch.SwitchLayer(1, 8, router=name)
    x = rng.normal(size=(2, 6, 16)).astype("float32")
    ids = rng.integers(0, 50, (2, 6)).astype("int32")
    for training in (True, False):
        y = bridge.numpy(layer(x, token_ids=ids, training=training))
        assert np.isfinite(y).all() and (np.abs(y).sum(-1) > 0).any()
