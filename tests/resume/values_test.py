import json

import keras
import numpy as np
import pytest

from keras_switch.resume.values import decode, encode

VALUES = [
    None,
    True,
    3,
    -2.5,
    "text",
    [1, [2.0, None]],
    {"a": 1, "b": {"c": [1, 2]}},
    {"array": "not one"},
    {},
    float("inf"),
    float("-inf"),
]


@pytest.mark.parametrize("value", VALUES, ids=str)
def test_values_come_back(value):
    arrays = {}
    text = json.dumps(encode(value, arrays, "x"), allow_nan=False)
    assert decode(json.loads(text), arrays) == value
    assert not arrays


def test_nan_comes_back():
    assert np.isnan(decode(encode(float("nan"), {}, "x"), {}))


def test_tuples_come_back_as_lists():
    assert decode(encode((1, (2,)), {}, "x"), {}) == [1, [2]]


@pytest.mark.parametrize(
    "make", [np.asarray, keras.ops.convert_to_tensor, keras.Variable]
)
def test_arrays_come_back_as_copies(make):
    array = np.array([[1.5, 2.0]], "float32")
    arrays = {}
    encoded = encode({"a": [make(array)]}, arrays, "x")
    assert list(arrays) == ["x/a/0"]
    array[:] = 0
    (back,) = decode(encoded, arrays)["a"]
    assert back.dtype == "float32" and back.tolist() == [[1.5, 2.0]]


def test_numbers_of_numpy_keep_their_type():
    arrays = {}
    back = decode(encode(np.float32(0.1), arrays, "x"), arrays)
    assert back.dtype == "float32" and back == np.float32(0.1)


@pytest.mark.parametrize("value", [object(), {1: 2}, [set()], np.array([{}])])
def test_others_are_refused(value):
    with pytest.raises(TypeError, match="x.* must hold numbers"):
        encode(value, {}, "x")
