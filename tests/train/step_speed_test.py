"""A training step on both sides: what is refused, and a run at toy sizes."""

import keras
import pytest

from keras_switch_train import step_speed

SHAPE = step_speed.Shape(
    experts=2,
    hidden_dim=8,
    intermediate_dim=16,
    layers=2,
    vocabulary=40,
    batch=2,
    input=24,
    target=8,
)
RECORD = {
    "kept tokens": {"encoder 1": 40, "decoder 1": 16},
    "parameters": 5000,
    "dtype": "float32",
    "heap": "kept",
    "first loss": 4.5,
}


def test_the_same_first_step_is_compared():
    theirs = {**RECORD, "first loss": 4.5009}
    step_speed.check({"ours": RECORD, "transformers": theirs})


@pytest.mark.parametrize(
    "change, message",
    [
        ({"kept tokens": {"encoder 1": 39, "decoder 1": 17}}, "kept tokens"),
        ({"parameters": 5001}, "parameters differ"),
        ({"dtype": "bfloat16"}, "dtype differ"),
        ({"heap": "left alone"}, "heap differ"),
        ({"first loss": 4.502}, "first losses must agree to 0.001"),
        ({"first loss": float("nan")}, "first losses must agree"),
    ],
)
def test_another_first_step_is_refused(change, message):
    records = {"ours": RECORD, "transformers": {**RECORD, **change}}
    with pytest.raises(RuntimeError, match=message):
        step_speed.check(records)


@pytest.mark.parametrize("last", [4.5, float("nan")])
def test_a_side_that_does_not_learn_is_refused(last):
    records = {
        "ours": {**RECORD, "last loss": 4.4},
        "transformers": {**RECORD, "last loss": last},
    }
    with pytest.raises(RuntimeError, match="of transformers went from 4.50000"):
        step_speed.check_learnt(records)


def test_a_row_of_real_processes():
    backend = keras.backend.backend()
    (row,) = step_speed.compare(SHAPE, backend, 2, retain_heap=True)
    for side in ("ours", "its"):
        best, median, worst = (
            row[f"{side} {name}"] for name in ("best", "s", "worst")
        )
        assert 0 < best <= median <= worst
    ours, theirs = row["work"].values()
    # Both ran the same Adafactor for four steps.
    assert ours["last loss"] == pytest.approx(theirs["last loss"], abs=2e-3)
    assert ours["first loss"] - ours["last loss"] > 0.01
    # Slots of an expert: 15 of a sequence of 24, 5 of a sequence of 8.
    assert 24 < ours["kept tokens"]["encoder 1"] <= 48
    assert row["capacity"] == 1.25 and row["target"] is None
    assert row["medians"] == pytest.approx(
        row["its s"] / row["ours s"], rel=0.01, abs=0.01
    )
