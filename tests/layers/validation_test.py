"""Checks at the door: what passes, and what the error says."""

import numpy as np
import pytest

from keras_switch.layers.validation import (
    check_choice,
    check_flag,
    check_number,
)


@pytest.mark.parametrize(
    "value,limits",
    [
        (1, {"whole": True, "at_least": 1}),
        (np.int64(3), {"whole": True, "at_least": 1}),
        (0.5, {"above": 0, "below": 1}),
        (0, {"at_least": 0}),
        (np.float32(0.25), {"above": 0}),
    ],
)
def test_accepts(value, limits):
    checked = check_number("size", value, **limits)
    assert checked == value
    assert type(checked) in (int, float)


def test_what_is_optional_may_be_missing():
    assert check_number("size", None, at_least=1, optional=True) is None
    with pytest.raises(ValueError, match="^size must be a"):
        check_number("size", 0, at_least=1, optional=True)


@pytest.mark.parametrize(
    "value,limits",
    [
        (0, {"whole": True, "at_least": 1}),
        (1.0, {"whole": True}),
        (True, {"whole": True}),
        (True, {}),
        ("3", {}),
        (None, {}),
        ([3], {}),
        (float("nan"), {}),
        (float("inf"), {}),
        (0.0, {"above": 0}),
        (1.0, {"below": 1}),
        (-0.1, {"at_least": 0}),
    ],
)
def test_refuses_and_names(value, limits):
    with pytest.raises(ValueError, match="^size must be a") as error:
        check_number("size", value, **limits)
    assert f"received size={value!r}" in str(error.value)


def test_says_the_whole_range():
    with pytest.raises(ValueError, match="at least 0 and below 1; received"):
        check_number("rate", 2, at_least=0, below=1)


def test_flags():
    check_flag("tied", False)
    with pytest.raises(ValueError, match="tied must be True or False; rec.*1"):
        check_flag("tied", 1)


def test_choices():
    check_choice("kind", "b", ("a", "b"))
    with pytest.raises(
        ValueError, match="^kind must be one of 'a', 'b'; received kind='c'"
    ):
        check_choice("kind", "c", ("a", "b"))
