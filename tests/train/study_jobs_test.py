"""What becomes of arms that cannot be trained."""

import json

import pytest

from keras_switch_train import flags, pool, study_jobs


def test_an_arm_that_was_begun_with_other_settings(tmp_path):
    job = tmp_path / "dense-seed0"
    study_jobs.write_arm(str(job), {"steps": 1, "seed": 0})
    study_jobs.write_arm(str(job), {"steps": 1, "seed": 0})
    with pytest.raises(flags.UsageError, match="other settings, in steps"):
        study_jobs.write_arm(str(job), {"steps": 2, "seed": 0})
    assert json.loads((job / "arm.json").read_text())["steps"] == 1


def test_an_arm_that_fails(tmp_path, monkeypatch):
    class Failed:
        def __init__(self, folder, command, core):
            self.code = 3

        def ended(self):
            return True

        def tail(self):
            return "the last lines of its log"

    monkeypatch.setattr(pool, "Process", Failed)
    done = tmp_path / "done"
    done.mkdir()
    (done / "ends.json").write_text("{}")
    study_jobs.check(study_jobs.run([str(done)]))  # is not trained again
    failed = study_jobs.run([str(tmp_path / "arm"), str(done)])
    assert len(failed) == 1
    with pytest.raises(RuntimeError, match="must be trained.*\n.*last lines"):
        study_jobs.check(failed)
