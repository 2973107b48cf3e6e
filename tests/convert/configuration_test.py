import pytest

from keras_switch.convert.configuration import (
    ConfigField,
    read_field,
    refuse_unless,
)
from keras_switch.files import CheckpointError

SIZE = ConfigField(int, 7, 1)


def test_a_field_or_its_default():
    assert read_field("config.json", {"size": 3}, "size", SIZE) == 3
    assert read_field("config.json", {}, "size", SIZE) == 7
    rate = ConfigField(float, 0.1, 0)
    assert read_field("config.json", {"rate": 1}, "rate", rate) == 1


@pytest.mark.parametrize("value", [0, 2**40, 1.5, True, "3", None, [1]])
def test_what_a_field_may_not_be(value):
    with pytest.raises(CheckpointError) as caught:
        read_field("config.json", {"size": value}, "size", SIZE)
    assert caught.value.field == "size"


def test_refusals_say_what_was_wanted():
    refuse_unless(True, "x", "y", "z")
    with pytest.raises(ValueError, match="x must be y for .*; received z."):
        refuse_unless(False, "x", "y", "z")
