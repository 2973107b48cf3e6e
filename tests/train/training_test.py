"""What pre-training and fine-tuning share; runs are in binaries_test."""

import json
import types

import numpy as np
import pytest
from absl import flags as absl_flags
from absl.testing import flagsaver

from keras_switch import analysis, files
from keras_switch_train import flags, training
from tests.models import tiny


@pytest.fixture(autouse=True)
def parsed():
    if not absl_flags.FLAGS.is_parsed():
        absl_flags.FLAGS(["test"])


@pytest.mark.parametrize("loss, weight", [(np.nan, 0.0), (2.0, np.inf)])
def test_a_model_that_diverged_is_refused(loss, weight):
    lm = tiny.lm()
    history = {"loss": [3.0, 2.0], "step": [10, 14]}
    training.refuse_divergence(lm, history, training.CLIP_NORM)
    scale = lm.backbone.encoder_layer_norm.scale
    scale.assign(scale + weight)
    history["loss"][-1] = loss
    with pytest.raises(flags.UsageError, match="diverged within 14 steps"):
        training.refuse_divergence(lm, history, training.CLIP_NORM)


def test_a_run_begun_with_other_flags_is_refused():
    checkpoint = types.SimpleNamespace(dataset=lambda: None)

    def fit(*args, **kwargs):
        raise files.CheckpointError("a", "model", "as it was", "another")

    with pytest.raises(flags.UsageError, match="--workdir: a: model must be"):
        training.fit(
            types.SimpleNamespace(fit=fit),
            types.SimpleNamespace(dataset=lambda: None),
            checkpoint,
            [],
        )


@pytest.mark.any_backend
def test_the_balance_loss_reaches_the_routers():
    backbone = tiny.backbone()
    layers = analysis.sparse_layers(backbone).values()
    for given, wanted in ((None, 0.01), (0.0, 0.0)):
        with flagsaver.flagsaver(balance_loss=given):
            training.set_balance_loss(backbone)
        weights = {x.router.load_balancing_loss_weight for x in layers}
        assert weights == {wanted}


@pytest.mark.any_backend
def test_a_run_needs_a_limit():
    with pytest.raises(absl_flags.IllegalFlagValueError, match="above 0"):
        with flagsaver.flagsaver(minutes=0.0, steps=0):
            pass


def test_history_is_whole_or_absent(tmp_path, broken_rename):
    history = {"step": [1, 2], "loss": [3.0, 2.0], "val_loss": [3.0, 2.5]}
    path = tmp_path / "history.json"
    path.write_text("old")
    with broken_rename():
        training.write_history(history, str(tmp_path))
    assert path.read_text() == "old"
    training.write_history(history, str(tmp_path))
    assert json.loads(path.read_text())["history"] == history
    assert {p.name for p in tmp_path.iterdir()} == {"history.json", "loss.png"}
