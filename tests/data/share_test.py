import numpy as np
import pytest

from keras_switch.data import Share


class Source:
    """Batches of 6 rows that hold their step and their row."""

    batch_size = 6

    def batch(self, step):
        rows = np.arange(6)[:, None] + 10 * step
        return {"a": rows, "b": rows + 100}, rows + 200, rows + 300

    def dataset(self, start_step=0):
        import grain

        return grain.MapDataset.source(
            [self.batch(start_step + i) for i in range(2)]
        )

    def __len__(self):
        return 2

    def fingerprint(self):
        return "source"


def test_shares_side_by_side_are_the_batch():
    x, y, weight = Source().batch(1)
    shares = [Share(Source(), i, 3).batch(1) for i in range(3)]
    for name, array in x.items():
        parts = [share[0][name] for share in shares]
        np.testing.assert_array_equal(np.concatenate(parts), array)
    np.testing.assert_array_equal(np.concatenate([s[1] for s in shares]), y)
    np.testing.assert_array_equal(
        np.concatenate([s[2] for s in shares]), weight
    )


def test_its_dataset_is_its_batches():
    share = Share(Source(), 1, 2)
    (first, _) = share.dataset(start_step=3)
    wanted = share.batch(3)
    np.testing.assert_array_equal(first[0]["a"], wanted[0]["a"])
    np.testing.assert_array_equal(first[2], wanted[2])
    assert share.batch_size == 3 and len(share) == 2
    assert share.fingerprint() == "source"
    np.testing.assert_array_equal(share[3][1], wanted[1])


@pytest.mark.parametrize(
    "index, count, message",
    (
        (0, 4, "multiple of 4.*received 6"),
        (2, 2, "index must be below count=2; received 2"),
        (-1, 2, "index"),
        (0, 0, "count"),
    ),
)
def test_bad_shares(index, count, message):
    with pytest.raises(ValueError, match=message):
        Share(Source(), index, count)
