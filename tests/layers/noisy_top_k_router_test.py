"""Noisy top-k routing alone; with experts it is held to the oracle."""

import numpy as np
import pytest

import keras_switch
from tests import bridge
from tests.layers.routing_test import build, call


def router(kernel, noise_kernel, **kwargs):
    experts = len(kernel[0])
    made = build(
        keras_switch.NoisyTopKRouter(**kwargs), len(kernel), experts, kernel
    )
    made.noise_kernel.assign(np.asarray(noise_kernel, "float32"))
    return made


def test_both_kernels_start_at_zero():
    made = keras_switch.NoisyTopKRouter(4)
    made.build((None, None, 6))
    for weight in (made.kernel, made.noise_kernel):
        assert (bridge.numpy(weight) == 0).all() and weight.trainable
    routes = call(made, np.ones((1, 8000, 6)), training=True)
    share = np.bincount(routes.expert_index.ravel(), minlength=4) / 16000
    np.testing.assert_allclose(share, 0.25, atol=0.02)


def test_the_noise_is_normal_and_softplus_wide():
    """Of two experts it can be read from the odds of the gates."""
    made = router([[2.0, 0.0, -99.0]], [[3.0, -40.0, -40.0]], k=2)
    routes = call(made, np.ones((2, 4000, 1)), training=True)
    gate = routes.gate.reshape(2, 2, 4000)
    gate = np.where(routes.expert_index.reshape(2, 2, 4000) == 0, gate, 0)
    p = gate.sum(1)
    odds = np.log(p / (1 - p)).ravel()
    assert odds.mean() == pytest.approx(2.0, abs=0.2)
    assert odds.std() == pytest.approx(np.log1p(np.exp(3.0)), rel=0.05)
    within = np.abs(odds - 2.0) < np.log1p(np.exp(3.0))
    assert within.mean() == pytest.approx(0.683, abs=0.02)


def test_gates_are_a_softmax_over_the_chosen():
    made = router(np.eye(3), np.zeros((3, 3)), k=2)
    tokens = np.log([[[6.0, 3.0, 1.0], [2.0, 1.0, 7.0]]])
    routes = call(made, tokens)
    np.testing.assert_array_equal(routes.expert_index, [[0, 2, 1, 0]])
    np.testing.assert_allclose(
        routes.gate, [[6 / 9, 7 / 9, 3 / 9, 2 / 9]], rtol=1e-5
    )


def test_losses_are_the_papers(rng):
    assert keras_switch.NoisyTopKRouter().importance_loss_weight == 0.1
    assert keras_switch.NoisyTopKRouter().load_loss_weight == 0.1
    made = router(np.eye(3), np.zeros((3, 3)), k=2)
    call(made, rng.normal(size=(2, 9, 3)), training=True)
    assert len(made.losses) == 2
    call(made, rng.normal(size=(2, 9, 3)), training=False)
    assert not made.losses


@pytest.mark.parametrize(
    "kwargs,name",
    [
        ({"k": 1}, "k"),
        ({"k": 4, "num_experts": 4}, "k"),
        ({"load_loss_weight": -0.1}, "load_loss_weight"),
    ],
)
def test_arguments_it_refuses(kwargs, name):
    with pytest.raises(ValueError, match=f"^{name} must be"):
        keras_switch.NoisyTopKRouter(**kwargs)
