"""The top-k router, by hand; its numbers at random are held to the oracle in
routing_test.py."""

import numpy as np
import pytest

import keras_switch
from tests.layers.routing_test import build, call, quiet


def test_top_k_by_hand():
    """First choices of all tokens queue before any second choice."""
    router = build(quiet(keras_switch.TopKRouter, k=2), 3, 3, np.eye(3))
    tokens = np.log([[[6.0, 3.0, 1.0], [2.0, 1.0, 7.0], [1.0, 5.0, 4.0]]])
    routes = call(router, tokens)
    np.testing.assert_array_equal(routes.expert_index, [[0, 2, 1, 1, 0, 2]])
    np.testing.assert_array_equal(routes.slot_index, [[0, 0, 0, 1, 1, 1]])
    np.testing.assert_array_equal(routes.token_index, [[0, 1, 2, 0, 1, 2]])
    np.testing.assert_allclose(
        routes.gate,
        [[6 / 9, 7 / 9, 5 / 9, 3 / 9, 2 / 9, 4 / 9]],
        rtol=1e-5,
    )


@pytest.mark.parametrize("k", [1, 2, 3])
def test_batch_prioritized_ranks_by_the_first_probability(k):
    """Not by its gate: of two, .40 and .20 make the larger one, 2/3."""
    router = quiet(keras_switch.TopKRouter, k=k, batch_prioritized=True)
    router = build(router, 4, 4, np.eye(4))
    # The surer token comes second, so that its place does not help it.
    tokens = np.log([[[0.40, 0.20, 0.20, 0.20], [0.60, 0.35, 0.03, 0.02]]])
    routes = call(router, tokens)
    np.testing.assert_array_equal(routes.slot_index[:, :2], [[1, 0]])


@pytest.mark.parametrize("k", [2, 3])
def test_random_policy_keeps_in_proportion(k):
    """min(1, gate / threshold) in training, always in evaluation."""
    router = quiet(keras_switch.TopKRouter, k=k, second_policy="random")
    router = build(router, 3, 3, np.eye(3))
    tokens = np.tile(np.log([16.0, 3.0, 1.0]), (2, 4000, 1))
    total = 19 if k == 2 else 20
    routes = call(router, tokens, training=True)
    kept = (routes.expert_index < 3).reshape(2, k, 4000).mean((0, 2))
    wanted = [1, 3 / total / 0.2, 1 / total / 0.2][:k]
    np.testing.assert_allclose(kept, wanted, atol=0.03)
    gates = routes.gate.reshape(2, k, 4000)[:, 0]
    np.testing.assert_allclose(gates, 16 / total, rtol=1e-5)
    routes = call(router, tokens, training=False)
    assert (routes.expert_index < 3).all()


def test_random_policy_always_keeps_a_gate_over_the_threshold():
    router = quiet(keras_switch.TopKRouter, k=2, second_policy="random")
    router = build(router, 2, 2, np.eye(2))
    tokens = np.tile(np.log([3.0, 1.0]), (1, 2000, 1))
    routes = call(router, tokens, training=True)
    assert (routes.expert_index < 2).all()


def test_a_refused_choice_takes_no_slot():
    router = quiet(
        keras_switch.TopKRouter,
        k=2,
        second_policy="threshold",
        second_threshold=0.2,
    )
    router = build(router, 2, 2, np.eye(2))
    tokens = np.log([[[9.0, 1.0], [2.0, 1.0], [1.0, 9.0]]])
    routes = call(router, tokens)
    np.testing.assert_array_equal(routes.expert_index, [[0, 0, 1, 2, 1, 2]])
    assert routes.slot_index[0, 4] == 1
    np.testing.assert_allclose(routes.gate[0, :3], [0.9, 2 / 3, 0.9], rtol=1e-5)


@pytest.mark.parametrize(
    "kwargs,name",
    [
        ({"k": 0}, "k must"),
        ({"k": -1}, "k must"),
        ({"k": 1.5}, "k must"),
        ({"k": True}, "k must"),
        ({"k": 9, "num_experts": 8}, "k must be at most num_experts"),
        ({"second_policy": "maybe"}, "second_policy"),
        ({"second_threshold": 0.0}, "second_threshold"),
        ({"second_threshold": -0.2}, "second_threshold"),
    ],
)
def test_top_k_refuses(kwargs, name):
    with pytest.raises((ValueError, TypeError), match=name):
        keras_switch.TopKRouter(**kwargs)
