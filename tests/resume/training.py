"""A small training, its data, and ways to end it."""

import hashlib

import grain
import keras
import numpy as np

STEPS, EPOCHS = 4, 3


class Crash(Exception):
    """Stands for the end of the process."""


class CrashAt(keras.callbacks.Callback):
    """Ends training at a step (from 0), at a moment of it."""

    def __init__(self, step, moment="on_train_batch_end"):
        super().__init__()
        self.left = step
        setattr(self, moment, self._count)

    def get_state(self):
        return None

    def set_state(self, state):
        pass

    def _count(self, *args, **kwargs):
        self.left -= 1
        if self.left < 0:
            raise Crash


class Numbers:
    """Random batches, each a function of the seed and the step."""

    def __init__(self, seed=0):
        self.seed = seed

    def __len__(self):
        return 2**20

    def __getitem__(self, step):
        rng = np.random.default_rng((self.seed, step))
        x = rng.normal(size=(4, 3)).astype("float32")
        return x, x.sum(axis=-1, keepdims=True)

    def dataset(self, start_step=0):
        steps = range(start_step, len(self))
        return (
            grain.MapDataset.source(steps)
            .map(self.__getitem__)
            .to_iter_dataset()
        )

    def fingerprint(self):
        return str(self.seed)


def make_model(units=8, rate=0.01, compiled=False):
    """With dropout, and a metric besides the loss.

    Steps as small as these run eagerly in less time than they compile.
    """
    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(units),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(1),
        ]
    )
    model.compile("adam", "mse", metrics=["mae"], run_eagerly=not compiled)
    model.optimizer.learning_rate = rate
    return model


def fit(checkpoint, *callbacks, model=None, epochs=EPOCHS, last=True):
    """Trains as a program would that was started anew.

    Args:
        last: Whether the checkpoint is the last callback, or else the first.

    Returns:
        The model and its history.
    """
    model = model or make_model()
    x, y = Numbers(99)[0]
    history = model.fit(
        checkpoint.dataset(),
        steps_per_epoch=STEPS,
        epochs=epochs,
        validation_data=(x, y),
        callbacks=[*callbacks, checkpoint]
        if last
        else [checkpoint, *callbacks],
        verbose=0,
    )
    return model, history.history


def digest(model):
    """Of every bit of the model's and the optimizer's state."""
    variables = [*model.variables, *model.optimizer.variables]
    content = hashlib.sha256()
    for variable in variables:
        array = keras.ops.convert_to_numpy(variable.value)
        content.update(np.ascontiguousarray(array).tobytes())
    return content.hexdigest()
