"""Balanced assignment against the exact solution of the linear problem."""

import numpy as np
import pytest
from keras import ops
from scipy.optimize import linear_sum_assignment

from keras_switch.ops import assignment


def assign(scores, valid=None, **kwargs):
    scores = np.asarray(scores, "float32")
    valid = np.ones(scores.shape[:2], bool) if valid is None else valid
    found = assignment.balanced_assignment(
        ops.convert_to_tensor(scores), ops.convert_to_tensor(valid), **kwargs
    )
    return ops.convert_to_numpy(found)


def best(scores, valid):
    """The exact solution of one group: int [S]."""
    experts = scores.shape[1]
    tokens = np.flatnonzero(valid)
    quota = [
        len(tokens) // experts + (e < len(tokens) % experts)
        for e in range(experts)
    ]
    places = np.repeat(np.arange(experts), quota)
    rows, columns = linear_sum_assignment(-scores[tokens][:, places])
    result = np.full(len(scores), experts)
    result[tokens[rows]] = places[columns]
    return result


def total(scores, found):
    tokens = np.flatnonzero(found < scores.shape[1])
    return scores[tokens, found[tokens]].sum()


def test_by_hand():
    """Three tokens want expert 0; the one that loses least goes on."""
    scores = [[[5.0, 1.0], [5.0, 4.0], [5.0, 0.0], [0.0, 3.0]]]
    np.testing.assert_array_equal(assign(scores), [[0, 1, 0, 1]])


@pytest.mark.parametrize("shape", [(3, 8, 4), (2, 64, 8), (2, 7, 3), (1, 5, 8)])
@pytest.mark.parametrize("masked", [True, False])
def test_precise_enough_it_is_the_best(shape, masked, rng):
    scores = rng.normal(size=shape) + 2 * rng.normal(size=(1, 1, shape[2]))
    valid = rng.random(shape[:2]) < (0.6 if masked else 2)
    found = assign(scores, valid, precision=1e-5, max_rounds=20_000)
    for group, mask, ours in zip(scores, valid, found, strict=True):
        np.testing.assert_array_equal(ours, best(group, mask))


@pytest.mark.parametrize("tokens,experts", [(256, 8), (250, 8), (512, 32)])
def test_as_it_is_it_is_balanced_and_nearly_the_best(tokens, experts, rng):
    scores = rng.normal(size=(1, tokens, experts)) + rng.normal(size=experts)
    found = assign(scores)[0]
    load = np.bincount(found, minlength=experts)
    quota = tokens // experts + (np.arange(experts) < tokens % experts)
    np.testing.assert_array_equal(load, quota)
    wanted = total(scores[0], best(scores[0], np.ones(tokens, bool)))
    greedy = scores[0].max(-1).sum()
    assert wanted < 0.97 * greedy  # balance costs something here
    assert total(scores[0], found) > 0.999 * wanted


@pytest.mark.parametrize("rounds", [0, 1, 3])
def test_it_is_balanced_whenever_it_ends(rounds, rng):
    scores = rng.normal(size=(2, 30, 4)) + [9.0, 0, 0, 0]
    found = assign(scores, max_rounds=rounds)
    for group in found:
        np.testing.assert_array_equal(np.bincount(group), [8, 8, 7, 7])


@pytest.mark.parametrize("value", [0.0, -3.0, 1e4])
def test_equal_scores_are_balanced(value):
    found = assign(np.full((1, 10, 4), value))
    np.testing.assert_array_equal(np.bincount(found[0]), [3, 3, 2, 2])


def test_one_expert_and_nobody():
    np.testing.assert_array_equal(assign(np.ones((1, 3, 1))), [[0, 0, 0]])
    nobody = np.zeros((1, 3), bool)
    found = assign(np.ones((1, 3, 2)), nobody)
    np.testing.assert_array_equal(found, [[2, 2, 2]])


def test_it_has_no_gradient_and_stops_none(rng, gradients):
    scores = rng.normal(size=(1, 8, 4))

    def value(scores):
        found = assignment.balanced_assignment(
            scores, ops.ones((1, 8), dtype="bool")
        )
        chosen = ops.one_hot(found, 4, dtype="float32")
        return ops.sum(chosen * scores)

    _, (slope,), _ = gradients(value, [scores])
    wanted = np.eye(4)[best(scores[0], np.ones(8, bool))]
    np.testing.assert_array_equal(slope[0], wanted)


def greedy(scores, valid, quota, cap):
    """All pairs by descending score, as long as there is room."""
    chosen = np.zeros(scores.shape, bool)
    for pair in np.argsort(-scores.ravel(), kind="stable"):
        token, expert = divmod(pair, scores.shape[1])
        room = chosen[token].sum() < cap and chosen[:, expert].sum() < quota
        chosen[token, expert] = valid[token] and room
    return chosen


def capped(scores, valid, quota, cap, **kwargs):
    found = assignment.capped_choice(
        ops.convert_to_tensor(np.asarray(scores, "float32")),
        ops.convert_to_tensor(valid),
        ops.convert_to_tensor(np.asarray(quota, "int32")),
        cap,
        **kwargs,
    )
    return ops.convert_to_numpy(found)


@pytest.mark.parametrize("cap", [1, 2, 4])
@pytest.mark.parametrize("masked", [True, False])
def test_a_capped_choice_is_the_greedy_one(cap, masked, rng):
    scores = rng.random((3, 24, 4)) * rng.random(4)
    valid = rng.random((3, 24)) < (0.6 if masked else 2)
    quota = [6, 3, 9]
    found = capped(scores, valid, quota, cap)
    for group, mask, count, ours in zip(
        scores, valid, quota, found, strict=True
    ):
        np.testing.assert_array_equal(ours, greedy(group, mask, count, cap))


def test_limits_hold_wherever_it_ends(rng):
    scores = rng.random((1, 64, 8)) * rng.random(8)
    valid = np.ones((1, 64), bool)
    sums = []
    for rounds in (1, 2, 5, 100):
        found = capped(scores, valid, [16], 2, max_rounds=rounds)[0]
        assert found.sum(0).max() <= 16 and found.sum(1).max() <= 2
        sums.append((found * scores[0]).sum())
    assert sums == sorted(sums) and sums[0] < sums[-1]
