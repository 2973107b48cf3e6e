import numpy as np

from keras_switch.data.ragged import positions, starts_of


def test_starts_are_the_sums_in_front():
    assert starts_of(np.array([3, 0, 2, 1])).tolist() == [0, 3, 3, 5]


def test_positions_are_the_ranges_in_turn():
    starts, lengths = np.array([10, 7, 0]), np.array([2, 0, 3])
    assert positions(starts, lengths).tolist() == [10, 11, 0, 1, 2]
    assert positions(starts[:0], lengths[:0]).tolist() == []
