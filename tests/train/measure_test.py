import types

import keras
import numpy as np
import pytest
from keras import ops

from keras_switch_train import measure


def test_header_names_the_machine_and_the_versions():
    head = measure.header()
    assert head["backend"] == keras.backend.backend()
    assert head["keras"] == keras.__version__
    assert head["cores"] >= 1 and head["device"]
    assert "transformers" not in head
    also = measure.header(["transformers", "numpy"])
    assert also["transformers"][0].isdigit() and also["numpy"] == np.__version__


def test_compiled_function_computes_the_same():
    x = ops.convert_to_tensor(np.arange(6.0).reshape(2, 3))
    got = measure.compiled(lambda t: ops.sum(t * t, axis=1))(x)
    np.testing.assert_allclose(ops.convert_to_numpy(got), [5.0, 50.0])


def test_flops_of_a_matrix_product():
    x = ops.ones((8, 16))
    price = measure.cost(lambda a, b: ops.matmul(a, b), x, ops.ones((16, 32)))
    if keras.backend.backend() != "jax":
        assert price is None
        return
    assert price["flops"] == pytest.approx(2 * 8 * 16 * 32, rel=0.1)
    assert price["temporary_bytes"] >= 0


def test_forward_is_a_function_of_the_weights():
    layer = keras.layers.Dense(3)
    layer.build((2, 4))
    call, (trainable, other) = measure.forward(layer)
    x = ops.ones((2, 4))
    np.testing.assert_allclose(
        ops.convert_to_numpy(call(trainable, other, x)),
        ops.convert_to_numpy(layer(x)),
        rtol=1e-6,
    )
    doubled = [2 * value for value in trainable]
    np.testing.assert_allclose(
        ops.convert_to_numpy(call(doubled, other, x)),
        2 * ops.convert_to_numpy(layer(x)),
        rtol=1e-6,
    )


class Square(keras.layers.Layer):
    """A product and its square, and a count of calls."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 3), name="kernel")
        self.calls = self.add_weight(
            shape=(), initializer="zeros", trainable=False, name="calls"
        )

    def call(self, x, training=False):
        self.calls.assign(self.calls + (10.0 if training else 1.0))
        return ops.square(ops.matmul(x, self.kernel))


def numpy(values):
    return [ops.convert_to_numpy(value) for value in values]


def test_evaluation_is_one_call_that_keeps_its_state(rng):
    layer = Square()
    layer.build((2, 5, 4))
    x = rng.normal(size=(2, 5, 4)).astype("float32")
    run = measure.evaluation(layer, ops.convert_to_tensor(x))
    y, *gradients = run()
    expected = (x @ ops.convert_to_numpy(layer.kernel)) ** 2
    np.testing.assert_allclose(
        ops.convert_to_numpy(y), expected, rtol=1e-4, atol=1e-5
    )
    assert gradients == [None, None]
    assert float(ops.convert_to_numpy(layer.calls.value)) == 1.0


def test_evaluation_gives_the_first_of_several_outputs():
    layer = keras.layers.Lambda(lambda x: (x, 2 * x))
    layer.build((2, 3))
    y = measure.evaluation(layer, ops.ones((2, 3)))()[0]
    np.testing.assert_array_equal(ops.convert_to_numpy(y), np.ones((2, 3)))


def test_training_computes_every_gradient(rng):
    layer = Square()
    layer.build((2, 5, 4))
    x, dy = (rng.normal(size=(2, 5, n)).astype("float32") for n in (4, 3))
    run = measure.training(
        layer, ops.convert_to_tensor(x), ops.convert_to_tensor(dy)
    )
    y, dx, (dkernel,) = run()
    kernel = ops.convert_to_numpy(layer.kernel)
    upstream = 2 * (x @ kernel) * dy
    expected = (
        (x @ kernel) ** 2,
        upstream @ kernel.T,
        np.einsum("btd,btf->df", x, upstream),
    )
    for got, wanted in zip(numpy((y, dx, dkernel)), expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)
    # Nothing is updated but the state.
    assert float(ops.convert_to_numpy(layer.calls.value)) == 10.0
    np.testing.assert_array_equal(ops.convert_to_numpy(layer.kernel), kernel)


def test_interleaved_takes_turns_and_leaves_the_first_two_out(monkeypatch):
    calls = []
    # Two looks at the clock for each call: a takes 1, b takes 2.
    ticks = iter(np.cumsum([0, 100, 0, 100, 0, 50, 0, 50] + [0, 1, 0, 2] * 3))
    clock = types.SimpleNamespace(perf_counter=lambda: next(ticks))
    monkeypatch.setattr(measure, "time", clock)
    times = measure.interleaved(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3
    )
    assert calls == ["a", "b"] * 5
    assert times == {"a": (1, 1), "b": (2, 2)}


def test_memory_is_read_at_a_plausible_rate():
    assert 0.1 < measure.read_bandwidth(megabytes=40, repeats=3) < 10_000
