import numpy as np
import pytest
from keras import ops

from keras_switch.layers.grouping import group, ungroup
from tests import reference


@pytest.mark.parametrize("group_size", [None, 1, 3, 4, 12, 50])
def test_groups_hold_the_batch_in_order_and_give_it_back(group_size, rng):
    x = rng.normal(size=(3, 4, 2)).astype("float32")
    mask = np.arange(12).reshape(3, 4) + 1
    tokens = ops.convert_to_numpy(group(x, x, group_size))
    ids = ops.convert_to_numpy(group(mask, x, group_size))
    wanted, real = reference.group(x, mask, group_size)
    np.testing.assert_array_equal(tokens, wanted.astype("float32"))
    # What fills the last group up is no token.
    np.testing.assert_array_equal(ids != 0, real)
    again = ops.convert_to_numpy(ungroup(tokens, x, group_size))
    np.testing.assert_array_equal(again, x)
