import hypothesis
import numpy as np
from hypothesis import strategies as st

from keras_switch.data import PrefixLM, SpanCorruption
from keras_switch.data.packing import (
    cut_documents,
    one_piece_rows,
    packed_rows,
)


def test_documents_are_cut_into_windows_and_a_rest():
    starts, lengths = cut_documents(np.array([0, 10, 10, 11, 19, 21]), 4, 2)
    # Documents of 10, 0, 1, 8 and 2 tokens.
    assert starts.tolist() == [0, 4, 8, 11, 15, 19]
    assert lengths.tolist() == [4, 4, 2, 4, 4, 2]


def test_documents_that_are_all_too_short_leave_nothing():
    starts, lengths = cut_documents(np.array([0, 1, 2]), 4, 2)
    assert starts.size == lengths.size == 0


def test_one_piece_rows():
    rows = one_piece_rows(np.array([0, 4]), np.array([4, 2]))
    assert rows.offsets.tolist() == [0, 1, 2]


@hypothesis.given(
    lengths=st.lists(st.integers(2, 70), min_size=1, max_size=60),
    objective=st.sampled_from([SpanCorruption(1000), PrefixLM()]),
)
@hypothesis.settings(deadline=None, max_examples=80)
def test_every_piece_is_in_one_row_and_rows_hold_them(lengths, objective):
    lengths = np.array(lengths)
    starts = np.cumsum(lengths) - lengths
    rows = packed_rows(starts, lengths, objective, 72, 60)
    order = np.argsort(rows.starts)
    assert rows.starts[order].tolist() == starts.tolist()
    assert rows.lengths[order].tolist() == lengths.tolist()
    assert rows.offsets[0] == 0 and rows.offsets[-1] == len(lengths)
    assert (np.diff(rows.offsets) > 0).all()
    for length, room in zip(
        objective.lengths(rows.lengths), (72, 60), strict=True
    ):
        assert np.add.reduceat(length, rows.offsets[:-1]).max() <= room


def test_rows_are_by_first_piece_and_pieces_in_the_order_of_the_text():
    objective = SpanCorruption(1000)
    lengths = np.array([4, 60, 8, 57, 5])
    rows = packed_rows(np.cumsum(lengths) - lengths, lengths, objective, 64, 64)
    pieces = np.split(rows.lengths, rows.offsets[1:-1])
    # Inputs of 5, 55, 9, 52 and 6: the 8 fills what the 60 leaves, then the 5
    # and the 4 go with the 57.
    assert [piece.tolist() for piece in pieces] == [[4, 57, 5], [60, 8]]


def test_packing_is_tight():
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 140, 3000)
    objective = SpanCorruption(1000)
    starts = np.cumsum(lengths) - lengths
    rows = packed_rows(starts, lengths, objective, 128, 32)
    used = objective.lengths(lengths)[0].sum()
    assert used / (128 * (len(rows.offsets) - 1)) > 0.96
