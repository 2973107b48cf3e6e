import numpy as np
import pytest

from keras_switch.tasks import Encoded, Shape, TaskBatches, TaskHeldOut

SHAPE = Shape(6, 4)


def encoded(count, first=10):
    inputs = [np.array([first + i, 1], np.int32) for i in range(count)]
    targets = [np.array([first + i, 1], np.int32) for i in range(count)]
    return Encoded(inputs, targets, 0, 0)


def test_batches_resume_at_a_step():
    batches = TaskBatches([encoded(7), encoded(20, 100)], SHAPE, 4, seed=1)
    iterator = iter(batches.dataset(start_step=3))
    for step in (3, 4):
        x, y, weight = next(iterator)
        wanted_x, wanted_y, _ = batches.batch(step)
        np.testing.assert_array_equal(y, wanted_y)
        for name, array in wanted_x.items():
            np.testing.assert_array_equal(x[name], array)
        # An answer belongs to its question.
        np.testing.assert_array_equal(y[:, 0], x["encoder_token_ids"][:, 0])
        assert y.shape == weight.shape == (4, 4)
    with pytest.raises(ValueError, match="step must be"):
        batches.batch(-1)


def test_the_fingerprint_is_of_all_that_matters():
    made = [
        TaskBatches([encoded(7)], SHAPE, 4),
        TaskBatches([encoded(7, 11)], SHAPE, 4),
        TaskBatches([encoded(7), encoded(7)], SHAPE, 4),
        TaskBatches([encoded(7), encoded(7)], SHAPE, 4, temperature=2),
        TaskBatches([encoded(7)], SHAPE, 8),
        TaskBatches([encoded(7)], SHAPE, 4, seed=1),
        TaskBatches([encoded(7)], Shape(6, 5), 4),
    ]
    assert len({batches.fingerprint() for batches in made}) == len(made)
    again = TaskBatches([encoded(7)], SHAPE, 4)
    assert again.fingerprint() == made[0].fingerprint()


def test_nothing_is_left_out_of_the_held_out_set():
    held_out = TaskHeldOut([encoded(7), encoded(3, 100)], SHAPE, 4)
    assert len(held_out) == 3
    parts = [held_out[i] for i in range(3)]
    first = np.concatenate([y[:, 0] for _, y, _ in parts])
    assert first.tolist() == [*range(10, 17), 100, 101, 102, 0, 0]
    assert [weight.sum() for *_, weight in parts] == [8, 8, 4]
    assert {y.shape for _, y, _ in parts} == {(4, 4)}
    with pytest.raises(IndexError):
        held_out[3]
    with pytest.raises(ValueError, match="must hold an example"):
        TaskHeldOut([encoded(0)], SHAPE)
