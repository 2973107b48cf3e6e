"""Overflow that goes on, by hand; at random it is held to the oracle."""

import numpy as np
import pytest

import keras_switch
from tests.layers.routing_test import build, call, quiet

# Four tokens that all want expert 0; what they want next differs.
TOKENS = np.log(
    [
        [
            [6.0, 3.0, 1.0],
            [6.0, 1.0, 3.0],
            [6.0, 3.0, 1.0],
            [6.0, 3.0, 1.0],
        ]
    ]
)


def routes(k, capacity, tokens=TOKENS, mask=None, **kwargs):
    router = quiet(keras_switch.NoTokenLeftBehindRouter, k=k, **kwargs)
    router = build(router, 3, 3, np.eye(3))
    return call(router, tokens, mask, capacity=capacity)


def test_overflow_goes_to_the_next_choice():
    found = routes(k=2, capacity=1)
    np.testing.assert_array_equal(found.expert_index, [[0, 2, 1, 0]])
    np.testing.assert_array_equal(found.slot_index, [[0, 0, 0, 1]])
    np.testing.assert_allclose(found.gate, [[0.6, 0.3, 0.3, 0.6]], rtol=1e-5)


def test_the_third_choice():
    tokens = TOKENS[:, [0, 2, 3]]
    found = routes(k=3, capacity=1, tokens=tokens)
    np.testing.assert_array_equal(found.expert_index, [[0, 1, 2]])
    np.testing.assert_allclose(found.gate, [[0.6, 0.3, 0.1]], rtol=1e-5)
    # More ranks than experts are as many as there are experts.
    again = routes(k=9, capacity=1, tokens=tokens)
    np.testing.assert_array_equal(again.expert_index, found.expert_index)


def test_first_choices_come_before_second_ones():
    """The last token's first choice is there before the second token's
    second one, so that the second token is dropped."""
    tokens = np.log([[[6.0, 3.0], [6.0, 3.0], [1.0, 9.0]]])
    router = quiet(keras_switch.NoTokenLeftBehindRouter)
    found = call(build(router, 2, 2, np.eye(2)), tokens, capacity=1)
    np.testing.assert_array_equal(found.expert_index, [[0, 0, 1]])
    np.testing.assert_array_equal(found.slot_index, [[0, 1, 0]])


def test_padding_asks_for_nothing():
    mask = np.array([[False, True, False, True]])
    found = routes(k=2, capacity=1, mask=mask)
    np.testing.assert_array_equal(found.expert_index, [[3, 0, 3, 1]])
    np.testing.assert_array_equal(found.slot_index[mask], [0, 0])


def test_without_a_capacity_it_is_top_1(rng):
    tokens = rng.normal(size=(2, 9, 3))
    switch = build(quiet(keras_switch.SwitchRouter), 3, 3, np.eye(3))
    for ours, theirs in zip(
        routes(2, None, tokens), call(switch, tokens), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_with_room_for_all_and_all_ranks_nothing_is_dropped(rng):
    tokens = rng.normal(size=(5, 12, 3)) + [3.0, 0, 0]
    found = routes(3, 4, tokens)
    assert (found.slot_index < 4).all()
    for group in found.expert_index:
        assert (np.bincount(group) == 4).all()
    switch = build(quiet(keras_switch.SwitchRouter), 3, 3, np.eye(3))
    assert (call(switch, tokens, capacity=4).slot_index >= 4).any()


@pytest.mark.parametrize("kwargs", [{"k": 1}, {"k": 2.5}])
def test_arguments_it_refuses(kwargs):
    with pytest.raises(ValueError, match="^k must be"):
        keras_switch.NoTokenLeftBehindRouter(**kwargs)
