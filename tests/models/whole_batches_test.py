import keras
import numpy as np
import pytest

from keras_switch.models import whole_batches
from tests.mesh import one_device
from tests.models import tiny

not_torch = pytest.mark.skipif(
    keras.backend.backend() == "torch", reason="torch has no layouts"
)


def batch(rows=3):
    x = tiny.inputs(np.random.default_rng(0), rows)
    y = np.ones(x["decoder_token_ids"].shape, "int32")
    return x, y, x["decoder_padding_mask"].astype("float32")


def test_a_batch_is_filled_up_with_rows_of_no_weight():
    x, y, weight = whole_batches._filled_up(batch(), 4, predicts=False)
    assert {len(array) for array in (*x.values(), y, weight)} == {4}
    assert not x["encoder_padding_mask"][3].any() and not weight[3].any()
    assert weight[:3].sum() == batch()[2].sum()


def test_weights_are_made_where_there_are_none():
    x, y, _ = batch()
    _, _, weight = whole_batches._filled_up((x, y), 4, predicts=False)
    np.testing.assert_array_equal(weight.sum(axis=1), [5, 5, 5, 0])


def test_predict_refuses_a_batch_that_is_not_shared_evenly():
    x, y, _ = batch()
    with pytest.raises(ValueError, match="multiple of 4.*received 3 rows"):
        whole_batches._filled_up((x,), 4, predicts=True)
    whole = batch(4)
    assert whole_batches._filled_up(whole, 4, predicts=True) is whole


def test_without_a_mesh_nothing_is_filled_up():
    lm = tiny.lm()
    x, y, weight = lm.preprocess_samples(*batch())
    assert len(y) == 3 and weight is not None


@not_torch
def test_the_mean_of_losses_counts_no_padding():
    """The weight of a batch is its rows that hold a token."""
    lm = tiny.lm()
    x, y, weight = whole_batches._filled_up(batch(), 8, predicts=False)
    lm.compile()
    with one_device.spread():
        with lm._counted.of((x, y, weight)):
            lm._loss_tracker.update_state(2.0, sample_weight=8)
        assert lm._counted.rows is None
    lm._loss_tracker.update_state(5.0, sample_weight=1)
    assert float(lm._loss_tracker.result()) == (3 * 2.0 + 5.0) / 4


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return batch()


def test_what_is_no_dataset_is_refused_and_becomes_one():
    import grain

    lm, batches = tiny.lm(), Batches()
    loader = type("DataLoader", (), {})()
    for data in (batches, (batch() for _ in range(2)), loader):
        for method in (lm.fit, lm.evaluate, lm.predict):
            with pytest.raises(ValueError, match="grain.MapDataset.source"):
                method(data)
    with pytest.raises(ValueError, match="^validation_data must be"):
        lm.fit(*batch()[:2], validation_data=batches)
    items = grain.MapDataset.source(batches)
    assert lm.evaluate(items.to_iter_dataset(), verbose=0)[0] > 0
