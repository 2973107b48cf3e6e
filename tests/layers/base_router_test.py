"""BASE routing alone; with experts it is held to the oracle."""

import keras
import numpy as np
import pytest

import keras_switch
from tests import bridge
from tests.layers.routing_test import build, call

# Both tokens want expert 0, the first one more so.
TOKENS = np.array([[[4.0, 0.0], [3.0, 1.0]]])


def test_training_balances_and_evaluation_does_not():
    router = build(keras_switch.BaseRouter(), 2, 2, np.eye(2))
    routes = call(router, TOKENS, training=True)
    np.testing.assert_array_equal(routes.expert_index, [[0, 1]])
    gates = 1 / (1 + np.exp([[-4.0, -1.0]]))
    np.testing.assert_allclose(routes.gate, gates, rtol=1e-5)
    routes = call(router, TOKENS, training=False)
    np.testing.assert_array_equal(routes.expert_index, [[0, 0]])
    gates = 1 / (1 + np.exp([[-4.0, -3.0]]))
    np.testing.assert_allclose(routes.gate, gates, rtol=1e-5)


def test_what_it_leaks_in_training_and_not_in_evaluation():
    """A later token changes the expert of an earlier one."""
    router = build(keras_switch.BaseRouter(), 2, 2, np.eye(2))
    later = TOKENS.copy()
    later[0, 1] = [9.0, 0.0]
    for training, leaks in ((True, True), (False, False)):
        first, second = (
            call(router, tokens, training=training).expert_index[0, 0]
            for tokens in (TOKENS, later)
        )
        assert (first != second) == leaks


@pytest.mark.parametrize("tokens", [32, 30])
def test_loads_are_equal_and_padding_is_none(tokens, rng):
    router = build(keras_switch.BaseRouter())
    mask = np.arange(40) < np.array([[tokens], [40]])
    x = rng.normal(size=(2, 40, 6)) + 1
    routes = call(router, x, mask, training=True)
    for row, count in zip(routes.expert_index, (tokens, 40), strict=True):
        load = np.bincount(row, minlength=5)
        assert load[:4].max() - load[:4].min() <= (count % 4 > 0)
        assert load[4] == 40 - count
    at = router.stats.names.index("max_mean_load")
    assert bridge.numpy(router.stats.value)[at] < 1.06
    greedy = call(router, x, mask, training=False).expert_index[1]
    assert np.bincount(greedy, minlength=4).max() > 13


def test_the_kernel_is_orthogonal():
    router = keras_switch.BaseRouter(num_experts=4, seed=3)
    router.build((None, None, 6))
    kernel = bridge.numpy(router.kernel)
    np.testing.assert_allclose(
        kernel.T @ kernel, 0.01 * np.eye(4), rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("compiled", [True, False])
def test_fit_with_lengths_known_at_run_time(compiled, rng):
    layer = keras_switch.SwitchLayer(4, 8, router="base", group_size=64)
    inputs = keras.Input((None, 6))
    model = keras.Model(inputs, layer(inputs))
    torch = keras.backend.backend() == "torch"
    model.compile(
        "sgd",
        "mse",
        run_eagerly=not compiled,
        jit_compile=compiled and not torch,
    )
    before = bridge.numpy(layer.router.kernel).copy()
    for length in (5, 7):
        x = rng.normal(size=(8, length, 6)).astype("float32")
        model.fit(x, x, batch_size=8, verbose=0)
    assert (bridge.numpy(layer.router.kernel) != before).any()
