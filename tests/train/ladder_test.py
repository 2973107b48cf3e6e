"""The ladder of distillation: its arithmetic, and small students."""

import json
import subprocess
import sys

import keras
import pytest

from keras_switch_train import ladder
from tests.train.distill_test import TRAIN
from tests.train.distill_test import folder as folder

pytestmark = pytest.mark.any_backend


def result(student, accuracy):
    return {
        "held_out_loss": {"student": student, "teacher": 2.0},
        "tasks": {
            name: {"mine": {"metrics": {"accuracy": value}}}
            for name, value in (("student", accuracy), ("teacher", 90.0))
        },
    }


def test_shares_of_the_teachers_gain():
    found = {name: result(3.0, 50.0) for name in ladder.RUNGS}
    found["mixed, started"] = result(2.75, 60.0)
    found["started"] = result(3.5, 40.0)
    rows = {(r["measure"], r["student"]): r for r in ladder.rows_of(found)}
    kept = {place: row["kept"] for place, row in rows.items()}
    assert kept["held-out loss", "alone"] == 0
    assert kept["held-out loss", "mixed, started"] == 25
    assert kept["held-out loss", "started"] == -50
    assert kept["held-out loss", "teacher"] == 100
    # Of a metric, more is better.
    assert kept["mine, accuracy", "mixed, started"] == 25
    assert kept["mine, accuracy", "started"] == -25
    assert rows["mine, accuracy", "teacher"]["value"] == 90


def test_a_teacher_that_is_worse_has_no_gain_to_keep():
    found = {name: result(1.5, 95.0) for name in ladder.RUNGS}
    rows = ladder.rows_of(found)
    assert {r["kept"] for r in rows if r["student"] != "teacher"} == {None}


def run(folder, workdir, *arguments, code=0):
    command = [sys.executable, str(TRAIN / "ladder.py"), "--rung_steps=2"]
    command += [f"--backend={keras.backend.backend()}", "--batch_size=4"]
    command += [f"--teacher={folder}/teacher", f"--preset={folder}/dense"]
    command += ["--input_length=16", f"--workdir={workdir}"]
    command += [f"--corpus={folder}/text/*.txt", "--held_out_batches=1"]
    done = subprocess.run(
        [*command, *arguments], capture_output=True, text=True
    )
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def test_the_command(folder, tmp_path):
    assert "mixed, started" in run(folder, tmp_path)
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    values = {row["student"]: row["value"] for row in rows}
    assert list(values) == [*ladder.RUNGS, "teacher"]
    # Where a student starts, and what it is asked, make a difference.
    assert len(set(values.values())) == 6
    # Done: no student is trained again.
    before = (tmp_path / "alone" / "log.txt").read_text()
    run(folder, tmp_path)
    assert (tmp_path / "alone" / "log.txt").read_text() == before
    said = run(folder, tmp_path, "--seed=3", code=2)
    assert "--workdir: the students in" in said


def test_what_the_rungs_choose_is_refused(folder, tmp_path):
    said = run(folder, tmp_path, "--hard_weight=0.5", code=2)
    assert "does not use --hard_weight" in said
