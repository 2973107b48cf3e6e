"""What the arguments of `SwitchBackbone` may be, and what they mean."""

import random
from collections.abc import Collection, Mapping
from typing import Any

import keras

from keras_switch.layers import validation
from keras_switch.layers.switch_layer import SwitchLayer
from keras_switch.layers.validation import check_number

_SIZES = (
    "vocabulary_size",
    "num_encoder_layers",
    "num_decoder_layers",
    "num_heads",
    "hidden_dim",
    "intermediate_dim",
    "relative_attention_num_buckets",
    "relative_attention_max_distance",
)
# Those that a sparse layer takes as they are.
_OF_LAYERS = (
    "intermediate_dim",
    "dispatch",
    "capacity_factor",
    "eval_capacity_factor",
    "min_capacity",
    "capacity",
    "group_size",
    "activation",
    "dropout",
    "expert_dropout",
    "init_scale",
)
# Stands for a number of experts that is not given: any router has room.
_MANY_EXPERTS = 2**16


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """Refuses arguments that describe no model, whether a layer uses them or
    not.

    Args:
        arguments: All arguments of `SwitchBackbone`, by name.

    Raises:
        ValueError: naming the argument, what was wanted and what came.
    """
    for name in _SIZES:
        check_number(name, arguments[name], whole=True, at_least=1)
    _check_heads(arguments)
    check_number("dropout", arguments["dropout"], at_least=0, below=1)
    for name in ("layer_norm_epsilon", "init_scale"):
        check_number(name, arguments[name], above=0)
    if any(sparse_stacks(arguments)):
        name = "num_experts"
        check_number(name, arguments[name], whole=True, at_least=1)
    state = random.getstate()  # layers draw seeds from it
    try:
        _check_layers(arguments)
    finally:
        random.setstate(state)


def _check_layers(arguments):
    """Has a sparse layer of each stack check what is its own.

    Nothing is allocated before a layer is built.
    """
    experts = arguments["num_experts"]
    decoder_router = arguments["decoder_router"] or arguments["router"]
    routers = (arguments["router"], decoder_router)
    for router in routers:
        layer = SwitchLayer(
            _MANY_EXPERTS if experts is None else experts,
            router=router,
            name="feed_forward",
            **{name: arguments[name] for name in _OF_LAYERS},
        )
    if sparse_stacks(arguments)[1]:
        validation.check_causal("decoder_router", layer.router)


def _check_heads(arguments):
    heads, hidden_dim = arguments["num_heads"], arguments["hidden_dim"]
    if arguments["key_value_dim"] is not None:
        name = "key_value_dim"
        check_number(name, arguments[name], whole=True, at_least=1)
    elif hidden_dim % heads:
        raise ValueError(
            "hidden_dim must be a multiple of num_heads where key_value_dim "
            f"is not given; received hidden_dim={hidden_dim}, "
            f"num_heads={heads}."
        )


def check_known(
    owner: str, received: Mapping[str, Any], known: Collection[str]
) -> None:
    """Refuses keyword arguments that Keras would swallow in silence.

    Raises:
        ValueError: naming the unknown arguments and the known ones.
    """
    unknown = sorted(set(received) - set(known))
    if unknown:
        raise ValueError(
            f"{owner} has no argument {', '.join(unknown)}; beyond those of "
            f"its signature it takes {', '.join(known)}."
        )


def sparse_stacks(arguments: Mapping[str, Any]) -> tuple[list, list]:
    """Indices of the sparse layers of the encoder and of the decoder.

    Args:
        arguments: Arguments of `SwitchBackbone`, by name.

    Returns:
        Two lists of ints, ascending.
    """
    return tuple(
        _sparse_layers(
            f"{stack}_sparse_step",
            arguments[f"{stack}_sparse_step"],
            arguments[f"num_{stack}_layers"],
        )
        for stack in ("encoder", "decoder")
    )


def _sparse_layers(name, step, num_layers):
    if isinstance(step, list | tuple):
        for index in step:
            check_number(name, index, whole=True, at_least=0, below=num_layers)
        if len(set(step)) < len(step):
            raise ValueError(
                f"{name} must name every sparse layer once; received "
                f"{name}={list(step)}."
            )
        return sorted(step)
    check_number(name, step, whole=True, at_least=0)
    return list(range(step - 1, num_layers, step)) if step else []


def plain(value: Any) -> Any:
    """A copy that is JSON: layers serialized, tracked containers undone."""
    if isinstance(value, keras.layers.Layer):
        return keras.saving.serialize_keras_object(value)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
