import collections

import numpy as np
import pytest

from keras_switch.data.mixture import Mixture, mixing_rates


def test_the_temperature_makes_rates_equal():
    assert mixing_rates([100, 300]).tolist() == pytest.approx([0.25, 0.75])
    assert mixing_rates([100, 400], 2).tolist() == pytest.approx([1 / 3, 2 / 3])
    assert mixing_rates([1, 10**9], 1e9).tolist() == pytest.approx([0.5, 0.5])
    assert mixing_rates([5]).tolist() == [1]


@pytest.mark.parametrize("temperature", [0, 0.5, float("nan"), float("inf")])
def test_a_bad_temperature_is_refused(temperature):
    with pytest.raises(ValueError, match="temperature must be at least 1"):
        mixing_rates([1, 2], temperature)


@pytest.mark.parametrize("sizes", [[], [3, 0]])
def test_a_task_without_examples_is_refused(sizes):
    with pytest.raises(ValueError, match="sizes must be at least 1"):
        Mixture(sizes)


def test_every_example_comes_once_an_epoch():
    mixture = Mixture([10, 30], seed=3)
    rows = mixture.rows(0, 5000)
    for task, size in enumerate((10, 30)):
        its_rows = rows[rows[:, 0] == task, 1]
        assert len(its_rows) == pytest.approx(5000 * size / 40, rel=0.02)
        epochs = its_rows[: len(its_rows) // size * size].reshape(-1, size)
        assert (np.sort(epochs, axis=1) == np.arange(size)).all()
        assert (epochs[0] != epochs[1]).any()


def test_rows_are_a_function_of_their_number():
    mixture = Mixture([10, 30], 2.0, seed=3)
    rows = mixture.rows(0, 9000)
    again = Mixture([10, 30], 2.0, seed=3).rows(8000, 1000)
    np.testing.assert_array_equal(rows[8000:], again)
    other = Mixture([10, 30], 2.0, seed=4).rows(0, 9000)
    assert (rows != other).any()


def test_a_tiny_task_is_not_forgotten():
    sizes = [1] * 5 + [10**6]
    counts = collections.Counter(Mixture(sizes).rows(0, 4096)[:, 0].tolist())
    assert [counts[i] for i in range(6)] == [1, 1, 1, 1, 1, 4091]
