"""Both sides of generation, in this process, at toy sizes."""

import numpy as np
import pytest

from keras_switch_train import generate_speed, generate_worker


@pytest.mark.slow
def test_both_sides_generate_the_same(tmp_path, monkeypatch):
    import keras

    monkeypatch.setenv("KERAS_BACKEND", keras.backend.backend())
    monkeypatch.setattr(generate_speed, "VOCABULARY", 40)
    shape = generate_speed.Shape(2, 8, 16, layers=2)
    generate_speed.write_model(shape, str(tmp_path))
    ids = np.random.default_rng(0).integers(3, 40, (2, 5)).tolist()
    answers = {
        side: generate_worker.make(side, str(tmp_path))(
            encoder_token_ids=ids, new_tokens=3
        )
        for side in ("ours", "transformers")
    }
    generate_speed._check_same(answers)
    assert np.shape(answers["ours"]["token_ids"]) == (2, 4)
    assert answers["ours"]["seconds"] > 0
