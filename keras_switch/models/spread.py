"""Whether a model fits on the present mesh of devices."""

from collections.abc import Mapping
from typing import Any

import keras

from keras_switch import sharding
from keras_switch.models.weight_shapes import head_counts, weight_shapes
from keras_switch.ops.layout import check_backend, lay_out_variables


def check_shapes(arguments: Mapping[str, Any]) -> None:
    """Before any weight is made: whether the mesh divides them.

    Args:
        arguments: All arguments of a backbone, by name.

    Raises:
        ValueError: naming the weight, the rule and the axis.
        RuntimeError: if this backend spreads nothing.
    """
    distribution = keras.distribution.distribution()
    if distribution is None:
        return
    check_backend()
    if _layout_map(distribution) is not None:
        shapes, heads = weight_shapes(arguments), head_counts(arguments)
        sharding.check_divisible(distribution, shapes, heads)


def spread(backbone: Any) -> None:
    """Lays out weights, if each has a rule, and each rule of the user's a
    weight.

    Args:
        backbone: A backbone of this library, with weights.

    Raises:
        ValueError: naming the weight or the rule.
    """
    layout_map = _layout_map(keras.distribution.distribution())
    if isinstance(layout_map, sharding.SwitchLayoutMap):
        paths = [weight.path for weight in backbone.weights]
        sharding.check_rules(layout_map, paths)
    lay_out_variables(backbone.variables)


def _layout_map(distribution):
    # Keras has no name for it that is public.
    return getattr(distribution, "_layout_map", None)
