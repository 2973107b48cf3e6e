"""One tensor for all rows: values and gradients of broadcasting."""

import numpy as np
import pytest
from keras import ops

from keras_switch.ops.shared_add import shared_add
from tests import bridge


@pytest.mark.parametrize("rows", [1, 3])
def test_values_and_gradients(rng, gradients, rows):
    x, shared, weight = (
        rng.standard_normal((n, 2, 4)).astype("float32") for n in (3, rows, 3)
    )
    y = shared_add(*map(ops.convert_to_tensor, (x, shared)))
    np.testing.assert_array_equal(bridge.numpy(y), x + shared)
    upstream = ops.convert_to_tensor(weight)
    _, (dx, dshared), _ = gradients(
        lambda x, shared: ops.sum(shared_add(x, shared) * upstream),
        [x, shared],
    )
    np.testing.assert_array_equal(dx, weight)
    if rows == 1:
        weight = weight.sum(0, keepdims=True)
    np.testing.assert_allclose(dshared, weight, rtol=1e-6, atol=1e-6)
