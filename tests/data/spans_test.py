import collections

import numpy as np
import pytest

from keras_switch.data import replace_spans
from keras_switch.data.spans import append_eos, random_segments

MASK = np.array([1, 1, 0, 0, 1, 0], bool)


def test_sentinels_stand_for_masked_runs():
    tokens = np.arange(10, 16)
    assert replace_spans(tokens, MASK, 1000).tolist() == [
        *(999, 12, 13, 998, 15)
    ]
    assert replace_spans(tokens, ~MASK, 1000).tolist() == [
        *(10, 11, 999, 14, 998)
    ]


def test_every_example_counts_its_own_sentinels():
    tokens = np.arange(10, 22)
    mask = np.concatenate([~MASK, ~MASK])
    # The first example ends and the second begins without a mask; a run that
    # goes over a border is two runs.
    replaced = replace_spans(tokens, mask, 1000, np.array([6, 6]))
    assert replaced.tolist() == [
        *(10, 11, 999, 14, 998),
        *(16, 17, 999, 20, 998),
    ]
    replaced = replace_spans(tokens[:4], np.ones(4), 1000, np.array([1, 3]))
    assert replaced.tolist() == [999, 999]


def test_nothing_masked_or_nothing_at_all():
    tokens = np.arange(3, dtype=np.uint16)
    replaced = replace_spans(tokens, np.zeros(3), 1000)
    assert replaced.tolist() == [0, 1, 2] and replaced.dtype == np.int32
    assert replace_spans(tokens[:0], [], 1000).size == 0


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"received \(3,\) and \(2,\)"):
        replace_spans(np.arange(3), np.ones(2), 1000)
    with pytest.raises(ValueError, match="same shape"):
        replace_spans(np.ones((2, 2), int), np.ones((2, 2)), 1000)


def test_segments_fill_their_example(rng):
    items, segments = np.array([7, 1, 5, 5]), np.array([3, 1, 5, 1])
    lengths = random_segments(items, segments, rng)
    assert lengths.shape == (10,) and lengths.min() >= 1
    parts = np.split(lengths, np.cumsum(segments)[:-1])
    assert [part.sum() for part in parts] == items.tolist()


def test_every_cut_is_as_likely(rng):
    # 5 items in 3 segments: 6 ways to cut.
    lengths = random_segments(np.full(6000, 5), np.full(6000, 3), rng)
    counts = collections.Counter(map(tuple, lengths.reshape(-1, 3).tolist()))
    assert len(counts) == 6
    # 1,000 expected, standard deviation 29.
    assert 850 < min(counts.values()) and max(counts.values()) < 1150


def test_eos_ends_every_example():
    with_eos = append_eos(np.array([5, 6, 7]), np.array([3, 1, 2]))
    assert with_eos.tolist() == [5, 6, 1, 1, 7, 1]
