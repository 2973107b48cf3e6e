"""The JSON files of a preset, read into arguments of the four classes.

The schema is closed. No class and no function is looked up by what a file
says: a name that stands in a file is compared with those that are known here,
and a router of the user's own comes as a class, by an argument.
"""

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from keras_switch.layers.routers import (
    ROUTERS,
    SECOND_POLICIES,
    ExpertChoiceRouter,
    TopKRouter,
)
from keras_switch.layers.routing import EXPLORATIONS, Router, SwitchRouter
from keras_switch.layers.switch_layer import DISPATCHES
from keras_switch.models.backbone_arguments import check_arguments
from keras_switch.models.preset_dtypes import read_dtype
from keras_switch.models.preset_fields import (
    Field,
    Place,
    check_fields,
    check_name,
    check_object,
)

# Above this a stack takes hours to build, however small the model is.
MAX_LAYERS = 1000
_ACTIVATIONS = (
    *("relu", "gelu", "silu", "swish", "elu", "selu", "celu", "relu6"),
    *("leaky_relu", "tanh", "sigmoid", "softplus", "softsign", "mish"),
    *("hard_sigmoid", "hard_silu", "hard_swish", "exponential", "linear"),
)
_SIZE = Field(int, 1, required=True)
_OPTIONAL_SIZE = Field(int, 1, optional=True)
_FLOAT = Field(float)
# Ranges of floats, and what depends on other fields, are checked as for any
# caller of the constructor.
_BACKBONE = {
    "vocabulary_size": _SIZE,
    "num_encoder_layers": _SIZE._replace(at_most=MAX_LAYERS),
    "num_decoder_layers": _SIZE._replace(at_most=MAX_LAYERS),
    "num_heads": _SIZE,
    "hidden_dim": _SIZE,
    "intermediate_dim": _SIZE,
    "key_value_dim": _OPTIONAL_SIZE,
    "num_experts": _OPTIONAL_SIZE,
    "dispatch": Field(str, choices=DISPATCHES),
    "capacity_factor": _FLOAT,
    "eval_capacity_factor": _FLOAT._replace(optional=True),
    "min_capacity": Field(int, 1),
    "capacity": _OPTIONAL_SIZE,
    "group_size": _OPTIONAL_SIZE,
    "activation": Field(
        str, choices=(*_ACTIVATIONS, *(f"gated-{a}" for a in _ACTIVATIONS))
    ),
    "dropout": _FLOAT,
    "expert_dropout": _FLOAT._replace(optional=True),
    "layer_norm_epsilon": _FLOAT,
    "relative_attention_num_buckets": Field(int, 1),
    "relative_attention_max_distance": Field(int, 1),
    "tie_embedding_weights": Field(bool),
    "init_scale": _FLOAT,
    "trainable": Field(bool),
}
_STEPS = ("encoder_sparse_step", "decoder_sparse_step")
_ROUTER_NAMES = ("router", "decoder_router")
ROUTER = {
    "num_experts": _OPTIONAL_SIZE,
    "exploration": Field(str, choices=EXPLORATIONS),
    "jitter": _FLOAT,
    "input_dropout": _FLOAT,
    "temperature": _FLOAT,
    "batch_prioritized": Field(bool),
    "load_balancing_loss_weight": _FLOAT,
    "z_loss_weight": _FLOAT,
    "importance_loss_weight": _FLOAT,
    "init_scale": _FLOAT,
    "seed": Field(int, optional=True),
    "trainable": Field(bool),
}
_TOP_K = {
    "k": Field(int, 1),
    "second_policy": Field(str, choices=SECOND_POLICIES),
    "second_threshold": _FLOAT,
}
# Router classes and their fields, by registered name. What lies above this
# module enters its own.
ROUTER_FIELDS: dict[str, tuple[type[Router], dict[str, Field]]] = {
    "keras_switch>SwitchRouter": (SwitchRouter, ROUTER),
    "keras_switch>TopKRouter": (TopKRouter, ROUTER | _TOP_K),
    "keras_switch>ExpertChoiceRouter": (ExpertChoiceRouter, ROUTER),
}
_TOKENIZER = {
    "sequence_length": _OPTIONAL_SIZE,
    "add_bos": Field(bool),
    "add_eos": Field(bool),
    "extra_ids": Field(int, 0, 10_000),
    "special_tokens_in_strings": Field(bool),
    "trainable": Field(bool),
}
_STRINGS_OR_IDS = ("int32", "int64", "string")
_PREPROCESSOR = {
    "encoder_sequence_length": _SIZE,
    "decoder_sequence_length": _SIZE,
    "trainable": Field(bool),
}
_SENTENCE = re.compile(r"(\w+) must be (.+); received (?:\w+=)?(.+?)\.?")


def config_of(place: Place, value: Any, cls: type, ours: str) -> Mapping:
    """The config of a serialized object of a class, or of ours.

    Args:
        place: Where it stands.
        value: What came.
        cls: The class that the caller wants.
        ours: Name of this package's class, of which it may be a subclass.

    Raises:
        CheckpointError: if it is another object.
    """
    own = {keras.saving.get_registered_name(cls): cls.__name__}
    return check_object(place, value, {f"keras_switch>{ours}": ours} | own)


