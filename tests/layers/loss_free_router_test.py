"""Loss-free balancing alone; with experts it is held to the oracle."""

import keras
import numpy as np
import pytest

import keras_switch
from tests import bridge
from tests.layers.routing_test import build, call


def router(kernel, bias=None, **kwargs):
    experts = len(kernel[0])
    made = build(
        keras_switch.LossFreeRouter(**kwargs), len(kernel), experts, kernel
    )
    if bias is not None:
        made.bias.assign(np.asarray(bias, "float32"))
    return made


def test_the_bias_chooses_and_does_not_weigh():
    made = router(np.eye(3), [0.0, 0.3, -0.5], k=1)
    tokens = np.log([[[4.0, 1.0, 1.0], [1.0, 4.0, 9.0], [1.5, 1.0, 0.1]]])
    routes = call(made, tokens)
    # Gates .8 .5 .5, then .5 .8 .9, then .6 .5 .09.
    np.testing.assert_array_equal(routes.expert_index, [[0, 1, 1]])
    np.testing.assert_allclose(routes.gate, [[0.8, 0.8, 0.5]], rtol=1e-5)


def test_gates_are_not_renormalised():
    made = router(np.eye(3), k=2, gate="softmax")
    routes = call(made, np.log([[[6.0, 3.0, 1.0]]]))
    np.testing.assert_allclose(routes.gate, [[0.6, 0.3]], rtol=1e-5)


def test_a_very_low_bias_still_leaves_an_order():
    made = router(np.eye(3), [-9.0, -20.0, -7.0], k=3)
    routes = call(made, np.zeros((1, 1, 3)))
    np.testing.assert_array_equal(routes.expert_index, [[2, 0, 1]])


def test_the_bias_moves_by_the_sign_after_the_batch():
    made = router(np.eye(3), k=1, update_rate=0.125)
    tokens = np.array([[[9.0, 0, 0], [9, 0, 0], [9, 0, 0], [0, 9, 0]]])
    mask = np.array([[True, True, True, True]])
    call(made, tokens, mask, training=False)
    np.testing.assert_array_equal(bridge.numpy(made.bias), [0, 0, 0])
    # Loads 3, 1 and 0, of mean 4 / 3.
    routes = call(made, tokens, mask, training=True)
    np.testing.assert_array_equal(routes.expert_index, [[0, 0, 0, 1]])
    np.testing.assert_array_equal(
        bridge.numpy(made.bias), [-0.125, 0.125, 0.125]
    )
    # Without two of the three, 1, 1 and 0: padding is no load.
    mask[0, :2] = False
    call(made, tokens, mask, training=True)
    np.testing.assert_array_equal(bridge.numpy(made.bias), [-0.25, 0, 0.25])
    call(made, tokens, np.zeros_like(mask), training=True)
    np.testing.assert_array_equal(bridge.numpy(made.bias), [-0.25, 0, 0.25])


def test_an_even_load_moves_nothing():
    made = router(np.eye(2), k=1, update_rate=0.25)
    call(made, np.array([[[9.0, 0], [0, 9]]]), training=True)
    np.testing.assert_array_equal(bridge.numpy(made.bias), [0, 0])


def test_the_violation_falls_without_a_loss(rng):
    """Tokens that nearly all want one expert are spread by the bias alone."""
    kernel = rng.normal(size=(6, 4))
    kernel[:, 1] += 1.0
    made = router(kernel, k=1, update_rate=0.02)
    at = made.stats.names.index("max_mean_load")
    violations = []
    for _ in range(60):
        tokens = rng.normal(size=(4, 100, 6)) + 0.5
        call(made, tokens, training=True)
        assert not made.losses
        violations.append(float(bridge.numpy(made.stats.value)[at]) - 1)
    assert violations[0] > 1.5
    assert max(violations[-10:]) < 0.3


@pytest.mark.parametrize("compiled", [True, False])
def test_fit_moves_the_bias(compiled, rng):
    layer = keras_switch.SwitchLayer(
        4, 8, router=keras_switch.LossFreeRouter(k=1, update_rate=0.5)
    )
    inputs = keras.Input((5, 6))
    model = keras.Model(inputs, layer(inputs))
    torch = keras.backend.backend() == "torch"
    model.compile(
        "sgd",
        "mse",
        run_eagerly=not compiled,
        jit_compile=compiled and not torch,
    )
    layer.router.kernel.assign(np.eye(6)[:, :4] * 9)
    x = np.zeros((8, 5, 6), "float32")
    x[..., 2] = 1.0
    model.fit(x, x, batch_size=8, verbose=0)
    wanted = [0.5, 0.5, -0.5, 0.5]
    np.testing.assert_array_equal(bridge.numpy(layer.router.bias), wanted)
    model.evaluate(x, x, verbose=0)
    np.testing.assert_array_equal(bridge.numpy(layer.router.bias), wanted)


def test_a_frozen_router_learns_nothing(rng):
    made = router(rng.normal(size=(6, 4)), update_rate=0.5)
    made.trainable = False
    call(made, rng.normal(size=(1, 8, 6)), training=True)
    np.testing.assert_array_equal(bridge.numpy(made.bias), 0)


def test_a_batch_is_routed_by_those_before_it(rng):
    """Later tokens of a batch change no route of earlier ones."""
    made = router(rng.normal(size=(6, 4)), k=2, update_rate=0.5)
    tokens = rng.normal(size=(1, 8, 6))
    first = call(made, tokens, training=True)
    made.bias.assign(np.zeros(4))
    tokens[:, 4:] = rng.normal(size=(1, 4, 6)) + 3
    second = call(made, tokens, training=True)
    for ours, theirs in zip(first, second, strict=True):
        early = ours.reshape(2, 8)[:, :4], theirs.reshape(2, 8)[:, :4]
        if ours is not first.slot_index:  # queues matter under a capacity only
            np.testing.assert_array_equal(*early)


@pytest.mark.parametrize(
    "kwargs,name",
    [
        ({"k": 0}, "k"),
        ({"k": 5, "num_experts": 4}, "k"),
        ({"gate": "relu"}, "gate"),
        ({"update_rate": -0.1}, "update_rate"),
    ],
)
def test_arguments_it_refuses(kwargs, name):
    with pytest.raises(ValueError, match=f"^{name} must be"):
        keras_switch.LossFreeRouter(**kwargs)
