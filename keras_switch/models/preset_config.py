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

from keras_switch.layers.base_router import BaseRouter
from keras_switch.layers.expert_choice_router import ExpertChoiceRouter
from keras_switch.layers.group_limited_router import (
    GROUP_SCORES,
    GroupLimitedRouter,
)
from keras_switch.layers.hash_router import HashRouter
from keras_switch.layers.loss_free_router import GATES, LossFreeRouter
from keras_switch.layers.no_token_left_behind_router import (
    NoTokenLeftBehindRouter,
)
from keras_switch.layers.noisy_top_k_router import NoisyTopKRouter
from keras_switch.layers.normalization import NORMS
from keras_switch.layers.random_router import RandomRouter
from keras_switch.layers.routers import ROUTERS
from keras_switch.layers.routing import EXPLORATIONS, Router, SwitchRouter
from keras_switch.layers.soft_router import SoftRouter
from keras_switch.layers.top_k_router import SECOND_POLICIES, TopKRouter
from keras_switch.layers.transfer import DISPATCHES
from keras_switch.models.backbone_arguments import POSITIONS, check_arguments
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
_LAYERS = _SIZE._replace(at_most=MAX_LAYERS)
_ACTIVATION = Field(
    str, choices=(*_ACTIVATIONS, *(f"gated-{a}" for a in _ACTIVATIONS))
)
_EVERY_BACKBONE = {
    "vocabulary_size": _SIZE,
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
    "activation": _ACTIVATION,
    "dropout": _FLOAT,
    "expert_dropout": _FLOAT._replace(optional=True),
    "layer_norm_epsilon": _FLOAT,
    "relative_attention_num_buckets": Field(int, 1),
    "relative_attention_max_distance": Field(int, 1),
    "tie_embedding_weights": Field(bool),
    "init_scale": _FLOAT,
    "extra_feed_forward": Field(bool),
    "num_shared_experts": Field(int, 0),
    "expert_blocks": Field(int, 1),
    "rematerialize": Field(bool),
    "trainable": Field(bool),
}
_BACKBONES = {
    "SwitchBackbone": _EVERY_BACKBONE
    | {"num_encoder_layers": _LAYERS, "num_decoder_layers": _LAYERS},
    "SwitchCausalBackbone": _EVERY_BACKBONE
    | {
        "num_layers": _LAYERS,
        "num_key_value_heads": _OPTIONAL_SIZE,
        "expert_intermediate_dim": _OPTIONAL_SIZE,
        "expert_activation": _ACTIVATION._replace(optional=True),
        "use_bias": Field(bool),
        "norm": Field(str, choices=NORMS),
        "position": Field(str, choices=POSITIONS),
        "max_sequence_length": _OPTIONAL_SIZE,
        "rotary_max_wavelength": _FLOAT,
    },
}
_STEPS = ("encoder_sparse_step", "decoder_sparse_step", "sparse_step")
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


_LOSS_FREE = {
    "k": Field(int, 1),
    "gate": Field(str, choices=GATES),
    "update_rate": _FLOAT,
}


def _fields(cls: type[Router], own: dict[str, Field] | None = None) -> tuple:
    """A router class, and those fields of `ROUTER` it has besides its own."""
    names = {*cls.settings, "trainable"}
    return cls, {k: v for k, v in ROUTER.items() if k in names} | (own or {})


# Router classes and their fields, by registered name. What lies above this
# module enters its own.
ROUTER_FIELDS: dict[str, tuple[type[Router], dict[str, Field]]] = {
    "keras_switch>SwitchRouter": _fields(SwitchRouter),
    "keras_switch>TopKRouter": _fields(TopKRouter, _TOP_K),
    "keras_switch>ExpertChoiceRouter": _fields(
        ExpertChoiceRouter, {"max_experts": _OPTIONAL_SIZE}
    ),
    "keras_switch>HashRouter": _fields(
        HashRouter,
        {"vocabulary_size": Field(int, 1), "num_hashes": Field(int, 1)},
    ),
    "keras_switch>RandomRouter": _fields(RandomRouter),
    "keras_switch>NoisyTopKRouter": _fields(
        NoisyTopKRouter, {"k": Field(int, 2), "load_loss_weight": _FLOAT}
    ),
    "keras_switch>NoTokenLeftBehindRouter": _fields(
        NoTokenLeftBehindRouter, {"k": Field(int, 2)}
    ),
    "keras_switch>BaseRouter": _fields(BaseRouter),
    "keras_switch>SoftRouter": _fields(SoftRouter, {"slots": Field(int, 1)}),
    "keras_switch>LossFreeRouter": _fields(LossFreeRouter, _LOSS_FREE),
    "keras_switch>GroupLimitedRouter": _fields(
        GroupLimitedRouter,
        _LOSS_FREE
        | {
            "num_expert_groups": Field(int, 1),
            "group_limit": Field(int, 1),
            "group_score": Field(str, choices=GROUP_SCORES),
            "renormalize": Field(bool),
        },
    ),
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
_PREPROCESSORS = {
    "SwitchSeq2SeqLMPreprocessor": {
        "encoder_sequence_length": _SIZE,
        "decoder_sequence_length": _SIZE,
        "trainable": Field(bool),
    },
    "SwitchCausalLMPreprocessor": {
        "sequence_length": _SIZE,
        "add_start_token": Field(bool),
        "add_end_token": Field(bool),
        "trainable": Field(bool),
    },
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
        cls: A backbone of this library or a subclass, for its defaults.
        overrides: Arguments that take the place of those in the file.
        routers: Classes of the user's own that a router may be.

    Returns:
        Arguments of `cls`; routers are objects, `dtype` is a policy.

    Raises:
        CheckpointError: if they describe no model.
    """
    known = cls.argument_names
    others = [n for n in (*_STEPS, *_ROUTER_NAMES) if n in known]
    own = {k: v for k, v in config.items() if k not in others}
    arguments = _of_layer(place, own, _BACKBONES[cls.preset_name])
    dtype = overrides.get("dtype")
    arguments["dtype"] = read_dtype(place / "dtype", config.get("dtype"), dtype)
    for name in set(others) & config.keys():
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
    place: Place,
    config: Mapping[str, Any],
    name: str = "SwitchSeq2SeqLMPreprocessor",
) -> dict[str, Any]:
    """The arguments of a preprocessor, without its tokenizer.

    Args:
        place: Where `config` stands.
        config: As it came.
        name: The class of this package that it is, or is a subclass of.

    Raises:
        CheckpointError: if a field is not what it may be.
    """
    own = {k: v for k, v in config.items() if k != "tokenizer"}
    _check_absent(place, own, "config_file", "preprocessor.json")
    return _of_layer(place, own, _PREPROCESSORS[name])
