"""The clock of the curve, with steps of a known length."""

import csv
import types

import numpy as np
import pytest

from keras_switch_train import study_curve
from tests.train.clock import Clock


class Model:
    class Metric:
        def result(self):
            return 1.0

    metrics = [Metric()]


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    monkeypatch.setattr(study_curve, "time", Clock())


def train(curve, seconds, steps):
    for batch in range(steps):
        if batch:  # the first step is not counted, however long it takes
            study_curve.time.sleep(seconds)
        curve.on_train_batch_end(batch, {"loss": 1.0})


def interval(curve, seconds, steps=3):
    train(curve, seconds, steps)
    curve.on_test_begin()
    study_curve.time.sleep(5 * seconds)  # nor is the evaluation
    curve.on_epoch_end(0, {"loss": 1.0, "val_loss": 2.0})


def test_seconds_of_training_and_what_a_resumed_run_adds(tmp_path):
    path = tmp_path / "curve.csv"
    first = study_curve.Curve(path)
    first.set_model(Model())
    interval(first, 0.05)
    second = study_curve.Curve(path)
    second.set_model(Model())
    second.set_state(first.get_state())
    interval(second, 0.05)
    with open(path) as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["3", "6"]
    assert float(rows[0]["seconds"]) == pytest.approx(0.15)
    assert float(rows[1]["seconds"]) == pytest.approx(0.3)
    assert float(rows[1]["cpu_seconds"]) == pytest.approx(0.03)
    assert float(rows[1]["val_loss"]) == pytest.approx(2.0)


def test_a_run_that_was_stopped_between_evaluations(tmp_path):
    first = study_curve.Curve(tmp_path / "curve.csv")
    first.set_model(Model())
    interval(first, 0.05)
    train(first, 0.05, 3)  # stopped here
    second = study_curve.Curve(tmp_path / "curve.csv")
    second.set_model(Model())
    second.set_state(first.get_state())
    interval(second, 0.05)
    with open(tmp_path / "curve.csv") as file:
        rows = list(csv.DictReader(file))
    assert rows[-1]["step"] == "9"
    assert float(rows[-1]["seconds"]) == pytest.approx(0.45)


def test_churn_is_the_share_of_new_choices(monkeypatch):
    told = [
        {"a": [[1, 0], [0, 1]], "b": [[1, 1], [0, 0]]},
        {"a": [[0, 1], [0, 1]], "b": [[1, 0], [0, 0]]},
    ]
    choices = iter(
        {name: np.array(chosen, bool) for name, chosen in each.items()}
        for each in told
    )
    monkeypatch.setattr(
        study_curve.analysis, "chosen_experts", lambda *_: next(choices)
    )
    churn = study_curve.Churn(batch=None)
    churn.set_model(types.SimpleNamespace(backbone=None))
    first, second = {}, {}
    churn.on_epoch_end(0, first)
    churn.on_epoch_end(1, second)
    assert np.isnan(first["routing/churn"])
    # Of three choices, one is new.
    assert second["routing/churn"] == pytest.approx(1 / 3)


def test_parts_have_columns_and_the_mean_is_the_loss(tmp_path):
    class Parts(Model):
        def evaluate(self, part, **_):
            return {"loss": part}

    curve = study_curve.Curve(tmp_path / "curve.csv", {"de": 2.0, "en": 4.0})
    curve.set_model(Parts())
    interval(curve, 0.01)
    with open(tmp_path / "curve.csv") as file:
        (row,) = csv.DictReader(file)
    assert row["val_loss of de"] == "2.0" and row["val_loss of en"] == "4.0"
    assert row["val_loss"] == "3.0"
