"""The router in which experts choose, by hand."""

import numpy as np
import pytest

import keras_switch
from tests.layers.routing_test import build, call, quiet


def test_expert_choice_by_hand():
    router = build(quiet(keras_switch.ExpertChoiceRouter), 2, 2, np.eye(2))
    tokens = np.log([[[3.0, 1.0], [1.0, 1.0], [9.0, 1.0], [1.0, 4.0]]])
    routes = call(router, tokens, capacity=2)
    np.testing.assert_array_equal(routes.expert_index, [[0, 0, 1, 1]])
    np.testing.assert_array_equal(routes.token_index, [[2, 0, 3, 1]])
    np.testing.assert_array_equal(routes.slot_index, [[0, 1, 0, 1]])
    np.testing.assert_allclose(routes.gate, [[0.9, 0.75, 0.8, 0.5]], rtol=1e-5)


def capped(max_experts, tokens, mask=None, capacity=2):
    router = quiet(keras_switch.ExpertChoiceRouter, max_experts=max_experts)
    return call(build(router, 2, 2, np.eye(2)), tokens, mask, capacity)


def test_a_cap_by_hand():
    """Both experts like the first token most; the surer one gets it, and the
    other goes on to its next."""
    tokens = np.log([[[5.0, 5.0], [8.0, 2.0], [7.0, 3.0], [9.5, 0.5]]])
    free = capped(None, tokens)
    np.testing.assert_array_equal(free.token_index, [[3, 1, 0, 2]])
    tokens = np.log([[[6.0, 4.0], [9.0, 1.0], [8.0, 2.0], [7.0, 3.0]]])
    free, one = capped(None, tokens), capped(1, tokens)
    np.testing.assert_array_equal(free.token_index, [[1, 2, 0, 3]])
    np.testing.assert_array_equal(one.token_index, [[1, 2, 0, 3]])
    tokens = np.log([[[9.0, 1.0], [8.0, 2.0], [7.0, 3.0]]])
    free, one = capped(None, tokens), capped(1, tokens)
    np.testing.assert_array_equal(free.token_index, [[0, 1, 2, 1]])
    np.testing.assert_array_equal(one.token_index[0, :3], [0, 1, 2])
    np.testing.assert_array_equal(one.expert_index, [[0, 0, 1, 2]])


@pytest.mark.parametrize("max_experts", [1, 2, 3])
def test_no_token_has_more_than_its_cap(max_experts, rng):
    tokens = rng.normal(size=(3, 20, 6)) + 1
    mask = np.arange(20) < np.array([[20], [13], [4]])
    most = []
    for cap in (None, max_experts):
        router = quiet(keras_switch.ExpertChoiceRouter, max_experts=cap)
        routes = call(build(router), tokens, mask, capacity=10)
        used = routes.expert_index < 4
        counts = [
            np.bincount(row[kept], minlength=20)
            for row, kept in zip(routes.token_index, used, strict=True)
        ]
        assert (np.array(counts)[~mask] == 0).all()
        most.append(np.max(counts))
    assert most[0] == 4 and most[1] == max_experts


@pytest.mark.parametrize("value", [0, 1.5, -1])
def test_what_is_no_cap(value):
    with pytest.raises(ValueError, match="^max_experts must be"):
        keras_switch.ExpertChoiceRouter(max_experts=value)
