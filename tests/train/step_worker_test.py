"""One side's training step, in this process."""

import json

import keras
import numpy as np
import pytest

from keras_switch_train import step_worker
from tests.train.step_speed_test import SHAPE


@pytest.fixture(autouse=True)
def backend_of_workers(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", keras.backend.backend())


@pytest.mark.slow
def test_without_a_capacity_nothing_is_dropped(tmp_path):
    shape = SHAPE._replace(capacity_factor=None)
    step_worker.write(shape._asdict(), str(tmp_path))
    answers = [
        step_worker.make(side, str(tmp_path))(do="work")
        for side in ("ours", "transformers")
    ]
    for answer in answers:
        assert answer["kept tokens"] == {"encoder 1": 48, "decoder 1": 16}
    losses = [answer.pop("first loss") for answer in answers]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    assert answers[0] == answers[1]


def test_slots_of_each_stack_and_even_routers(tmp_path):
    shape = SHAPE._replace(experts=4, hidden_dim=64, input=64, target=32)
    step_worker.write(shape._asdict(), str(tmp_path))
    work = json.loads((tmp_path / "work.json").read_text())
    assert work["slots"] == {"encoder": 20, "decoder": 10}
    batch = np.load(tmp_path / "batch.npz")
    np.testing.assert_array_equal(batch["target"][:, 0], 0)
    np.testing.assert_array_equal(
        batch["target"][:, 1:], batch["labels"][:, :-1]
    )
    answer = step_worker.make("transformers", str(tmp_path))
    kept = answer(do="work")["kept tokens"]
    assert kept["encoder 1"] > 0.8 * 128 and kept["decoder 1"] > 0.8 * 64
    assert answer(do="step")["seconds"] > 0
    assert answer(do="end")["peak GB"] > 0
