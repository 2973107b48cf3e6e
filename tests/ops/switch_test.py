import keras
import numpy as np
import pytest
from keras import ops

from keras_switch.ops.switch import switch


def times(factor):
    """A product whose gradient is not its derivative, so that it shows."""

    def call(x, index):
        def forward(x):
            def grad(*args, upstream=None):
                upstream = args[0] if upstream is None else upstream
                return upstream * ops.cast(index, "float32") * 100.0

            return x * factor, grad

        return ops.custom_gradient(forward)(x)

    return call


X, INDEX = np.arange(3, dtype="float32"), np.array([1, 2, 3], "int32")


@pytest.mark.parametrize("chosen", (0, 1))
def test_it_calls_the_branch(chosen):
    branches = [times(2.0), times(3.0)]
    y = switch(ops.convert_to_tensor(chosen, "int32"), branches, X, INDEX)
    np.testing.assert_allclose(ops.convert_to_numpy(y), X * (2 + chosen))


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="JAX's gradient")
def test_gradients_are_those_of_the_branch():
    import jax

    def loss(x, index, chosen):
        branches = [times(2.0), lambda x, index: 5.0 * x]
        return ops.sum(switch(chosen, branches, x, index))

    index = ops.convert_to_tensor(INDEX)
    for compiled in (loss, jax.jit(loss)):
        first, second = (
            jax.grad(compiled)(ops.convert_to_tensor(X), index, i)
            for i in (np.int32(0), np.int32(1))
        )
        np.testing.assert_allclose(first, 100.0 * INDEX)
        np.testing.assert_allclose(second, [5.0, 5.0, 5.0])
