"""The rows of each batch that one of several processes trains on."""

from typing import Any

import numpy as np

from keras_switch.data.checks import check_integer


class Share:
    """A part of each batch of a `Pipeline` or of `HeldOut`.

    The shares side by side, in the order of their index, are the batch: a run
    of several processes sees what a run of one does, and one may go on where
    the other stopped. Each process makes the whole batch and keeps its rows,
    because what is random in a row depends on the batch.

    Args:
        source: a `Pipeline` or `HeldOut`.
        index: which part, from 0.
        count: of how many; it must divide the batch.

    Raises:
        ValueError: if the rows of a batch cannot be shared evenly.

    Example:
        share = keras_switch.data.Share(pipeline, process_id, num_processes)
        model.fit(share.dataset(), steps_per_epoch=100)
    """

    def __init__(self, source: Any, index: int, count: int):
        check_integer("count", count, 1)
        check_integer("index", index, 0)
        if index >= count:
            raise ValueError(
                f"index must be below count={count}; received {index}."
            )
        if source.batch_size % count:
            raise ValueError(
                f"batch_size must be a multiple of {count}, the shares of a "
                f"batch; received {source.batch_size}."
            )
        self._source = source
        self._index = index
        self.batch_size = source.batch_size // count

    def __len__(self):
        return len(self._source)

    def batch(self, step: int) -> tuple[dict, np.ndarray, np.ndarray]:
        """This share of a batch.

        Args:
            step: of the batch.

        Returns:
            `(x, y, sample_weight)`, see `Pipeline.batch`.
        """
        return self._share(self._source.batch(step))

    __getitem__ = batch

    def _rows(self, array):
        start = self._index * self.batch_size
        return array[start : start + self.batch_size]

    def dataset(self, *args: Any, **kwargs: Any) -> Any:
        """What the source's `dataset` returns, with this share of batches."""
        return self._source.dataset(*args, **kwargs).map(self._share)

    def _share(self, batch):
        x, y, weight = batch
        x = {name: self._rows(array) for name, array in x.items()}
        return x, self._rows(y), self._rows(weight)

    def fingerprint(self) -> str:
        """That of the source: the shares together are the same data."""
        return self._source.fingerprint()
