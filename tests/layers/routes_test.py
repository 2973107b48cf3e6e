import numpy as np
import pytest
from keras import ops

from keras_switch.layers import routes


def test_gather_probs_of_none_is_zero():
    probs = np.array([[[0.7, 0.2, 0.1], [0.1, 0.6, 0.3]]], "float32")
    index = np.array([[[0, 2], [1, 3]]], "int32")
    found = ops.convert_to_numpy(routes.gather_probs(probs, index))
    np.testing.assert_array_equal(
        found, probs.dtype.type([[[0.7, 0.1], [0.6, 0]]])
    )


@pytest.mark.parametrize("k", [1, 2, 3])
def test_best_experts_go_by_score_then_by_index(k):
    scores = np.array([[[2.0, -5.0, 2.0], [-3.0, -2.0, -9.0]]], "float32")
    found = ops.convert_to_numpy(routes.best_experts(scores, k))
    wanted = np.array([[[0, 2, 1], [1, 0, 2]]])
    np.testing.assert_array_equal(found, wanted[..., :k])
    assert found.dtype == "int32"


def test_choice_major_puts_first_choices_first():
    values = np.array([[[1, 2], [3, 4], [5, 6]]])
    found = ops.convert_to_numpy(routes.choice_major(values))
    np.testing.assert_array_equal(found, [[1, 3, 5, 2, 4, 6]])


def test_shares_sum_to_one():
    gates = np.array([[[0.5, 0.3], [0.0, 0.0]]], "float32")
    shares = routes.shares_of(ops.convert_to_tensor(gates))
    found = ops.convert_to_numpy(shares)
    np.testing.assert_allclose(found, [[[0.625, 0.375], [0, 0]]], rtol=1e-6)
