import numpy as np
import pytest

from keras_switch.data import HeldOut, Pipeline, SpanCorruption


def build(corpus, **settings):
    settings = {"input_length": 32, "batch_size": 4} | settings
    return HeldOut(corpus, SpanCorruption(3000), **settings)


def rows_of(held_out):
    """All rows, batches one after the other, `[rows, width]`."""
    batches = [held_out.batch(index) for index in range(len(held_out))]
    flat = [np.concatenate([*x.values(), y, w], 1) for x, y, w in batches]
    return np.concatenate(flat)


@pytest.fixture
def corpus(make_corpus):
    lengths = np.random.default_rng(1).integers(3, 60, 71)
    return make_corpus(lengths, first=2)


@pytest.mark.parametrize("packing", ["segments", "stream", "none"])
def test_the_set_does_not_depend_on_the_batch_size(corpus, packing):
    one = rows_of(build(corpus, batch_size=1, packing=packing))
    for size in (4, 7, 1000):
        several = rows_of(build(corpus, batch_size=size, packing=packing))
        assert len(several) == size * -(-len(one) // size)
        np.testing.assert_array_equal(several[: len(one)], one)
        # What fills the last batch up counts for nothing.
        assert not several[len(one) :].any()


def test_no_row_is_left_out(corpus):
    held_out = build(corpus, packing="none")
    pipeline = Pipeline(
        corpus, SpanCorruption(3000), 32, batch_size=1, packing="none"
    )
    rows = rows_of(held_out)
    first = rows[rows.any(axis=1), 0]
    assert len(first) == len(set(first)) == pipeline.num_rows
    assert held_out.num_rows == pipeline.num_rows
    # Shuffled: the first rows are no longer those of the first documents.
    assert first.tolist() != sorted(first)


def test_the_first_rows_alone(corpus):
    everything = rows_of(build(corpus, batch_size=1))
    some = build(corpus, batch_size=4, max_rows=6)
    assert (len(some), some.num_rows) == (2, 6)
    np.testing.assert_array_equal(rows_of(some)[:6], everything[:6])
    assert build(corpus, max_rows=10**6).num_rows == len(everything)


def test_the_seed_decides_order_and_noise(corpus):
    rows = rows_of(build(corpus))
    np.testing.assert_array_equal(rows_of(build(corpus)), rows)
    assert not np.array_equal(rows_of(build(corpus, seed=1)), rows)


def test_the_dataset_is_finite_and_repeats_itself(corpus):
    held_out = build(corpus)
    dataset = held_out.dataset()
    assert len(dataset) == len(held_out)
    for _ in range(2):
        batches = list(dataset)
        assert len(batches) == len(held_out)
        for index, (x, y, weight) in enumerate(batches):
            expected = held_out.batch(index)
            np.testing.assert_array_equal(y, expected[1])
            np.testing.assert_array_equal(weight, expected[2])
            assert x.keys() == expected[0].keys()


def test_the_fingerprint_tells_settings_apart(corpus):
    assert build(corpus).fingerprint() == build(corpus).fingerprint()
    variants = [
        build(corpus),
        build(corpus, seed=1),
        build(corpus, max_rows=3),
        build(corpus, packing="none"),
    ]
    assert len({v.fingerprint() for v in variants}) == len(variants)


def test_bad_arguments_are_refused(corpus):
    with pytest.raises(ValueError, match="max_rows must be an integer"):
        build(corpus, max_rows=0)
    with pytest.raises(ValueError, match="batch_size must be an integer"):
        build(corpus, batch_size=0)
    with pytest.raises(ValueError, match="seed must be an integer"):
        build(corpus, seed=-1)
    held_out = build(corpus)
    for index in (-1, len(held_out)):
        with pytest.raises(IndexError, match=f"received {index}"):
            held_out.batch(index)
