"""One side's profile, in this process."""

import keras
import pytest

from keras_switch_train import layer_speed, profile_worker

CELL = layer_speed.Cell(2, 64, 32, 96, eval_capacity_factor=None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("profile"))
    layer_speed.write(CELL, path)
    return path


@pytest.mark.parametrize("side", ["ours", "transformers"])
def test_products_of_a_training_call(side, folder):
    tracer = "torch" if side == "transformers" else keras.backend.backend()
    answer = profile_worker.make(side, folder, tracer)
    found = answer(do="training", times=2)
    count = sum(
        count for group, *_, count in found["operations"] if group == "product"
    )
    # Of wi, wo and the router: forward, and for two gradients.
    assert count >= 9
    backward = [row for row in found["operations"] if "backward" in row[2]]
    assert "product" in {row[0] for row in backward}


def test_a_call_that_a_side_cannot_do(folder):
    tracer = keras.backend.backend()
    answer = profile_worker.make("keras_hub", folder, tracer)
    with pytest.raises(
        ValueError, match="one of forward for keras_hub; .*'tra"
    ):
        answer(do="training", times=1)
