"""A decoder-only model resumes like any other."""

import grain
import keras
import numpy as np
import pytest

import keras_switch
from tests.models import tiny
from tests.resume.training import Crash, CrashAt, Numbers, digest

STEPS = 3


class Texts(Numbers):
    """Packed rows, each a function of the seed and the step."""

    def __getitem__(self, step):
        rng = np.random.default_rng((self.seed, step))
        ids = rng.integers(3, tiny.VOCABULARY, (2, 6)).astype("int32")
        segments = np.array([[1, 1, 1, 2, 2, 0], [1] * 6], "int32")
        x = {"token_ids": ids, "padding_mask": segments}
        return x, np.roll(ids, -1, axis=1), (segments > 0).astype("float32")

    def dataset(self, start_step=0):
        steps = range(start_step, len(self))
        source = grain.MapDataset.source(steps).map(self.__getitem__)
        return source.to_iter_dataset()


def train(folder, *callbacks):
    keras.utils.set_random_seed(3)
    # Jitter and dropout draw, so the random state must come back, too.
    router = keras_switch.TopKRouter(k=2)
    lm = tiny.causal_lm(router=router, dropout=0.1)
    lm.compile()
    checkpoint = keras_switch.ResumableCheckpoint(
        folder, data=Texts(), save_every=1
    )
    lm.fit(
        checkpoint.dataset(),
        steps_per_epoch=STEPS,
        epochs=2,
        callbacks=[*callbacks, checkpoint],
        verbose=0,
    )
    return digest(lm)


def test_it_ends_with_the_bits_of_a_run_that_nothing_ended(tmp_path):
    whole = train(tmp_path / "whole")
    with pytest.raises(Crash):
        train(tmp_path / "ended", CrashAt(STEPS + 1))
    assert train(tmp_path / "ended") == whole