def read_backbone(
    place: Place,
    config: Mapping[str, Any],
    cls: Any,
    overrides: Mapping[str, Any],
    routers: Sequence[type[Router]],
) -> dict[str, Any]:
    """The arguments of a backbone, without those to override.

    Args:
        place: Where `config` stands.
        config: As it came.
        cls: `SwitchBackbone` or a subclass, for its defaults.
        overrides: Arguments that take the place of those in the file.
        routers: Classes of the user's own that a router may be.

    Returns:
        Arguments of `cls`; routers are objects, `dtype` is a policy.

    Raises:
        CheckpointError: if they describe no model.
    """
    others = {name: config.get(name) for name in (*_STEPS, *_ROUTER_NAMES)}
    own = {k: v for k, v in config.items() if k not in others}
    arguments = _of_layer(place, own, _BACKBONE)
    dtype = overrides.get("dtype")
    arguments["dtype"] = read_dtype(place / "dtype", config.get("dtype"), dtype)
    for name in others.keys() & config.keys():
        if name in _STEPS:
            _check_step(place / name, config[name])
            arguments[name] = config[name]
        elif name not in overrides:
            value = read_router(place / name, config[name], routers)
            arguments[name] = value
    given = {k: v for k, v in overrides.items() if k in _ROUTER_NAMES}
    try:
        check_arguments(defaults_of(cls) | arguments | given)
    except ValueError as error:
        raise _in_place(place, error) from None
    return arguments


def defaults_of(cls: type) -> dict[str, Any]:
    """The arguments of a constructor that have a default."""
    parameters = inspect.signature(cls.__init__).parameters
    return {
        name: parameter.default
        for name, parameter in parameters.items()
        if parameter.default is not parameter.empty
    }


def _of_layer(place, config, fields):
    """The fields of a layer, checked; its dtype is left out."""
    config = {k: v for k, v in config.items() if k != "dtype"}
    name = config.pop("name", None)
    arguments = check_fields(place, config, fields)
    if name is not None:
        check_name(place / "name", name)
        arguments["name"] = name
    return arguments


def _check_step(place, value):
    items = value if isinstance(value, list) else [value]
    for item in items:
        check_fields(place, {"": item}, {"": Field(int, 0, MAX_LAYERS)})


def _in_place(place, error):
    """What a constructor refused, as an error of the file."""
    match = _SENTENCE.fullmatch(str(error))
    if match is None:
        return place.refuse("arguments of a model", str(error))
    name, expected, received = match.groups()
    return (place / name).refuse(expected, received)


def read_router(
    place: Place, value: Any, routers: Sequence[type[Router]] = ()
) -> Any:
    """A router, new and without weights, or the name of one.

    Args:
        place: Where `value` stands.
        value: The name of a router, `null`, or a serialized router.
        routers: Classes of the user's own that it may be.

    Raises:
        CheckpointError: if it is none of these.
    """
    if value is None or isinstance(value, str):
        choices = Field(str, choices=tuple(ROUTERS), optional=True)
        check_fields(place, {"": value}, {"": choices})
        return value
    known = {name: cls for name, (cls, _) in ROUTER_FIELDS.items()}
    own = {keras.saving.get_registered_name(cls): cls for cls in routers}
    known |= own
    name = value.get("registered_name") if isinstance(value, Mapping) else value
    if not isinstance(name, str) or name not in known:
        raise (place / "registered_name").refuse(
            f"one of {', '.join(known)}",
            name,
            "A router of your own is let in by routers=[YourRouter].",
        )
    names = {name: cls.__name__ for name, cls in known.items()}
    config = check_object(place, value, names)
    config = {k: v for k, v in config.items() if k != "dtype"}
    if name not in own:
        config = _of_layer(place / "config", config, ROUTER_FIELDS[name][1])
    try:
        return known[name](**config)
    except (TypeError, ValueError) as error:
        raise _in_place(place / "config", error) from None


def read_tokenizer(place: Place, config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a tokenizer, without its vocabulary.

    Raises:
        CheckpointError: if a field is not what it may be.
    """
    own = dict(config)
    dtype = own.pop("dtype", None)
    _check_absent(place, own, "proto", None)
    _check_absent(place, own, "config_file", "tokenizer.json")
    arguments = _of_layer(place, own, _TOKENIZER)
    if isinstance(dtype, Mapping):
        config = dtype.get("config")
        dtype = config.get("name") if isinstance(config, Mapping) else dtype
    if dtype is not None:
        field = Field(str, choices=_STRINGS_OR_IDS)
        arguments |= check_fields(place, {"dtype": dtype}, {"dtype": field})
    return arguments


def _check_absent(place, config, name, value):
    """Removes a field that says nothing; it must say just that."""
    received = config.pop(name, value)
    if received != value:
        raise (place / name).refuse(repr(value), received)


def read_preprocessor(
    place: Place, config: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments of a preprocessor, without its tokenizer.

    Raises:
        CheckpointError: if a field is not what it may be.
    """
    own = {k: v for k, v in config.items() if k != "tokenizer"}
    _check_absent(place, own, "config_file", "preprocessor.json")
    return _of_layer(place, own, _PREPROCESSOR)
