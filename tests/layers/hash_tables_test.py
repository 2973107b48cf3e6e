import numpy as np
import pytest

from keras_switch.layers import hash_tables


@pytest.mark.parametrize("vocabulary,experts", [(100, 8), (7, 8), (8, 1)])
def test_a_random_table_is_shared_out_evenly(vocabulary, experts):
    table = hash_tables.random_table(vocabulary, experts, seed=3)
    assert table.shape == (1, vocabulary) and table.dtype == "int32"
    sizes = np.bincount(table[0], minlength=experts)
    assert sizes.max() - sizes.min() <= 1
    again = hash_tables.random_table(vocabulary, experts, seed=3)
    np.testing.assert_array_equal(again, table)


def test_a_random_table_is_in_no_order():
    first, second = (
        hash_tables.random_table(1000, 10, seed=seed)[0] for seed in (0, 1)
    )
    assert (first == second).mean() < 0.2
    assert np.abs(np.corrcoef(first, np.arange(1000))[0, 1]) < 0.1


@pytest.mark.parametrize("hashes,experts", [(2, 8), (3, 3), (8, 8)])
def test_the_experts_of_a_token_differ(hashes, experts):
    tables = (
        hash_tables.random_table(50, experts, hashes, seed=0),
        hash_tables.balanced_table(np.arange(50), experts, hashes),
    )
    for table in tables:
        assert table.shape == (hashes, 50)
        for column in table.T:
            assert len(set(column)) == hashes
        assert 0 <= table.min() and table.max() < experts


def test_two_hashes_are_two_hashes():
    table = hash_tables.random_table(1000, 10, 2, seed=0)
    for expert in range(10):
        others = np.bincount(table[1, table[0] == expert], minlength=10)
        assert (others > 0).sum() == 9


def test_a_balanced_table_by_hand():
    """9 alone; 5 and 1; 4 and 2."""
    table = hash_tables.balanced_table([1, 9, 4, 2, 5], 3)
    np.testing.assert_array_equal(table, [[1, 0, 2, 2, 1]])


def test_a_balanced_table_evens_out_a_skewed_corpus():
    counts = (1e6 / np.arange(1, 20001)).astype("int64")  # Zipf's law
    counts[4000:] = 0
    load = {
        name: np.bincount(table[0], counts, minlength=8)
        for name, table in {
            "balanced": hash_tables.balanced_table(counts, 8),
            "random": hash_tables.random_table(20000, 8, seed=0),
        }.items()
    }
    assert load["balanced"].max() / load["balanced"].mean() < 1.001
    assert load["random"].max() / load["random"].mean() > 1.1
    # Tokens that never occur are shared out, too.
    table = hash_tables.balanced_table(counts, 8)
    assert np.bincount(table[0, 4000:], minlength=8).min() > 0


def test_a_clustered_table_puts_like_with_like():
    rng = np.random.default_rng(0)
    centres = np.array([[9.0, 0], [0, 9], [-9, -9]])
    kind = rng.integers(3, size=60)
    rows = centres[kind] + rng.normal(size=(60, 2))
    for seed in range(5):
        table = hash_tables.clustered_table(rows, 3, seed)
        assert table.shape == (1, 60) and table.dtype == "int32"
        found = {(k, e) for k, e in zip(kind, table[0], strict=True)}
        if len(found) == 3:
            break
    else:
        raise AssertionError("no start found the clusters")


@pytest.mark.parametrize(
    "call,name",
    [
        (lambda: hash_tables.random_table(0, 2), "vocabulary_size"),
        (lambda: hash_tables.random_table(9, 2, 3), "num_hashes"),
        (lambda: hash_tables.balanced_table([1, -2], 2), "token_counts"),
        (lambda: hash_tables.balanced_table([[1.0]], 2), "token_counts"),
        (lambda: hash_tables.balanced_table([1], 2, 0), "num_hashes"),
        (lambda: hash_tables.clustered_table(np.ones((2, 3)), 3), "embeddings"),
    ],
)
def test_what_is_refused(call, name):
    with pytest.raises(ValueError, match=f"^{name} must be"):
        call()
