"""Parts of pre-training that need no training; a run is in binaries_test."""

import json
import types

import keras
import numpy as np
import pytest
from absl import flags as absl_flags
from absl.testing import flagsaver

from keras_switch import files, models, resume
from keras_switch_train import flags, pretrain
from tests.models import tiny


@pytest.fixture(autouse=True)
def parsed():
    if not absl_flags.FLAGS.is_parsed():
        absl_flags.FLAGS(["test"])
    backend = keras.backend.backend()
    with flagsaver.flagsaver(backend=backend, samples=2, input_length=12):
        yield


@pytest.fixture
def documents():
    words = " ".join(tiny.TEXTS).split()
    return [types.SimpleNamespace(text=" ".join(words[i:])) for i in range(5)]


@pytest.mark.parametrize("input_length", [8, 10, 12, 14, 32])
def test_samples_of_short_rows_have_fewer_blanks(
    input_length, documents, tmp_path
):
    tiny.lm(tiny.preprocessor()).save_to_preset(str(tmp_path / "preset"))
    with flagsaver.flagsaver(input_length=input_length):
        pretrain._show_samples(documents, str(tmp_path))
    lines = (tmp_path / "samples.txt").read_text().splitlines()
    truths = [line for line in lines if line.startswith("truth: ")]
    blanks = {8: 1, 10: 2, 12: 2, 14: 3, 32: 3}[input_length]
    assert [line.count("[") for line in truths] == [blanks] * 2


def test_samples_are_of_the_dtype_of_the_run(documents, tmp_path, monkeypatch):
    lm = tiny.lm(tiny.preprocessor(), dtype="mixed_bfloat16")
    lm.save_to_preset(str(tmp_path / "preset"))
    load, seen = models.SwitchSeq2SeqLM.from_preset, []

    def from_preset(*args, **kwargs):
        seen.append(load(*args, **kwargs))
        return seen[0]

    monkeypatch.setattr(models.SwitchSeq2SeqLM, "from_preset", from_preset)
    with flagsaver.flagsaver(dtype="mixed_bfloat16"):
        pretrain._show_samples(documents, str(tmp_path))
    assert seen[0].backbone.dtype_policy.name == "mixed_bfloat16"
    assert (tmp_path / "samples.txt").exists()


@pytest.mark.parametrize("loss, weight", [(np.nan, 0.0), (2.0, np.inf)])
def test_a_model_that_diverged_is_refused(loss, weight):
    lm = tiny.lm()
    history = {"loss": [3.0, 2.0], "step": [10, 14]}
    pretrain._refuse_divergence(lm, history)
    scale = lm.backbone.encoder_layer_norm.scale
    scale.assign(scale + weight)
    history["loss"][-1] = loss
    with pytest.raises(flags.UsageError, match="diverged within 14 steps"):
        pretrain._refuse_divergence(lm, history)


def test_the_code_that_asks_for_another_start_is_the_library_s():
    assert flags._AGAIN == resume.EXIT_CODE


def test_a_run_begun_with_other_flags_is_refused(tmp_path):
    checkpoint = types.SimpleNamespace(dataset=lambda: None)

    def fit(*args, **kwargs):
        raise files.CheckpointError("a", "model", "as it was", "another")

    with pytest.raises(flags.UsageError, match="--workdir: a: model must be"):
        pretrain._fit(
            types.SimpleNamespace(fit=fit),
            types.SimpleNamespace(dataset=lambda: None),
            checkpoint,
            [],
        )


def test_history_is_whole_or_absent(tmp_path, broken_rename):
    history = {"step": [1, 2], "loss": [3.0, 2.0], "val_loss": [3.0, 2.5]}
    path = tmp_path / "history.json"
    path.write_text("old")
    with broken_rename():
        pretrain._write_history(history, str(tmp_path))
    assert path.read_text() == "old"
    pretrain._write_history(history, str(tmp_path))
    assert json.loads(path.read_text())["history"] == history
    assert {p.name for p in tmp_path.iterdir()} == {"history.json", "loss.png"}


def test_samples_are_whole_or_absent(documents, tmp_path, broken_rename):
    tiny.lm(tiny.preprocessor()).save_to_preset(str(tmp_path / "preset"))
    path = tmp_path / "samples.txt"
    path.write_text("old")
    with broken_rename():
        pretrain._show_samples(documents, str(tmp_path))
    assert path.read_text() == "old"
