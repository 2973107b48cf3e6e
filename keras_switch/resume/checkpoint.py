"""A callback with which training goes on where it was killed."""

import concurrent.futures
import logging
import os
import sys
from typing import Any

import keras
import numpy as np

from keras_switch.files import CheckpointError
from keras_switch.ops.random_state import random_state, set_random_state
from keras_switch.ops.state import process_count, synchronize
from keras_switch.resume import identity, neighbours, state
from keras_switch.resume.data_position import StepData, Steps, source_of
from keras_switch.resume.pieces import Pieces
from keras_switch.resume.signals import StopSignals
from keras_switch.resume.store import CheckpointStore


class ResumableCheckpoint(keras.callbacks.Callback):
    """Saves everything that training needs, and goes on exactly there.

    Run the same program again, after whatever ended it: it goes on from the
    newest good checkpoint, and ends with the same bits as a run that nothing
    ended, on the same devices and with the same package versions. Saved are
    the weights, the optimizer, the metrics of the epoch, the states of all
    seed generators, the place in the data and in the epoch, and what the other
    callbacks remember (`History`, `EarlyStopping` and the others of Keras;
    yours, if it has `get_state()` and `set_state(state)`).

    A checkpoint is whole or absent, whatever happens while it is written, and
    carries digests; a damaged one is moved aside with a warning, and the one
    before it used. A state with NaN or infinity is not saved. Writing goes on
    in a thread of its own while training does.

    SIGTERM and SIGINT end training after the step in progress (and after an
    evaluation in progress): the state is saved and the process exits with
    code 75, on which a supervisor starts the same program again.

    A run into this folder with another model, optimizer or data is refused,
    with what differs. A run that was complete trains no more: `fit` restores
    its end and returns.

    Args:
        directory: Folder of the checkpoints of this run, and of no other.
        data: What is trained on; then give `checkpoint.dataset()` to `fit`,
            with `steps_per_epoch`. A `keras_switch.data.Pipeline`, any object
            with its `dataset(start_step)` and `fingerprint()`, or a
            `grain.IterDataset`. `None` is for data in arrays and whatever
            else Keras takes: nobody can tell its place within an epoch, so
            checkpoints are taken between epochs only, and a run that ended
            within an epoch begins that epoch again. It is then exact only if
            every epoch has the same batches in the same order
            (`shuffle=False`); the order that `fit` draws with `shuffle=True`
            is not part of the state.
        save_every: int, steps from one checkpoint to the next. The last state
            is saved too.
        keep: int, how many checkpoints are kept.

    Raises:
        ValueError: for a bad argument; and when training starts, for a model
            that is not built, or data that is not from `dataset()`.
        keras_switch.files.CheckpointError: when training starts, if something
            changed, or if there are checkpoints but no good one.
        SystemExit: from `fit`, with code 75, after a signal.

    Example:

    ```python
    checkpoint = keras_switch.ResumableCheckpoint("runs/a", data=pipeline)
    model.fit(
        checkpoint.dataset(),
        steps_per_epoch=1000,
        epochs=50,
        callbacks=[checkpoint],
    )
    ```
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        data: Steps | Any = None,
        save_every: int = 200,
        keep: int = 2,
    ) -> None:
        super().__init__()
        for name, value in (("save_every", save_every), ("keep", keep)):
            if type(value) is not int or value < 1:
                raise ValueError(
                    f"{name} must be an int at least 1; received "
                    f"{name}={value!r}."
                )
        self.save_every = save_every
        self._source = source_of(data)
        self._store = CheckpointStore(directory, keep)
        self._signals = StopSignals()
        # Found by `dataset`, used by the next `fit`.
        self._newest: Any = _UNKNOWN

    def dataset(self) -> Any:
        """The batches from the newest checkpoint on, for the next `fit`.

        Returns:
            What `data.dataset(start_step)` returns, or a
            `grain.IterDataset`.

        Raises:
            ValueError: if no `data` was given.
        """
        if self._source is None:
            raise ValueError(
                "dataset() needs ResumableCheckpoint(data=...); received "
                "data=None."
            )
        self._newest = newest = self._store.newest()
        if newest is None:
            return self._source.dataset(0, None)
        place = newest.record["data_state"]
        return self._source.dataset(newest.step, place)

    def on_train_begin(self, logs: Any = None) -> None:
        if self._source is None:
            self._newest = self._store.newest()
        elif self._newest is _UNKNOWN or self.params["steps"] is None:
            raise ValueError(
                "ResumableCheckpoint with data=... needs its own batches and "
                "the length of an epoch: model.fit(checkpoint.dataset(), "
                "steps_per_epoch=...)."
            )
        self._store.begin()
        self._neighbours = neighbours.neighbours(self)
        neighbours.warn_of_unknown(self._neighbours)
        self._prepare()
        self._resume()
        self._signals.install(self.model)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.model._initial_epoch = None
        self._epoch, self._done = epoch, self._resumed_at
        self._ran = True

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        # Every callback is done with the step before and with the beginning
        # of the epoch, and on JAX the trainer has not yet taken the variables
        # away: the one moment to save at and to resume to.
        self._finish_resuming()
        self._done = self._resumed_at + batch
        self._raise_error_of_writer()
        if self._resumed_at:
            self._end_epoch_where_it_would()
        self._signals.poll(self.step)
        self._save_if_due()
        if self._signals.due:
            self._stop()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._first_step += self._done + self.model.steps_per_execution
        self._epoch, self._done, self._resumed_at = epoch + 1, 0, 0
        if self.model.stop_training is _END_OF_EPOCH:
            self.model.stop_training = False

    def on_train_end(self, logs: Any = None) -> None:
        self.model._initial_epoch = None
        if self._ran:
            self._save(stopped=bool(self.model.stop_training))
        else:
            self._finish_resuming()
        self._signals.poll(0)
        self._stop()

    @property
    def step(self) -> int:
        """Steps done in this run, those before it was resumed included."""
        return self._first_step + self._done

    def batch(self, step: int) -> Any:
        """The batch of a step (from 0), to look at it again.

        Args:
            step: A non-negative integer.

        Returns:
            What the data gives; `None` for data without random access.
        """
        if not isinstance(self._source, StepData):
            return None
        return next(iter(self._source.dataset(step, None)))

    def restore_newest(self) -> int:
        """Sets a model that is training back to the newest checkpoint.

        Weights, optimizer and seed generators go back; the place in the data,
        the epoch and what callbacks remember do not. Call it from another
        callback, between two steps.

        Returns:
            The step of that checkpoint.

        Raises:
            CheckpointError: if there is none.
        """
        self._wait_for_writer()
        newest = self._store.newest()
        if newest is None:
            raise CheckpointError(
                self._store.directory, "checkpoint", "there", "none"
            )
        self._assign(newest.folder, newest.arrays)
        return newest.step

    def _prepare(self):
        """TensorFlow builds in the first step, which is too late."""
        model = self.model
        if self._source is not None and _is_unbuilt(model):
            batch = next(iter(self._source.dataset(0, None)))
            model._symbolic_build(data_batch=batch)
        if not model.built:
            raise ValueError(
                "ResumableCheckpoint needs a built model: call "
                "model.build(input_shape) before fit."
            )
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        self._variables = state.variables_of(model)
        data = self._source.fingerprint() if self._source else None
        self._identity = identity.identity(model, self._variables, data)

    def _resume(self):
        newest = self._newest
        self._newest = _UNKNOWN
        self._writer = concurrent.futures.ThreadPoolExecutor(1)
        self._writing = None
        self._ran = False
        self._late = None
        self._epoch = self._done = self._resumed_at = self._first_step = 0
        self._saved_step = 0
        if newest is None:
            return
        record = newest.record
        identity.check(newest.folder, record["identity"], self._identity)
        arrays = newest.arrays
        self._assign(newest.folder, arrays)
        self._late = (newest.folder, record, arrays)
        self._epoch, self._resumed_at = record["epoch"], record["batch"]
        self._saved_step = newest.step
        self._first_step = newest.step - self._resumed_at
        # `fit` reads this once its callbacks have begun.
        self.model._initial_epoch = self._epoch
        if record["stopped"]:
            self.model._initial_epoch = sys.maxsize
        self._remind()
        _log.info("resumed at step %d from %s", newest.step, newest.folder)
        if record["stopped"]:
            _log.info("training had ended there; nothing is left to do")

    def _assign(self, folder, arrays):
        """All but the metrics, which the epoch resets as it begins."""
        synchronize(self.model)
        parts = (state.MODEL, state.OPTIMIZER, state.SEEDS)
        state.assign(folder, self._variables, arrays, parts)
        _set_random_state(arrays)

    def _remind(self):
        _, record, arrays = self._late
        neighbours.remind(self._neighbours, record["callbacks"], arrays)

    def _finish_resuming(self):
        """What the beginnings of training and of the epoch have undone."""
        if self._late is None:
            return
        self._remind()
        folder, _, arrays = self._late
        self._late = None
        # A schedule by epochs sets the learning rate as an epoch begins.
        parts = [state.OPTIMIZER]
        if self._resumed_at:
            parts.append(state.METRICS)
        state.assign(folder, self._variables, arrays, parts)
        _set_random_state(arrays)

    def _end_epoch_where_it_would(self):
        """The epoch was begun before: `fit` would make it too long."""
        steps = self.params["steps"]
        last = self._done + self.model.steps_per_execution >= steps
        if last and not self.model.stop_training:
            self.model.stop_training = _END_OF_EPOCH

    def _save_if_due(self):
        told = self._signals.due
        if self._source is None and self._done:
            return
        # The one of several processes that writes must not skip what the
        # others do not.
        busy = self._writing is not None and process_count() == 1
        if busy and not told:
            return
        new = self.step - self._saved_step
        if new >= self.save_every or (told and new):
            self._save(stopped=False)

    def _save(self, stopped):
        self._wait_for_writer()
        # On TensorFlow the first step makes metrics.
        self._variables = state.variables_of(self.model)
        arrays = state.copy_to_host(self.model, self._variables)
        arrays |= {f"{_RANDOM}{n}": a for n, a in random_state().items()}
        place = self._source.state(self.step) if self._source else None
        record = {
            "epoch": self._epoch,
            "batch": self._done,
            "stopped": stopped,
            "identity": self._identity,
            "data_state": place,
            "callbacks": neighbours.states_of(self._neighbours, arrays),
        }
        self._saved_step = self.step
        self._writing = self._writer.submit(
            _write, self._store, self.step, record, arrays
        )

    def _raise_error_of_writer(self):
        if self._writing is not None and self._writing.done():
            self._wait_for_writer()

    def _wait_for_writer(self):
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _stop(self):
        try:
            self._wait_for_writer()
        finally:
            self._writer.shutdown()
            self._signals.restore()
        self._signals.exit_if_received()


class _EndOfEpoch:
    """True, but told apart from the True of a callback that ends training."""


_END_OF_EPOCH = _EndOfEpoch()
_UNKNOWN = object()
_RANDOM = "random/"
_log = logging.getLogger(__name__)


def _set_random_state(arrays):
    set_random_state(
        {
            name.removeprefix(_RANDOM): array
            for name, array in arrays.items()
            if name.startswith(_RANDOM)
        }
    )


def _is_unbuilt(model):
    parts = [*model._flatten_layers(), *model.metrics, model.optimizer]
    return not all(getattr(part, "built", True) for part in parts)


def _write(
    store: CheckpointStore,
    step: int,
    record: dict[str, Any],
    arrays: dict[str, np.ndarray | Pieces],
) -> None:
    """The part that runs beside training."""
    try:
        store.write(step, record, arrays, state.non_finite(arrays))
    except OSError as error:
        error.add_note(
            f"The checkpoint of step {step} was not written; the one before it "
            "is kept."
        )
        raise
