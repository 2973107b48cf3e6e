"""Dtype policies: what Keras writes is read, nothing else."""

import keras
import pytest

from keras_switch.files import CheckpointError
from keras_switch.models.preset_dtypes import read_dtype
from keras_switch.models.preset_fields import Place

PLACE = Place("a.json", "dtype")
INT8 = keras.dtype_policies.QuantizedDTypePolicy("int8", "float32")


def written(policy):
    return keras.dtype_policies.serialize(policy)


@pytest.mark.parametrize(
    "value",
    [None, "float32", written(keras.DTypePolicy("mixed_bfloat16"))],
)
def test_a_float_policy_is_loaded_in_what_was_asked_for(value):
    assert read_dtype(PLACE, value) is None
    assert read_dtype(PLACE, value, "float16") == "float16"


@pytest.mark.parametrize(
    "policy",
    [
        INT8,
        keras.dtype_policies.QuantizedFloat8DTypePolicy("float8", "float32"),
        keras.dtype_policies.Int4DTypePolicy("int4/32", "float32"),
        keras.dtype_policies.Int4DTypePolicy("int4/-1", "float32"),
    ],
    ids=lambda policy: policy.name,
)
def test_a_quantized_policy_is_part_of_the_model(policy):
    again = read_dtype(PLACE, written(policy))
    assert type(again) is type(policy)
    assert again.get_config() == policy.get_config()
    again = read_dtype(PLACE, written(policy), "bfloat16")
    assert again.get_config()["source_name"] == "bfloat16"


def test_a_map():
    policies = keras.dtype_policies.DTypePolicyMap()
    policies["encoder_layer_0/attention/query"] = INT8
    written_map = written(policies)
    again = read_dtype(PLACE, written_map)
    assert written(again) == written_map
    assert again["encoder_layer_0/attention/query"].quantization_mode == "int8"
    assert again["another"].name == keras.config.dtype_policy().name
    again = read_dtype(PLACE, written_map, "bfloat16")
    assert again["encoder_layer_0/attention/query"].name == (
        "int8_from_bfloat16"
    )
    assert again["another"].name == "bfloat16"


@pytest.mark.parametrize("default", ["bfloat16", keras.DTypePolicy("bfloat16")])
def test_a_map_with_a_default_of_its_own(default):
    policies = keras.dtype_policies.DTypePolicyMap(default)
    value = written(policies)
    if not isinstance(default, str):
        value["config"]["default_policy"] = written(default)
    assert read_dtype(PLACE, value)["another"].name == "bfloat16"


def of(kind, **config):
    return {
        "module": "keras",
        "class_name": kind,
        "config": config,
        "registered_name": None,
    }


def map_of(**policies):
    return of("DTypePolicyMap", default_policy=None, policy_map=policies)


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ("eval", "dtype.name"),
        (32, "dtype"),
        ([], "dtype"),
        (of("Decoy"), "dtype.class_name"),
        (of("GPTQDTypePolicy", mode="gptq/4/-1"), "dtype.class_name"),
        (of("DTypePolicy", name="x"), "dtype.config.name"),
        (of("DTypePolicy") | {"module": "os"}, "dtype.module"),
        (of("DTypePolicy") | {"registered_name": "x"}, "registered_name"),
        (of("Int4DTypePolicy", mode="int4/0"), "dtype.config.mode"),
        (of("Int4DTypePolicy", mode="int4/9999999"), "dtype.config.mode"),
        (of("QuantizedDTypePolicy"), "dtype.config.mode"),
        (of("QuantizedDTypePolicy", mode="int8", x=1), "dtype.config.x"),
        (
            of("QuantizedDTypePolicy", mode="int8", source_name="float16"),
            "dtype.config",
        ),
        (map_of(**{"(a+)+": written(INT8)}), "dtype.config.policy_map"),
        (map_of(a=map_of()), "dtype.config.policy_map.a.class_name"),
        (map_of(a=None), "dtype.config.policy_map.a"),
        (of("DTypePolicyMap"), "dtype.config"),
    ],
)
def test_anything_else_is_refused(value, field):
    with pytest.raises(CheckpointError) as caught:
        read_dtype(PLACE, value)
    assert caught.value.field.endswith(field)
