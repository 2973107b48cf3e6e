"""The arithmetic; a run takes minutes."""

import numpy as np
import pytest

from keras_switch_train import checkpoint_cost


def test_the_cost_is_what_a_block_with_a_checkpoint_takes_more():
    block, saves, step = 4, 3, 0.5
    lengths = np.full(2 * block * (saves + 1), step)
    # Of each checkpoint 0.1 s on the training thread, 0.2 s a step later.
    lengths[2 * block :: 2 * block] += 0.1
    lengths[2 * block + 1 :: 2 * block] += 0.2
    lengths[0] += 9.0  # compiles
    begins = np.concatenate([[0.0], np.cumsum(lengths)[:-1]])
    copied = begins.copy()
    copied[2 * block :: 2 * block] += 0.1
    row = checkpoint_cost._row(begins, copied, block, saves, interval=200)
    assert row["step s"] == 0.5
    assert row["extra s"] == pytest.approx(0.3)
    assert row["longest stall s"] == pytest.approx(0.1)
    assert row["cost, %"] == pytest.approx(0.3)
