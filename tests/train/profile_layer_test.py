"""The rows of a profile: what is refused, their sums, and a real process."""

import json

import keras
import pytest

from keras_switch_train import flags, layer_speed, profile_layer

CELL = layer_speed.Cell(2, 32, 8, 24)
BACKEND = keras.backend.backend()


def found(count):
    """What a trace of some operations found, the longest first."""
    return {
        "operations": [
            [
                "copy" if i % 2 else "product",
                f"op{i}",
                "",
                1.5 * i,
                3.0 * i,
                i / 2,
            ]
            for i in range(count, 0, -1)
        ]
    }


@pytest.mark.parametrize("count", [1, 12, 13, 40])
def test_a_table_sums_to_its_total(count):
    *rows, total = profile_layer.table({"side": "ours"}, found(count))
    assert len(rows) == min(count, 13)
    assert (rows[-1]["group"] == "other") == (count > 12)
    assert total["group"] == "total" and total["share, %"] == 100
    for column in ("wall ms", "thread ms", "share, %", "count"):
        whole = sum(row[column] for row in rows)
        assert whole == pytest.approx(total[column], rel=5e-3), column
    assert total["wall ms"] == pytest.approx(
        1.5 * count * (count + 1) / 2, rel=1e-3
    )
    assert {row["side"] for row in rows} == {"ours"}


def test_shares_of_groups():
    total = profile_layer.table({}, found(3))[-1]
    assert total["where"] == "copy 67 %, product 33 %"


@pytest.mark.parametrize(
    "sides, kinds, message",
    [
        (["ours", "flaxformer"], ["forward"], "--sides .*received ours,flaxf"),
        ([], ["forward"], "--sides must name some of ours, .*received nothing"),
        (["ours"], [], "--calls .*forward or training; received nothing"),
        (
            ["keras_hub"],
            ["training"],
            "--calls .*keras_hub .*received training",
        ),
        (["einsum"], ["forward"], "einsum can do .*training; received forward"),
    ],
)
def test_what_cannot_be_traced_is_refused(monkeypatch, sides, kinds, message):
    monkeypatch.setattr(layer_speed, "write", None)  # before any work
    with pytest.raises(flags.UsageError, match=message):
        profile_layer.profile(CELL, sides, kinds, BACKEND, 1, False)


def test_rows_of_a_real_process():
    rows = profile_layer.profile(
        CELL, ["einsum"], layer_speed.KINDS, BACKEND, 1, retain_heap=False
    )
    assert len(rows) == 14  # einsum is ours where nothing is dropped
    for row in rows:
        assert row["side"] == "einsum" and row["kind"] == "training"
        assert row["profiler"] == BACKEND and row["capacity"] == 1.25
        assert row["ms"] > 0 and row["traced ms"] > 0 and row["cpu ms"] > 0
    assert json.loads(json.dumps(rows)) == rows
    assert "product" in rows[-1]["where"]
    assert 0.99 <= rows[-1]["wall ms"] / rows[0]["traced ms"] < 1.5
