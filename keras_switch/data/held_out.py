"""A fixed set of evaluation batches."""

import numpy as np

from keras_switch.data.batches import BatchMaker
from keras_switch.data.checks import check_integer
from keras_switch.data.seeding import (
    HELD_OUT,
    SHUFFLE,
    fingerprint,
    random_generator,
)
from keras_switch.data.tokens import TokenizedCorpus

# Rows whose noise comes from one generator.
_BLOCK = 64


class HeldOut:
    """A fixed, finite set of evaluation batches.

    The rows are shuffled once, so that the first of them are a sample of the
    whole. Neither their order nor their noise depends on the batch size. The
    last batch is filled up with rows of padding of weight 0; nothing is left
    out.

    Args:
        corpus: the held-out `TokenizedCorpus`.
        objective: as in `Pipeline`.
        input_length: as in `Pipeline`.
        target_length: as in `Pipeline`.
        batch_size: rows of a batch.
        seed: seed of order and noise.
        packing: as in `Pipeline`.
        max_rows: at most this many rows; None = all.

    Raises:
        ValueError: as `Pipeline`.

    Example:
        held_out = keras_switch.data.HeldOut(corpus, objective, 256)
        model.evaluate(held_out.dataset())
    """

    def __init__(
        self,
        corpus: TokenizedCorpus,
        objective,
        input_length: int,
        target_length: int | None = None,
        batch_size: int = 32,
        seed: int = 0,
        packing: str = "segments",
        max_rows: int | None = None,
    ):
        check_integer("batch_size", batch_size, 1)
        check_integer("seed", seed, 0)
        if max_rows is not None:
            check_integer("max_rows", max_rows, 1)
        self._maker = BatchMaker(
            corpus, objective, input_length, target_length, packing
        )
        self.batch_size = batch_size
        self.seed = seed
        all_rows = self._maker.num_rows
        self.num_rows = min(max_rows or all_rows, all_rows)
        self._rows = self._make_rows()

    def _make_rows(self):
        keys = random_generator(self.seed, SHUFFLE, 0).random(
            self._maker.num_rows
        )
        order = np.argsort(keys, kind="stable")
        blocks = []
        for block in range(-(-self.num_rows // _BLOCK)):
            rows = order[block * _BLOCK : (block + 1) * _BLOCK]
            rng = random_generator(self.seed, HELD_OUT, block)
            blocks.append(self._maker.make(rows, np.zeros_like(rows), rng))
        return _map_arrays(lambda *parts: np.concatenate(parts), *blocks)

    def __len__(self):
        return -(-self.num_rows // self.batch_size)

    def batch(self, index: int) -> tuple[dict, np.ndarray, np.ndarray]:
        """One batch of the set.

        Args:
            index: from 0 to `len(held_out) - 1`.

        Returns:
            `(x, y, sample_weight)`, see `Pipeline.batch`.

        Raises:
            IndexError: if there is no such batch.
        """
        if not 0 <= index < len(self):
            raise IndexError(
                f"index must be from 0 to {len(self) - 1}; received {index}."
            )
        start = index * self.batch_size
        stop = min(start + self.batch_size, self.num_rows)
        missing = self.batch_size - (stop - start)
        return _map_arrays(
            lambda rows: np.pad(rows[start:stop], ((0, missing), (0, 0))),
            self._rows,
        )

    __getitem__ = batch

    def dataset(self):
        """The set for `evaluate` and for `fit`'s `validation_data`.

        Returns:
            A `grain.MapDataset` of `len(self)` batches.
        """
        import grain

        return grain.MapDataset.source(self)

    def fingerprint(self) -> str:
        """A hex digest of the data and all settings.

        Returns:
            Two sets with the same fingerprint are the same.
        """
        return fingerprint(
            self._maker, self.batch_size, self.seed, max_rows=self.num_rows
        )


def _map_arrays(function, *batches):
    """`function` on the like arrays of several batches."""
    x, y, weight = zip(*batches, strict=True)
    x = {name: function(*(part[name] for part in x)) for name in x[0]}
    return x, function(*y), function(*weight)
