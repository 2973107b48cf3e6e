import json

import keras
import numpy as np
import pytest
from absl import flags as absl_flags
from absl.testing import flagsaver

from keras_switch_train import mixtral_speed


@pytest.fixture(scope="module")
def models():
    keras.utils.set_random_seed(1)
    return mixtral_speed.make(num_experts=4, hidden_dim=16)


def test_both_models_compute_the_same(models):
    x, y = mixtral_speed.batch(3, 9)
    for call in (mixtral_speed.forward, mixtral_speed.train):
        assert mixtral_speed.check(models, call, x, y) < 1e-4


def test_models_that_differ_are_not_timed(models):
    x, y = mixtral_speed.batch(3, 9)
    weight = models["keras_switch"].backbone.layer_norm.scale
    before = np.array(keras.ops.convert_to_numpy(weight))
    weight.assign(before + 1)
    with pytest.raises(RuntimeError, match="must compute the same"):
        mixtral_speed.check(models, mixtral_speed.forward, x, y)
    weight.assign(before)


def test_the_command_prints_and_writes_both_times(capsys, tmp_path):
    if not absl_flags.FLAGS.is_parsed():
        absl_flags.FLAGS(["test"])
    with flagsaver.flagsaver(
        backend=keras.backend.backend(),
        mixtral_experts=4,
        mixtral_hidden_dim=16,
        mixtral_rows=2,
        mixtral_length=8,
        mixtral_repeats=1,
        workdir=str(tmp_path),
    ):
        mixtral_speed.main()
    assert "training step" in capsys.readouterr().out
    rows = json.loads((tmp_path / "mixtral_speed.json").read_text())["rows"]
    assert [row["what"] for row in rows] == ["forward", "training step"]
    assert all(row["ours_ms"] > 0 and row["keras_hub_ms"] > 0 for row in rows)
