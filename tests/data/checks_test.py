import numpy as np
import pytest

from keras_switch.data.checks import check_integer


@pytest.mark.parametrize("value", [1, 7, np.int64(3), np.uint16(1)])
def test_integers_pass(value):
    check_integer("size", value, 1)


@pytest.mark.parametrize("value", [0, -1, 1.0, 2.5, "3", None, True])
def test_everything_else_is_refused_by_name(value):
    with pytest.raises(ValueError, match="size must be an integer of at least"):
        check_integer("size", value, 1)
