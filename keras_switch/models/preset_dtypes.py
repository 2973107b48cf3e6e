"""Dtype policies that a preset may name."""

import re
from collections.abc import Mapping
from typing import Any

import keras

from keras_switch.models.preset_fields import Field, Place, check_fields

POLICIES = (
    "float32",
    "float16",
    "bfloat16",
    "float64",
    "mixed_float16",
    "mixed_bfloat16",
)
_NAME = Field(str, choices=POLICIES, optional=True)
_MODE = Field(str, required=True)
_KINDS = {
    "DTypePolicy": (keras.DTypePolicy, {"name": _NAME}),
    "QuantizedDTypePolicy": (
        keras.dtype_policies.QuantizedDTypePolicy,
        {
            "mode": _MODE._replace(choices=("int8", "int4")),
            "source_name": _NAME,
        },
    ),
    "QuantizedFloat8DTypePolicy": (
        keras.dtype_policies.QuantizedFloat8DTypePolicy,
        {
            "mode": _MODE._replace(choices=("float8",)),
            "source_name": _NAME,
            "amax_history_length": Field(int, 1, 1 << 16),
        },
    ),
    "Int4DTypePolicy": (
        keras.dtype_policies.Int4DTypePolicy,
        {"mode": _MODE, "source_name": _NAME},
    ),
}
_INT4 = re.compile(r"int4/(-1|[1-9]\d{0,5})")
# Keras takes the keys of a map for regular expressions. The path of a layer
# is one that matches itself; anything else could match for hours.
_PATH = re.compile(r"[\w/.\- ]{1,500}")
_MAX_LAYERS = 1 << 16


def read_dtype(place: Place, value: Any, default: Any = None) -> Any:
    """The dtype policy to load a model in.

    A float policy is what the model was saved in, and says nothing of how it
    is to be loaded: that is the default policy. A quantized one is part of the
    model.

    Args:
        place: Where `value` stands.
        value: `null`, the name of a policy, or a policy as Keras serializes
            it.
        default: The policy that the caller asked for; also that from which
            layers are quantized.

    Returns:
        A policy, or `None` for the default one.

    Raises:
        CheckpointError: if it is no policy, or one that no model here has.
    """
    if value is None or isinstance(value, str):
        check_fields(place, {"name": value}, {"name": _NAME})
        return default
    kind, config = _parts(place, value)
    if kind == "DTypePolicyMap":
        return _read_map(place / "config", config, default)
    policy = _make(place / "config", kind, config, default)
    return policy if policy.quantization_mode else default


def _parts(place, value):
    keys = {"module", "class_name", "config", "registered_name"}
    if not isinstance(value, Mapping) or set(value) != keys:
        raise place.refuse("a dtype policy, as Keras writes it", value)
    kind = value["class_name"]
    known = (*_KINDS, "DTypePolicyMap")
    if not isinstance(kind, str) or kind not in known:
        raise (place / "class_name").refuse(f"one of {', '.join(known)}", kind)
    if value["module"] not in ("keras", "keras.dtype_policies"):
        raise (place / "module").refuse("keras", value["module"])
    if value["registered_name"] not in (None, kind):
        raise (place / "registered_name").refuse(
            "null", value["registered_name"]
        )
    return kind, value["config"]


def _read_map(place, config, default):
    if not isinstance(config, Mapping) or set(config) != {
        "default_policy",
        "policy_map",
    }:
        raise place.refuse("default_policy and policy_map", config)
    policies = config["policy_map"]
    if not isinstance(policies, Mapping) or len(policies) > _MAX_LAYERS:
        raise (place / "policy_map").refuse("policies by layer", policies)
    first = _read_first(place / "default_policy", config["default_policy"])
    made = keras.dtype_policies.DTypePolicyMap(default or first)
    for path, value in policies.items():
        if not _PATH.fullmatch(path):
            raise (place / "policy_map").refuse("by paths of layers", path)
        made[path] = _read_one(place / "policy_map" / path, value, default)
    return made


def _read_first(place, value):
    """The policy of the layers that a map does not name."""
    if value is None or isinstance(value, str):
        check_fields(place, {"name": value}, {"name": _NAME})
        return value
    return _read_one(place, value, None)


def _read_one(place, value, default):
    kind, config = _parts(place, value)
    if kind == "DTypePolicyMap":
        raise (place / "class_name").refuse("the policy of a layer", kind)
    return _make(place / "config", kind, config, default)


def _make(place, kind, config, default):
    policy, fields = _KINDS[kind]
    config = check_fields(place, config, fields)
    if kind == "Int4DTypePolicy" and not _INT4.fullmatch(config["mode"]):
        raise (place / "mode").refuse("int4/<block size>", config["mode"])
    if default is not None and "source_name" in fields:
        config["source_name"] = keras.dtype_policies.get(default).name
    try:
        return policy(**config)
    except ValueError as error:
        raise place.refuse("a policy that Keras has", str(error)) from None
