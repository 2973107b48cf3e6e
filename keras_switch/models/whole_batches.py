"""Batches that a mesh of devices does not divide, filled up with padding."""

import contextlib
import functools
import types
from typing import Any

import keras
from keras import ops

from keras_switch.ops.layout import (
    by_dtensor,
    check_strategy,
    compilable_gradients,
    is_distributed,
    lay_out_variables,
    local_shards,
    step_function,
)
from keras_switch.ops.rows import pad_rows, rows_of


class WholeBatches:
    """Fills up the batches of `fit` and `evaluate`, for a task.

    While a `keras.distribution` is set, rows of padding are added to a batch
    until the devices share it evenly. They have no weight in the loss, in
    weighted metrics and in what routers measure, and the mean of the batches'
    losses counts none of them. Metrics without weights count them.
    """

    _shards = None  # of a batch, while one of the three runs over a mesh
    _predicts = False

    def compile(self, *args: Any, **kwargs: Any) -> None:
        super().compile(*args, **kwargs)
        self._counted = _Counted()
        _weigh_by(self._loss_tracker, self._counted)

    def fit(self, *args: Any, **kwargs: Any) -> Any:
        _check_data("x", args[0] if args else kwargs.get("x"))
        _check_data("validation_data", kwargs.get("validation_data"))
        with self._over_mesh():
            return super().fit(*args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        _check_data("x", args[0] if args else kwargs.get("x"))
        with self._over_mesh():
            return super().evaluate(*args, **kwargs)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        _check_data("x", args[0] if args else kwargs.get("x"))
        with self._over_mesh(predicts=True):
            return super().predict(*args, **kwargs)

    @contextlib.contextmanager
    def _over_mesh(self, predicts=False):
        check_strategy(self)
        # Batches are made by threads, and Keras keeps a distribution to the
        # thread that set it.
        before = self._shards, self._predicts
        self._shards = local_shards() if is_distributed() else None
        self._predicts = predicts
        try:
            self._lay_out()
            yield
        finally:
            self._shards, self._predicts = before

    def _lay_out(self, batch=None):
        """What is made with the optimizer or by `compile` lies on the mesh.

        With a batch, also what Keras would make within the compiled step.
        """
        if not by_dtensor():
            return
        if batch is not None:
            self._symbolic_build(data_batch=batch)
        variables = [*self.variables, *self.metrics_variables]
        optimizer = getattr(self, "optimizer", None)
        if optimizer is not None:
            if not optimizer.built:
                optimizer.build(self.trainable_variables)
            variables += optimizer.variables
        lay_out_variables(variables)

    def make_train_function(self, force: bool = False) -> Any:
        if self.train_function is None or force:
            self.train_function = self._step_function(self.train_step)
        return super().make_train_function()

    def make_test_function(self, force: bool = False) -> Any:
        if self.test_function is None or force:
            self.test_function = self._step_function(self.test_step)
        return super().make_test_function()

    def make_predict_function(self, force: bool = False) -> Any:
        if by_dtensor() and (self.predict_function is None or force):
            step = step_function(
                self.predict_step, self._lay_out, self.run_eagerly, 1
            )
            self.predict_function = functools.partial(_predict, step)
        return super().make_predict_function()

    def _step_function(self, step):
        return step_function(
            step, self._lay_out, self.run_eagerly, self.steps_per_execution
        )

    def preprocess_samples(
        self, x: Any, y: Any = None, sample_weight: Any = None
    ) -> Any:
        samples = super().preprocess_samples(x, y, sample_weight)
        if self._shards is None:
            return samples
        return _filled_up(samples, self._shards, self._predicts)

    def train_step(self, *args: Any) -> Any:
        with self._counted.of(args[-1]), compilable_gradients(self.optimizer):
            return super().train_step(*args)

    def test_step(self, *args: Any) -> Any:
        with self._counted.of(args[-1]):
            return super().test_step(*args)


def _check_data(name, data):
    """Refuses what KerasHub's tasks would take for one array."""
    kind = type(data).__name__
    made = isinstance(data, keras.utils.PyDataset | types.GeneratorType)
    if made or kind == "DataLoader":
        raise ValueError(
            f"{name} must be arrays, texts, a tf.data.Dataset or a grain "
            f"dataset; received a {kind}. Items with an index (a PyDataset, "
            "the dataset of a DataLoader) become a dataset by "
            "grain.MapDataset.source(items).to_iter_dataset(), with .batch(n) "
            "before .to_iter_dataset() where an item is one sample; a "
            "generator does by tf.data.Dataset.from_generator."
        )


def _filled_up(samples, shards, predicts):
    x, y, weight = keras.utils.unpack_x_y_sample_weight(samples)
    rows = rows_of(x)
    if predicts or y is None:
        if rows is not None and rows % shards:
            raise ValueError(
                f"predict must be given batches of a multiple of {shards} "
                f"rows, since {shards} parts of the mesh share one; received "
                f"{rows} rows. fit, evaluate and generate fill them up."
            )
        return samples
    if weight is None:
        # Always, so that the last batch has the same parts as the others.
        weight = pad_rows(y, 1, ones=True)
    return tuple(pad_rows(part, shards) for part in (x, y, weight))


def _predict(step, batches):
    found = [step(iter([batch])) for batch in batches]
    return keras.tree.map_structure(
        lambda *parts: ops.concatenate(parts), *found
    )


class _Counted:
    """How many rows of the present batch are real; `None` if all count."""

    def __init__(self):
        self.rows = None

    def of(self, data):
        """A context in which `rows` are those of a batch."""
        x = keras.utils.unpack_x_y_sample_weight(data)[0]
        self.rows = _real_rows(x) if is_distributed() else None
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.rows = None


def _real_rows(x):
    name = "padding_mask" if "padding_mask" in x else "encoder_padding_mask"
    real = ops.any(ops.cast(x[name], "bool"), axis=-1)
    return ops.sum(ops.cast(real, "float32"))


def _weigh_by(tracker, counted):
    """Keras weighs the loss of a batch by its rows, padding and all."""
    update = tracker.update_state

    def update_state(values, sample_weight=None):
        rows = sample_weight if counted.rows is None else counted.rows
        return update(values, sample_weight=rows)

    tracker.update_state = update_state
