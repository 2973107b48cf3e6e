"""One layer beside its rivals: what is refused, and a run at toy sizes."""

import json

import keras
import numpy as np
import pytest

from keras_switch_train import layer_speed

CELL = layer_speed.Cell(4, 64, 8, 48)
RECORD = {
    "tokens": 64,
    "kept": {"forward": 64, "training": 64},
    "FLOPs of a kept token": 1536,
    "dtype": "float32",
    "heap": "kept",
}


@pytest.fixture
def folder(tmp_path, rng):
    """Where two sides left the same results."""
    results = {"forward y": rng.normal(size=(1, 64, 8))}
    for side in ("ours", "transformers", "einsum"):
        np.savez(tmp_path / f"{side}.npz", **results)
    return tmp_path


def test_sides_that_did_the_same_are_compared(folder):
    records = {"ours": RECORD, "transformers": RECORD, "einsum": RECORD}
    layer_speed.check(records, str(folder), "float32")


@pytest.mark.parametrize(
    "change",
    [
        {"tokens": 128},
        {"FLOPs of a kept token": 1540},
        {"dtype": "bfloat16"},
        {"heap": "left alone"},
        {"kept": {"forward": 64, "training": 63}},
        {"kept": {"forward": 63, "training": 64}},
    ],
)
@pytest.mark.parametrize("rival", ["dense", "transformers"])
def test_other_work_is_refused(folder, change, rival):
    records = {"ours": RECORD, rival: {**RECORD, **change}}
    with pytest.raises(RuntimeError, match="must do the same work"):
        layer_speed.check(records, str(folder), "float32")


@pytest.mark.parametrize("rival", ["transformers", "einsum"])
@pytest.mark.parametrize("planted", [0.01, float("nan")])
def test_other_results_are_refused(folder, rival, planted):
    path = folder / f"{rival}.npz"
    y = np.load(path)["forward y"]
    y[0, 5] += planted * y[0, 6]  # a token of 64
    np.savez(path, **{"forward y": y})
    records = {"ours": RECORD, rival: RECORD}
    with pytest.raises(RuntimeError, match=f"forward y must agree.*{rival}"):
        layer_speed.check(records, str(folder), "float32")


def test_tokens_are_drawn_so_that_no_capacity_drops_any(tmp_path):
    cell = layer_speed.Cell(8, 1024, 16, 4)
    layer_speed.write(cell, str(tmp_path))
    work = json.loads((tmp_path / "work.json").read_text())
    assert work["capacity"] == 80 and work["eval_capacity"] is None
    with np.load(tmp_path / "data.npz") as data:
        logits = {
            kind: data[kind] @ data["router"] for kind in layer_speed.KINDS
        }
    largest = {}
    for kind, rows in logits.items():
        assert rows.shape == (2, 512, 8)
        loads = [np.bincount(row.argmax(-1), minlength=8) for row in rows]
        largest[kind] = np.max(loads)
        best = np.sort(rows, axis=-1)
        assert (best[..., -1] - best[..., -2]).min() >= layer_speed._MARGIN
    # Evaluation has no capacity: nothing is made even there.
    assert largest["training"] <= 80 < largest["forward"]


@pytest.mark.parametrize(
    "rival, kind, change, backend, target",
    [
        ("dense", "forward", {"tokens": 4096}, "jax", "<= 1.1"),
        ("dense", "training", {"tokens": 4096}, "jax", "<= 1.4"),
        ("dense", "training", {"tokens": 256}, "jax", None),
        ("dense", "training", {"tokens": 4096, "dtype": "bfloat16"}, "jax", 0),
        ("dense", "training", {"capacity_factor": None}, "jax", None),
        ("transformers", "forward", {}, "tensorflow", ">= 1.8"),
        ("transformers", "forward", {}, "torch", None),
        ("transformers", "training", {}, "torch", ">= 1.0"),
        ("keras_hub", "forward", {"experts": 32}, "jax", ">= 15.0"),
        ("einsum", "training", {}, "jax", None),
    ],
)
def test_targets(rival, kind, change, backend, target):
    cell = layer_speed.Cell(8, 512, 768, 3072)._replace(**change)
    found = layer_speed._target(cell, backend, kind, rival)
    assert found == (target or None)


def test_rows_of_real_processes():
    """The outputs and gradients of both sides are compared on the way."""
    rivals = ["dense", "transformers"]
    backend = keras.backend.backend()
    rows = layer_speed.compare(CELL, rivals, backend, 2, retain_heap=True)
    kinds = [(row["kind"], row["against"]) for row in rows]
    assert kinds == [(k, r) for k in ("forward", "training") for r in rivals]
    for row in rows:
        for side in ("ours", "its"):
            best, median, worst = (
                row[f"{side} {n}"] for n in ("best", "ms", "worst")
            )
            assert 0 < best <= median <= worst
        ours, theirs = row["work"].values()
        assert ours == theirs and ours["kept tokens"] == 64
        upside_down = row["against"] == "dense"
        assert row["ratio"].startswith("ours" if upside_down else "transf")
        ratio = row["its ms"] / row["ours ms"]
        ratio = 1 / ratio if upside_down else ratio
        assert row["medians"] == pytest.approx(ratio, rel=0.01, abs=0.01)
    assert rows[0]["capacity"] == "dropless" and rows[2]["capacity"] == 1.25
