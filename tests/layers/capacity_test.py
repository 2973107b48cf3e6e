import math
from fractions import Fraction

import numpy as np
import pytest
from keras import ops

from keras_switch.layers.capacity import larger, slots_of, smaller


@pytest.mark.parametrize(
    "tokens,experts,factor,at_least,slots",
    [
        (8, 4, 1.25, 1, 3),
        (8, 4, 1.25, 4, 4),
        (20, 2, 1.1, 1, 11),  # 11.000000000000002 in floats
        (100, 7, 1.4, 1, 20),
        (8, 4, 64.0, 1, 8),  # a token is at most once with an expert
        (2, 4, 1.0, 4, 2),
        (0, 4, 1.0, 4, 0),
    ],
)
def test_by_hand(tokens, experts, factor, at_least, slots):
    got = slots_of(tokens, experts, factor, at_least)
    assert got == slots and isinstance(got, int)
    tensor = ops.convert_to_tensor(np.array([tokens], "int32"))
    got = ops.convert_to_numpy(slots_of(tensor, experts, factor, at_least))
    assert got.tolist() == [slots]


def test_thousandths_are_exact():
    for factor in (0.7, 1.1, 1.2, 2.2, 1.337):
        for tokens in range(1, 300, 7):
            exact = Fraction(str(factor)) * tokens / 6
            wanted = min(tokens, math.ceil(exact))
            assert slots_of(tokens, 6, factor) == wanted


def test_ints_stay_ints():
    assert (smaller(2, 3), larger(2, 3)) == (2, 3)
    two = ops.convert_to_tensor(2, "int32")
    assert int(smaller(two, 3)) == 2 and int(larger(two, 3)) == 3
