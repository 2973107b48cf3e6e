"""All routers by name."""

from typing import Any

import keras

from keras_switch.layers.base_router import BaseRouter
from keras_switch.layers.expert_choice_router import ExpertChoiceRouter
from keras_switch.layers.group_limited_router import GroupLimitedRouter
from keras_switch.layers.hash_router import HashRouter
from keras_switch.layers.loss_free_router import LossFreeRouter
from keras_switch.layers.no_token_left_behind_router import (
    NoTokenLeftBehindRouter,
)
from keras_switch.layers.noisy_top_k_router import NoisyTopKRouter
from keras_switch.layers.random_router import RandomRouter
from keras_switch.layers.routing import Router, SwitchRouter
from keras_switch.layers.soft_router import SoftRouter
from keras_switch.layers.top_k_router import TopKRouter
from keras_switch.layers.validation import check_choice

ROUTERS = {
    "switch": SwitchRouter,
    "top_k": TopKRouter,
    "expert_choice": ExpertChoiceRouter,
    "hash": HashRouter,
    "random": RandomRouter,
    "noisy_top_k": NoisyTopKRouter,
    "no_token_left_behind": NoTokenLeftBehindRouter,
    "loss_free": LossFreeRouter,
    "group_limited": GroupLimitedRouter,
    "base": BaseRouter,
    "soft": SoftRouter,
}


def get_router(identifier: Any, num_experts: int, **kwargs: Any) -> Router:
    """A new router for `num_experts` experts.

    Args:
        identifier: a name in `ROUTERS`; an unbuilt `Router`, of which a copy
            is made; or its serialized config.
        num_experts: int.
        **kwargs: `name`, `dtype` of the new router.

    Returns:
        A `Router`.

    Raises:
        ValueError: for an unknown name, a built router, or one made for
            another number of experts.
    """
    if isinstance(identifier, str):
        check_choice("router", identifier, tuple(ROUTERS))
        return ROUTERS[identifier](num_experts=num_experts, **kwargs)
    if isinstance(identifier, dict):
        identifier = keras.saving.deserialize_keras_object(identifier)
    if not isinstance(identifier, Router):
        raise ValueError(
            f"router must be one of {', '.join(map(repr, ROUTERS))}, a "
            f"keras_switch.Router or its config; received {identifier!r}."
        )
    if identifier.built:
        raise ValueError(
            "router must not be built yet: each layer trains a copy of its "
            "own. Pass a new one."
        )
    if identifier.num_experts not in (None, num_experts):
        raise ValueError(
            f"router was made for num_experts={identifier.num_experts}; the "
            f"layer has num_experts={num_experts}. Leave it out of the router."
        )
    config = identifier.get_config() | {"num_experts": num_experts} | kwargs
    try:
        return type(identifier).from_config(config)
    except TypeError as error:
        # Keras wraps what the constructor says in a page of config.
        if isinstance(error.__context__, ValueError):
            raise error.__context__ from None
        raise
