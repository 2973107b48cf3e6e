"""Training that was ended and resumed equals training that was not."""

import csv
import os
import signal
import threading

import keras
import numpy as np
import pytest

from keras_switch.files import CheckpointError
from keras_switch.resume import EXIT_CODE, ResumableCheckpoint
from tests.resume.training import (
    EPOCHS,
    STEPS,
    Crash,
    CrashAt,
    Numbers,
    digest,
    fit,
    make_model,
)


class Waiting(ResumableCheckpoint):
    """Steps are quicker than the writer: which are saved would be chance."""

    def _save(self, stopped):
        super()._save(stopped)
        self._wait_for_writer()


def checkpoint(folder, kind=Waiting, **arguments):
    return kind(folder, **{"data": Numbers(), "save_every": 1, **arguments})


def steps_in(folder):
    return sorted(int(path.name[5:]) for path in folder.glob("step-*"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Digest and history of a run that nothing ended."""
    folder = tmp_path_factory.mktemp("whole")
    model, history = fit(checkpoint(folder))
    assert steps_in(folder)[-1] == STEPS * EPOCHS
    return digest(model), history


@pytest.mark.parametrize(
    "step, moment",
    [
        (0, "on_train_batch_end"),
        (2, "on_train_batch_begin"),
        (STEPS - 1, "on_train_batch_end"),
        (STEPS, "on_train_batch_end"),
        (1, "on_test_begin"),
        (1, "on_epoch_end"),
        (1, "on_epoch_begin"),
        (0, "on_train_end"),
    ],
)
def test_ends_with_the_bits_of_a_run_that_nothing_ended(
    step, moment, whole, tmp_path
):
    with pytest.raises(Crash):
        fit(checkpoint(tmp_path), CrashAt(step, moment))
    model, history = fit(checkpoint(tmp_path))
    assert (digest(model), history) == whole


@pytest.mark.parametrize("save_every", [3, 100])
def test_steps_since_the_checkpoint_are_done_again(save_every, whole, tmp_path):
    with pytest.raises(Crash):
        fit(checkpoint(tmp_path, save_every=save_every), CrashAt(6))
    model, history = fit(checkpoint(tmp_path, save_every=save_every))
    assert (digest(model), history) == whole


def test_many_ends_in_one_run_of_compiled_steps(tmp_path):
    def train(folder, *callbacks):
        model = make_model(compiled=True)
        return fit(checkpoint(folder), *callbacks, model=model)

    for crash in (2, 5):
        with pytest.raises(Crash):
            train(tmp_path / "ended", CrashAt(crash))
    ended, whole = (train(tmp_path / name) for name in ("ended", "whole"))
    assert digest(ended[0]) == digest(whole[0])
    assert ended[1] == whole[1]


def test_without_checkpoints_the_bits_are_the_same(whole):
    model = make_model()
    x, y = Numbers(99)[0]
    history = model.fit(
        Numbers().dataset(),
        steps_per_epoch=STEPS,
        epochs=EPOCHS,
        validation_data=(x, y),
        verbose=0,
    ).history
    assert (digest(model), history) == whole


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_training_after_the_step(number, whole, tmp_path):
    class Tell(CrashAt):
        def _count(self, *args, **kwargs):
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as exit:
        fit(checkpoint(tmp_path, save_every=100), Tell(6))
    assert exit.value.code == EXIT_CODE == 75
    assert signal.getsignal(number) is before
    assert steps_in(tmp_path) == [6]
    model, history = fit(checkpoint(tmp_path))
    assert (digest(model), history) == whole


def test_a_signal_in_the_last_step_leaves_a_complete_run(whole, tmp_path):
    class Tell(CrashAt):
        def _count(self, *args, **kwargs):
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit):
        fit(checkpoint(tmp_path), Tell(STEPS * EPOCHS))
    model, history = fit(checkpoint(tmp_path), CrashAt(0))  # no step is left
    assert (digest(model), history) == whole


@pytest.mark.parametrize("last", [True, False])
def test_what_callbacks_remember(last, tmp_path):
    def callbacks(folder):
        return [
            keras.callbacks.EarlyStopping(
                "val_loss", patience=2, restore_best_weights=True
            ),
            keras.callbacks.ReduceLROnPlateau(
                "val_mae", patience=1, min_delta=10.0, factor=0.5
            ),
            keras.callbacks.LearningRateScheduler(lambda _, rate: 0.7 * rate),
            keras.callbacks.CSVLogger(str(folder / "history.csv")),
        ]

    results = []
    for name, crashes in (("whole", []), ("ended", [2, 3, 4, 2])):
        folder = tmp_path / name
        folder.mkdir()
        for crash in crashes:
            with pytest.raises(Crash):
                fit(
                    checkpoint(folder, save_every=2),
                    *callbacks(folder),
                    CrashAt(crash),
                    epochs=6,
                    last=last,
                )
        model, history = fit(
            checkpoint(folder, save_every=2),
            *callbacks(folder),
            epochs=6,
            last=last,
        )
        with open(folder / "history.csv", newline="") as file:
            rows = list(csv.reader(file))
        results.append((digest(model), history, rows))
    assert results[0] == results[1]
    rates = results[0][1]["learning_rate"]
    assert rates[0] > rates[1] > rates[2]


def test_seed_generators_outside_layers_are_resumed(tmp_path):
    class Draw(CrashAt):
        def _count(self, *args, **kwargs):
            self.model.optimizer.generator.next()

    def train(*callbacks):
        model = make_model()
        model.optimizer.generator = keras.random.SeedGenerator(7)
        fit(checkpoint(tmp_path), Draw(0), *callbacks, model=model)
        state = model.optimizer.generator.state
        return keras.ops.convert_to_numpy(state).tolist()

    with pytest.raises(Crash):
        train(CrashAt(6))
    assert train() == [7, STEPS * EPOCHS]


@pytest.mark.parametrize("late", [False, True])
def test_a_complete_run_trains_no_more(whole, tmp_path, late):
    first = checkpoint(tmp_path)
    fit(first)
    model = make_model()
    again = first if late else checkpoint(tmp_path)
    model, history = fit(again, CrashAt(0), model=model)
    assert (digest(model), history) == whole
    assert steps_in(tmp_path)[-1] == STEPS * EPOCHS


def test_more_epochs_go_on_from_the_end(whole, tmp_path):
    fit(checkpoint(tmp_path), epochs=1)
    fit(checkpoint(tmp_path), epochs=2)
    model, history = fit(checkpoint(tmp_path))
    assert (digest(model), history) == whole


def test_a_run_that_a_callback_ended_stays_ended(tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.stop_training = int(self.model.optimizer.iterations) == 6

    with pytest.warns(UserWarning, match="Stop remembers"):
        model, history = fit(checkpoint(tmp_path), _Synchronize(), Stop())
    assert len(history["loss"]) == 2
    again, once_more = fit(checkpoint(tmp_path), CrashAt(0))
    assert (digest(again), once_more) == (digest(model), history)


class _Synchronize(CrashAt):
    """So that the next callback can read the step on JAX."""

    def __init__(self):
        super().__init__(0)

    def _count(self, *args, **kwargs):
        if keras.backend.backend() == "jax":
            self.model.jax_state_sync()


def test_the_end_of_an_interrupted_epoch_does_not_end_training(tmp_path):
    with pytest.raises(Crash):
        fit(checkpoint(tmp_path), CrashAt(1))
    model, history = fit(checkpoint(tmp_path))
    assert model.stop_training is False
    assert len(history["val_loss"]) == EPOCHS


def test_a_state_without_numbers_is_not_saved(tmp_path):
    class Poison(CrashAt):
        def _count(self, *args, **kwargs):
            self.left -= 1
            if self.left == 0:
                _Synchronize._count(self)
                kernel = self.model.layers[0].kernel
                kernel.assign(kernel + np.nan)

    with pytest.warns(UserWarning, match="has NaN or infinity in model/0000"):
        with pytest.raises(Crash):
            fit(checkpoint(tmp_path), Poison(5), CrashAt(9))
    assert steps_in(tmp_path) == [3, 4]


@pytest.mark.parametrize(
    "field, change",
    [
        ("model", {"model": {"units": 9}}),
        ("optimizer", {"model": {"rate": 0.02}}),
        ("data", {"data": Numbers(1)}),
    ],
)
def test_what_has_changed_is_not_resumed(field, change, tmp_path):
    with pytest.raises(Crash):
        fit(checkpoint(tmp_path), CrashAt(2))
    model = make_model(**change.pop("model", {}))
    before = model.get_weights()
    with pytest.raises(CheckpointError, match=f"{field} must be as it was"):
        fit(checkpoint(tmp_path, **change), model=model)
    for weights, now in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(weights, now)


def test_a_damaged_checkpoint_is_moved_aside(whole, tmp_path):
    with pytest.raises(Crash):
        fit(checkpoint(tmp_path), CrashAt(6))
    assert steps_in(tmp_path) == [5, 6]
    record = tmp_path / "step-000000006" / "record.json"
    record.write_text(record.read_text().replace("batch", "catch"))
    with pytest.warns(UserWarning, match="The checkpoint is damaged"):
        model, history = fit(checkpoint(tmp_path))
    assert (digest(model), history) == whole
    assert (tmp_path / "damaged-step-000000006").is_dir()


def test_arrays_are_resumed_at_the_start_of_an_epoch(tmp_path):
    batches = [Numbers()[step] for step in range(4)]
    x, y = (np.concatenate([b[side] for b in batches]) for side in (0, 1))

    def train(folder, *callbacks):
        model = make_model()
        history = model.fit(
            x,
            y,
            batch_size=4,
            epochs=EPOCHS,
            shuffle=False,
            verbose=0,
            callbacks=[
                *callbacks,
                checkpoint(folder, data=None),
            ],
        )
        return digest(model), history.history

    with pytest.raises(Crash):
        train(tmp_path / "ended", CrashAt(6))
    assert steps_in(tmp_path / "ended") == [4]
    assert train(tmp_path / "ended") == train(tmp_path / "whole")


def test_training_does_not_wait_for_the_writer(tmp_path, monkeypatch):
    saver = checkpoint(tmp_path, ResumableCheckpoint)
    write, let_go, begun = saver._store.write, threading.Event(), []

    def slow(step, *arguments):
        begun.append(step)
        let_go.wait()
        return write(step, *arguments)

    class Release(CrashAt):
        def _count(self, *args, **kwargs):
            self.left -= 1
            if self.left == 0:
                assert begun == [1]
                let_go.set()

    monkeypatch.setattr(saver._store, "write", slow)
    fit(saver, Release(7))
    assert steps_in(tmp_path)[-1] == STEPS * EPOCHS


def test_an_error_of_the_writer_ends_training(tmp_path, monkeypatch):
    saver = checkpoint(tmp_path, ResumableCheckpoint)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saver._store, "write", full)
    with pytest.raises(OSError, match="No space left") as error:
        fit(saver)
    assert "checkpoint of step 1 was not written" in error.value.__notes__[0]


def test_restore_newest_brings_back_all_but_the_place(tmp_path):
    seen = []

    class Back(CrashAt):
        def _count(self, *args, **kwargs):
            _Synchronize._count(self)
            seen.append(digest(self.model))
            self.left -= 1
            if self.left == 0:
                assert self.saver.restore_newest() == 4
                seen.append(digest(self.model))

    # Called before the checkpoint at each step, so that step 5 is not saved.
    back = Back(6, "on_train_batch_begin")
    back.saver = saver = checkpoint(tmp_path, save_every=4)
    model, _ = fit(saver, back)
    assert seen[6] == seen[4] != seen[5]
    assert int(model.optimizer.iterations) == STEPS * EPOCHS - 1
    assert saver.step == STEPS * EPOCHS


def test_restore_newest_needs_a_checkpoint(tmp_path):
    class Back(CrashAt):
        def _count(self, *args, **kwargs):
            self.saver.restore_newest()

    back = Back(0, "on_train_batch_begin")
    back.saver = saver = checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="checkpoint must be there"):
        fit(saver, back)


def test_batches_that_are_not_its_own_are_refused(tmp_path):
    with pytest.raises(ValueError, match="needs its own batches"):
        make_model().fit(
            Numbers().dataset(),
            steps_per_epoch=2,
            callbacks=[checkpoint(tmp_path)],
            verbose=0,
        )
    with pytest.raises(ValueError, match="dataset\\(\\) needs"):
        checkpoint(tmp_path, data=None).dataset()


@pytest.mark.parametrize("name", ["save_every", "keep"])
@pytest.mark.parametrize("value", [0, 1.5, True])
def test_numbers_must_be_whole_and_positive(name, value, tmp_path):
    with pytest.raises(ValueError, match=f"{name} must be an int at least 1"):
        ResumableCheckpoint(tmp_path, **{name: value})
