"""Recording a value from inside a call, traced or not."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_switch.ops.state import record
from tests import bridge


class Counter(keras.layers.Layer):
    """Keeps the sum of its last input."""

    def build(self, _):
        self.last = self.add_weight(
            shape=(), initializer="zeros", trainable=False
        )

    def call(self, x):
        record(self.last, ops.sum(x))
        return x


def test_eager():
    layer = Counter()
    layer(np.ones((2, 3), "float32"))
    assert float(bridge.numpy(layer.last)) == 6


@pytest.mark.parametrize("jit_compile", [False, True])
def test_in_a_compiled_model(jit_compile):
    if jit_compile and keras.backend.backend() == "torch":
        pytest.skip("Keras on torch compiles with a C++ compiler at run time")
    layer = Counter()
    model = keras.Sequential([keras.Input((3,)), layer, keras.layers.Dense(1)])
    model.compile("sgd", "mse", jit_compile=jit_compile)
    model.fit(np.ones((4, 3)), np.ones((4, 1)), batch_size=4, verbose=0)
    assert float(bridge.numpy(layer.last)) == 12


def test_a_plain_jit_leaves_no_tracer():
    """JAX only: the value would outlive its trace."""
    if keras.backend.backend() != "jax":
        pytest.skip("only JAX has tracers")
    import jax

    layer = Counter()
    layer.build((2, 3))
    jax.jit(layer)(np.ones((2, 3), "float32"))
    assert float(bridge.numpy(layer.last)) == 0
