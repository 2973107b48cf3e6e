"""Random routing alone; with experts it is held to the oracle."""

import numpy as np

import keras_switch
from tests.layers.routing_test import build, call


def test_in_training_every_expert_is_as_likely():
    router = build(keras_switch.RandomRouter())
    tokens = np.ones((2, 4000, 6))
    routes = call(router, tokens, training=True)
    share = np.bincount(routes.expert_index.ravel(), minlength=4) / 8000
    np.testing.assert_allclose(share, 0.25, atol=0.02)
    again = call(router, tokens, training=True)
    same = (again.expert_index == routes.expert_index).mean()
    assert abs(same - 0.25) < 0.03
    assert (routes.gate == 1).all() and not router.losses


def test_in_evaluation_a_token_has_one_expert(rng):
    router = build(keras_switch.RandomRouter())
    tokens = rng.normal(size=(2, 50, 6))
    first, second = (call(router, tokens) for _ in range(2))
    np.testing.assert_array_equal(first.expert_index, second.expert_index)
    assert len(set(first.expert_index.ravel())) == 4
    alone = call(router, tokens[:1, 7:8])
    assert alone.expert_index[0, 0] == first.expert_index[0, 7]


def test_it_learns_nothing():
    router = build(keras_switch.RandomRouter())
    assert not router.trainable_weights
    assert any(w.path.endswith("kernel") for w in router.non_trainable_weights)
