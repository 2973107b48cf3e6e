"""Policies of what lies inside a layer, for its config."""

from typing import Any

import keras


def policy_config(layer: keras.layers.Layer) -> dict[str, Any]:
    """The policy that a copy of a layer needs, as a part of its config.

    What has been quantized lies inside the layer, and has a policy of its own:
    a copy with the layer's alone would have no room for its scales.

    Args:
        layer: Which hands its `dtype` on to all layers in it.

    Returns:
        `{"dtype": ...}` where something is quantized; else nothing.
    """
    policies = {
        inner.path: inner.dtype_policy
        for inner in layer._flatten_layers(include_self=False)
        if inner.quantization_mode is not None
    }
    if not policies:
        return {}
    own = layer.dtype_policy
    own = getattr(own, "default_policy", own)
    made = keras.dtype_policies.DTypePolicyMap(default_policy=own)
    for path, policy in policies.items():
        made[path] = policy
    return {"dtype": keras.saving.serialize_keras_object(made)}


def policy_of(layer: keras.layers.Layer, name: str) -> Any:
    """The policy of a layer that another one makes as it is built.

    With a map of policies as its own, Keras 3.15 makes it quantized, and then
    saves it without its scales.

    Args:
        layer: The other one.
        name: Of the layer that is made.
    """
    policy = layer.dtype_policy
    if isinstance(policy, keras.dtype_policies.DTypePolicyMap):
        return policy[f"{layer.path}/{name}"]
    return policy
