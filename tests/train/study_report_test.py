"""Ratios of planted curves; tables and plots of planted arms."""

import csv
import json

import numpy as np
import pytest

from keras_switch_train import study_report


def test_first_reach():
    losses, steps = [4.0, 3.0, 3.2, 2.0], [10, 20, 30, 40]
    reach = study_report.first_reach
    assert reach(losses, steps, 4.5) == 10
    assert reach(losses, steps, 3.0) == 20
    assert reach(losses, steps, 3.5) == pytest.approx(15)
    # It fell below 3.2 before, but not below 2.9.
    assert reach(losses, steps, 3.2) == pytest.approx(18)
    assert reach(losses, steps, 2.6) == pytest.approx(35)
    assert reach(losses, steps, 1.9) is None


def write_arm(folder, name, seed, curve, ends):
    job = folder / "arms" / f"{name}-seed{seed}"
    job.mkdir(parents=True)
    (job / "arm.json").write_text(json.dumps({"name": name, "seed": seed}))
    with open(job / "curve.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, curve)
        writer.writeheader()
        for values in zip(*curve.values(), strict=True):
            writer.writerow(dict(zip(curve, values, strict=True)))
    counts = {"total": 8, "active": 4, "flops": 2_000_000}
    sizes = {"documents": 3, "targets": 50}
    ends = {
        "machine": {"backend": "jax"},
        "parameters": counts,
        "domains": {domain: sizes | its for domain, its in ends.items()},
    }
    (job / "ends.json").write_text(json.dumps(ends))


def curve(steps, losses, seconds):
    return {
        "step": steps,
        "seconds": [s * seconds for s in steps],
        "cpu_seconds": [s * seconds for s in steps],
        "val_loss": losses,
    }


@pytest.fixture
def study(tmp_path):
    steps = [100, 200, 300, 400]
    dense = {"a": {"loss": 3.0}, "b": {"loss": 2.0}}
    load = {"encoder_layer_0": [1.0, 0.0]}, {"encoder_layer_0": [0.0, 1.0]}
    sparse = {
        "a": {"loss": 2.5, "load": load[0]},
        "b": {"loss": 2.0, "load": load[1]},
    }
    write_arm(tmp_path, "dense", 0, curve(steps, [5, 4, 3.5, 3], 0.1), dense)
    # Half the steps to the same loss, each half as long again.
    write_arm(tmp_path, "switch", 0, curve(steps, [4, 3, 2.8, 2], 0.15), sparse)
    top_2 = curve(steps[:3], [4.5, 2.75, float("nan")], 0.2)
    write_arm(tmp_path, "top_2", 0, top_2, sparse)
    write_arm(tmp_path, "router_hash", 0, curve([100], [3.5], 0.2), sparse)
    write_arm(tmp_path, "wide", 0, curve([100], [4.5], 0.9), dense)
    write_arm(tmp_path, "dropless", 0, curve([100], [4.5], 0.9), sparse)
    return tmp_path


def test_ratios_of_planted_curves(study):
    results = study_report.write(str(study))
    last = results["main"][-1]
    assert last["dense step"] == 400 and last["switch step"] == 200
    assert last["steps ratio"] == 2.0
    assert last["time ratio"] == pytest.approx(2 / 1.5, abs=0.01)
    first = results["main"][0]
    assert first["dense step"] == 100 and first["switch step"] == 100


def test_a_bump_of_the_dense_curve_is_not_held_against_it(tmp_path):
    steps = [100, 200, 300, 400]
    dense = curve(steps, [5, 3, 3.5, 3.0], 0.1)
    ends = {"a": {"loss": 3.0, "load": {"decoder_layer_0": [0.5, 0.5]}}}
    write_arm(tmp_path, "dense", 0, dense, ends)
    write_arm(tmp_path, "switch", 0, dense, ends)
    for row in study_report.write(str(tmp_path))["main"]:
        assert row["steps ratio"] == row["time ratio"] == 1.0


def test_other_arms_at_the_last_common_step(study):
    router, top_2, wide = study_report.write(str(study))["others"]
    assert router["arm"] == "router_hash" and router["difference"] == -0.5
    assert top_2["arm"] == "top_2" and top_2["step"] == 300
    assert top_2["loss"] is None is top_2["difference"]  # it diverged
    assert wide["arm"] == "wide" and wide["step"] == 100
    # Against the dense model; there is no capacity_1 for dropless.
    assert wide["against"] == "dense" and wide["difference"] == -0.5


def test_routers_at_each_evaluation_that_all_had(study):
    rows = study_report.write(str(study))["routers"]
    assert [row["arm"] for row in rows] == ["dense", "switch", "router_hash"]
    assert [row["loss at 100"] for row in rows] == [5, 4, 3.5]
    assert "loss at 200" not in rows[0]  # the router was not trained so far


def test_domains(study):
    a, b = study_report.write(str(study))["domains"]
    assert a["domain"] == "a" and a["gain"] == 0.5 and b["gain"] == 0.0
    # Two domains that share no expert: ln 2 from the mean of both.
    assert a["documents"] == 3 and a["targets"] == 50
    surprise = a["encoder: KL of the load"]
    assert surprise == pytest.approx(np.log(2), abs=1e-3)


def test_files(study):
    results = study_report.write(str(study))
    assert json.loads((study / "results.json").read_text()) == results
    names = ("loss.png", "ratio.png", "specialisation-seed0.png", "routers.png")
    for name in names:
        assert (study / name).read_bytes().startswith(b"\x89PNG")


def test_one_arm_alone(study):
    for job in (study / "arms").glob("[!t]*"):
        (job / "ends.json").unlink()  # not done yet
    results = study_report.write(str(study))
    assert [row["arm"] for row in results["arms"]] == ["top_2"]
    assert results["main"] == results["others"] == results["domains"] == []


def test_small_batches_by_rows(tmp_path):
    statistics = {
        f"routing/{name}": [value, value / 2]
        for name, value in (
            ("dropped_fraction", 0.2),
            ("max_mean_load", 3.0),
            ("dead_expert_fraction", 0.5),
            ("load_balancing_loss", 1.25),
        )
    }
    planted = curve([40, 80], [5.0, 4.0], 0.1) | statistics
    # The busiest expert has three quarters, of a mean of a half.
    ends = {"a": {"loss": 4.0, "load": {"decoder_layer_0": [0.75, 0.25]}}}
    write_arm(tmp_path, "batch_4", 0, planted, ends)
    (row,) = study_report.write(str(tmp_path))["small batches"]
    assert row["rows"] == 320 and row["steps"] == 80
    assert row["dropped"] == 0.1 and row["held-out loss"] == 4.0
    assert row["max over mean load, of a step"] == 1.5
    assert row["max over mean load, of all domains"] == 1.5
    assert row["CPU ms a row"] == 25.0
