"""The study at its smallest, and what it refuses."""

import json
import os

import keras
import pytest
from absl import flags
from absl.testing import flagsaver

from keras_switch_train import flags as shared
from keras_switch_train import study
from tests.train.study_worker_test import corpus as corpus


@pytest.fixture(autouse=True)
def small(corpus, tmp_path, monkeypatch):
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["test"])
    backend = keras.backend.backend()
    # The workers are processes of their own.
    monkeypatch.setenv("KERAS_SWITCH_CACHE", str(corpus / "cache"))
    monkeypatch.setenv("KERAS_BACKEND", backend)
    with flagsaver.flagsaver(
        backend=backend,
        corpus=f"{corpus}/text/*.txt",
        workdir=str(tmp_path),
        vocabulary_size=300,
        smoke=True,
    ):
        yield


@pytest.mark.slow
def test_smoke(tmp_path, monkeypatch):
    # The others: `python train/study.py --smoke`.
    monkeypatch.setattr(study, "_SMOKE_ARMS", ("dense", "switch"))
    study.main()
    results = json.loads((tmp_path / "results.json").read_text())
    assert [row["arm"] for row in results["arms"]] == ["dense", "switch"]
    for row in results["arms"]:
        assert row["steps"] == 6 and row["ms a step"] > 0
    assert results["main"][-1]["dense step"] == 6
    assert (tmp_path / "loss.png").exists()
    before = os.stat(tmp_path / "arms" / "dense-seed0" / "curve.csv").st_mtime
    study.main()  # nothing is trained again
    after = os.stat(tmp_path / "arms" / "dense-seed0" / "curve.csv").st_mtime
    assert before == after


def test_unknown_arm():
    with flagsaver.flagsaver(smoke=False, arms=["main", "dence"]):
        with pytest.raises(shared.UsageError, match="--arms.*'dence'"):
            study.main()


def test_steps_between_evaluations():
    with flagsaver.flagsaver(smoke=False, main_steps=7, interval=2):
        with pytest.raises(shared.UsageError, match="divide.*2 and 7"):
            study.main()
