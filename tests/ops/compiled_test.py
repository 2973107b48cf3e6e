"""A compiled function is the function."""

import keras
import numpy as np
from keras import ops

from keras_switch.ops.compiled import compiled
from tests import bridge

CALLS = []


@compiled("power", "kind")
def scaled(x, power, kind):
    """Doubles."""
    CALLS.append(kind)
    return 2.0 * x**power if kind == "double" else x


def test_values_and_name():
    x = ops.convert_to_tensor([1.0, 3.0])
    got = bridge.numpy(scaled(x, 2, "double"))
    np.testing.assert_array_equal(got, [2.0, 18.0])
    np.testing.assert_array_equal(bridge.numpy(scaled(x, 2, "same")), x)
    assert scaled.__name__ == "scaled" and scaled.__doc__ == "Doubles."


def test_jax_traces_once_for_a_shape():
    CALLS.clear()
    for _ in range(3):
        scaled(ops.ones((5,)), 2, "double")
    scaled(ops.ones((6,)), 2, "double")
    on_jax = keras.backend.backend() == "jax"
    assert len(CALLS) == (2 if on_jax else 4)


def test_gradient(gradients):
    _, (grad,), _ = gradients(
        lambda x: ops.sum(scaled(x, 2, "double")), [[1.0, 3.0]]
    )
    np.testing.assert_allclose(grad, [4.0, 12.0])
