"""What the arguments of the backbones may be, and what they mean.

Those of a `SwitchCausalBackbone` have `num_layers`; those of a
`SwitchBackbone` count the layers of two stacks.
"""

import random
from collections.abc import Collection, Mapping
from typing import Any

import keras
import numpy as np

from keras_switch.layers import validation
from keras_switch.layers.attention import check_shared_heads
from keras_switch.layers.feed_forward import get_activation
from keras_switch.layers.normalization import NORMS
from keras_switch.layers.rotary import check_rotary
from keras_switch.layers.switch_layer import SwitchLayer
from keras_switch.layers.validation import (
    check_choice,
    check_flag,
    check_number,
)

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
_LAYERS_OF_STACKS = ("num_encoder_layers", "num_decoder_layers")
POSITIONS = ("relative", "rotary", "learned", "sinusoidal")
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
    "num_shared_experts",
    "expert_blocks",
)
# Stands for a number of experts that is not given: any router has room.
_MANY_EXPERTS = 2**16


def is_decoder_only(arguments: Mapping[str, Any]) -> bool:
    """Whether arguments are those of a `SwitchCausalBackbone`."""
    return "num_layers" in arguments


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """Refuses arguments that describe no model, whether a layer uses them or
    not.

    Args:
        arguments: All arguments of a backbone, by name.

    Raises:
        ValueError: naming the argument, what was wanted and what came.
    """
    sizes = _SIZES
    if is_decoder_only(arguments):
        sizes = [n for n in _SIZES if n not in _LAYERS_OF_STACKS]
        sizes.append("num_layers")
    for name in sizes:
        check_number(name, arguments[name], whole=True, at_least=1)
    _check_heads(arguments)
    check_number("dropout", arguments["dropout"], at_least=0, below=1)
    for name in ("layer_norm_epsilon", "init_scale"):
        check_number(name, arguments[name], above=0)
    for name in ("extra_feed_forward", "rematerialize"):
        check_flag(name, arguments[name])
    if any(sparse_stacks(arguments)):
        name = "num_experts"
        check_number(name, arguments[name], whole=True, at_least=1)
    if is_decoder_only(arguments):
        _check_decoder_only(arguments)
    state = random.getstate()  # layers draw seeds from it
    try:
        _check_layers(arguments)
    finally:
        random.setstate(state)


def _check_decoder_only(arguments):
    check_shared_heads(arguments["num_heads"], arguments["num_key_value_heads"])
    name = "expert_intermediate_dim"
    if arguments[name] is not None:
        check_number(name, arguments[name], whole=True, at_least=1)
    get_activation(arguments["activation"])
    check_choice("norm", arguments["norm"], NORMS)
    check_choice("position", arguments["position"], POSITIONS)
    width = arguments["key_value_dim"]
    if arguments["position"] == "rotary":
        width = width or arguments["hidden_dim"] // arguments["num_heads"]
        check_rotary(arguments["rotary_max_wavelength"], width)
    name = "max_sequence_length"
    if arguments["position"] == "learned" or arguments[name] is not None:
        check_number(name, arguments[name], whole=True, at_least=1)


def _check_layers(arguments):
    """Has a sparse layer of each stack check what is its own.

    Nothing is allocated before a layer is built.
    """
    last = "router" if is_decoder_only(arguments) else "decoder_router"
    for router in (arguments["router"], arguments[last] or arguments["router"]):
        layer = make_switch_layer(arguments, router)
    if sparse_stacks(arguments)[-1]:
        validation.check_causal(last, layer.router)


def make_switch_layer(
    arguments: Mapping[str, Any], router: Any, **kwargs: Any
) -> SwitchLayer:
    """A new sparse layer of a backbone.

    Args:
        arguments: Those of the backbone, by name.
        router: See `SwitchLayer`.
        **kwargs: `dtype`.
    """
    own = {name: arguments[name] for name in _OF_LAYERS}
    if is_decoder_only(arguments):
        for name in ("intermediate_dim", "activation"):
            own[name] = arguments[f"expert_{name}"] or own[name]
        own["use_bias"] = arguments["use_bias"]
    experts = arguments["num_experts"]
    return SwitchLayer(
        _MANY_EXPERTS if experts is None else experts,
        router=router,
        name="feed_forward",
        **own,
        **kwargs,
    )


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


def sparse_stacks(arguments: Mapping[str, Any]) -> tuple[list, ...]:
    """Indices of the sparse layers of the encoder and of the decoder, or of a
    decoder alone.

    Args:
        arguments: Arguments of a backbone, by name.

    Returns:
        A list of ints for each stack, ascending.
    """
    stacks = ("encoder_", "decoder_")
    if is_decoder_only(arguments):
        stacks = ("",)
    return tuple(
        _sparse_layers(
            f"{stack}sparse_step",
            arguments[f"{stack}sparse_step"],
            arguments[f"num_{stack}layers"],
        )
        for stack in stacks
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
    """A copy that is JSON: layers serialized, tracked containers undone,
    NumPy scalars made Python's."""
    if isinstance(value, keras.layers.Layer):
        return keras.saving.serialize_keras_object(value)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value
