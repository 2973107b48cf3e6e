"""Batches of examples: endless to train on, a fixed set to validate on."""

import hashlib
import json
from collections.abc import Sequence

import numpy as np

from keras_switch.data.checks import check_integer
from keras_switch.data.mixture import Mixture
from keras_switch.tasks.encoding import Encoded, Shape, training_arrays

# Part of the fingerprint: counts up when the same settings give new batches.
_VERSION = 1
_READ_AHEAD = 4


class TaskBatches:
    """Endless training batches of one task or a mixture, one example a row.

    `batch(step)` is a pure function of the examples, the settings, the seed
    and the step, so that a run resumes at a step without any saved state.

    Args:
        encoded: the training side of each task, see `encode`.
        shape: how rows are laid out; the one of `encode`.
        batch_size: rows of a batch.
        seed: a non-negative integer.
        temperature: see `mixing_rates`.

    Raises:
        ValueError: if an argument is not as above.

    Example:
        batches = TaskBatches([encoded], shape, batch_size=32)
        model.fit(batches.dataset(), steps_per_epoch=100)
    """

    def __init__(
        self,
        encoded: Sequence[Encoded],
        shape: Shape,
        batch_size: int = 32,
        seed: int = 0,
        temperature: float = 1.0,
    ) -> None:
        check_integer("batch_size", batch_size, 1)
        sizes = [len(task.inputs) for task in encoded]
        self.mixture = Mixture(sizes, temperature, seed)
        self.batch_size = batch_size
        self.shape = shape
        self._encoded = list(encoded)
        self._temperature = temperature

    def batch(
        self, step: int
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
        """The batch of a step.

        Args:
            step: a non-negative integer.

        Returns:
            `(x, y, sample_weight)`, see `training_arrays`.

        Raises:
            ValueError: if the step is negative.
        """
        check_integer("step", step, 0)
        rows = self.mixture.rows(int(step) * self.batch_size, self.batch_size)
        pairs = [
            (self._encoded[task].inputs[i], self._encoded[task].targets[i])
            for task, i in rows.tolist()
        ]
        return training_arrays(*zip(*pairs, strict=True), self.shape)

    def dataset(self, start_step: int = 0):
        """The batches from a step on, without end, read ahead in a thread.

        Args:
            start_step: the step of the first batch.

        Returns:
            A `grain.IterDataset` that `fit` takes with `steps_per_epoch`.

        Raises:
            ValueError: if `start_step` is negative.
        """
        import grain

        check_integer("start_step", start_step, 0)
        options = grain.ReadOptions(
            num_threads=1, prefetch_buffer_size=_READ_AHEAD
        )
        steps = _Steps(self, start_step)
        return grain.MapDataset.source(steps).to_iter_dataset(options)

    def fingerprint(self) -> str:
        """A hex digest of the examples and all settings."""
        return _fingerprint(
            self._encoded,
            shape=self.shape,
            batch_size=self.batch_size,
            seed=self.mixture.seed,
            temperature=float(self._temperature),
        )


class _Steps:
    """The batches from a step on, as grain wants to read them."""

    def __init__(self, batches, start_step):
        self._batches = batches
        self._start_step = start_step

    def __len__(self):
        return 2**40

    def __getitem__(self, index):
        return self._batches.batch(self._start_step + index)

    def __repr__(self):
        return f"batches from step {self._start_step}"


class TaskHeldOut:
    """A fixed set of batches; the last is filled up with rows of weight 0.

    Args:
        encoded: examples of each task; they come one task after the other.
        shape: how rows are laid out.
        batch_size: rows of a batch.

    Raises:
        ValueError: if there is no example.
    """

    def __init__(
        self, encoded: Sequence[Encoded], shape: Shape, batch_size: int = 32
    ) -> None:
        check_integer("batch_size", batch_size, 1)
        self._inputs = [ids for task in encoded for ids in task.inputs]
        self._targets = [ids for task in encoded for ids in task.targets]
        if not self._inputs:
            raise ValueError("encoded must hold an example; received none.")
        self.batch_size = batch_size
        self.shape = shape

    def __len__(self):
        return -(-len(self._inputs) // self.batch_size)

    def __getitem__(self, index):
        if not 0 <= index < len(self):
            raise IndexError(
                f"index must be from 0 to {len(self) - 1}; received {index}."
            )
        part = slice(index * self.batch_size, (index + 1) * self.batch_size)
        inputs, targets = self._inputs[part], self._targets[part]
        nothing = [np.zeros(0, np.int32)] * (self.batch_size - len(inputs))
        return training_arrays(
            [*inputs, *nothing], [*targets, *nothing], self.shape
        )

    def dataset(self):
        """The set for `evaluate` and for `fit`'s `validation_data`."""
        import grain

        return grain.MapDataset.source(self)


def _fingerprint(encoded, **settings):
    digest = hashlib.sha256()
    text = json.dumps({"version": _VERSION, **settings}, sort_keys=True)
    digest.update(text.encode())
    for task in encoded:
        digest.update(f"task of {len(task.inputs)}".encode())
        for pair in zip(task.inputs, task.targets, strict=True):
            for ids in pair:
                digest.update(len(ids).to_bytes(8, "big"))
                digest.update(ids.tobytes())
    return digest.hexdigest()
