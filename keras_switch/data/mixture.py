"""Which example each row of a mixture of tasks is."""

import functools
import math
from collections.abc import Sequence

import numpy as np

from keras_switch.data.checks import check_integer
from keras_switch.data.seeding import NOISE, SHUFFLE, random_generator

# Rows in which every task has its share to the nearest row, and at least one.
_BLOCK = 4096


def mixing_rates(sizes: Sequence[int], temperature: float = 1.0) -> np.ndarray:
    """The share of each task: its size to the power of `1 / temperature`.

    Args:
        sizes: examples of each task.
        temperature: at least 1. 1 takes every example as often; the higher,
            the more equal the tasks.

    Returns:
        float64 `[tasks]` with sum 1.

    Raises:
        ValueError: if a size or the temperature is below 1.

    Reference:
        [T5 (Raffel et al., 2020)](https://arxiv.org/abs/1910.10683), section
        3.5.2, temperature-scaled mixing, without its limit of sizes.
    """
    if not (1 <= temperature < math.inf):
        raise ValueError(
            f"temperature must be at least 1 and finite; received "
            f"{temperature}."
        )
    if not len(sizes) or min(sizes) < 1:
        raise ValueError(
            f"sizes must be at least 1, of one task or more; received "
            f"{list(sizes)}."
        )
    # Logarithms, so that no power is out of range.
    logs = np.log(np.asarray(sizes, np.float64)) / temperature
    rates = np.exp(logs - logs.max())
    return rates / rates.sum()


class Mixture:
    """An endless order of the examples of several tasks.

    Which example a row is, depends on the sizes, the temperature, the seed and
    the row's number only. Every example of a task comes once before one comes
    again.

    Args:
        sizes: examples of each task.
        temperature: see `mixing_rates`.
        seed: a non-negative integer.

    Raises:
        ValueError: if an argument is not as above.
    """

    def __init__(
        self, sizes: Sequence[int], temperature: float = 1.0, seed: int = 0
    ) -> None:
        check_integer("seed", seed, 0)
        self.rates = mixing_rates(sizes, temperature)
        self.sizes = tuple(int(size) for size in sizes)
        self.seed = seed
        self._shares = _shares(self.rates)
        # Of the few blocks and epochs in use; not decorated methods, which
        # would keep every mixture alive.
        self._block = functools.lru_cache(maxsize=4)(self._make_block)
        self._order = functools.lru_cache(maxsize=4 * len(sizes))(self._shuffle)

    def rows(self, start: int, count: int) -> np.ndarray:
        """Some rows.

        Args:
            start: number of the first, from 0.
            count: how many.

        Returns:
            int64 `[count, 2]`: the task, and the example of it.
        """
        return np.array([self._row(start + i) for i in range(count)], np.int64)

    def _row(self, number):
        block, place = divmod(number, _BLOCK)
        tasks, ranks = self._block(block)
        task = int(tasks[place])
        before = block * int(self._shares[task])
        epoch, index = divmod(before + int(ranks[place]), self.sizes[task])
        return task, self._order(task, epoch)[index]

    def _make_block(self, block):
        """The task of each row, and how many of it came before."""
        tasks = np.repeat(np.arange(len(self.sizes)), self._shares)
        keys = random_generator(self.seed, NOISE, block).random(_BLOCK)
        tasks = tasks[np.argsort(keys, kind="stable")]
        ranks = np.zeros(_BLOCK, np.int64)
        for task, share in enumerate(self._shares):
            ranks[tasks == task] = np.arange(share)
        return tasks, ranks

    def _shuffle(self, task, epoch):
        # Sorted random numbers, not `permutation`: numpy may change the
        # latter's algorithm from release to release.
        number = epoch * len(self.sizes) + task
        keys = random_generator(self.seed, SHUFFLE, number).random(
            self.sizes[task]
        )
        return np.argsort(keys, kind="stable")


def _shares(rates):
    """Rows of each task in a block, by the largest remainders."""
    wanted = np.maximum(rates * _BLOCK, 1)
    wanted *= _BLOCK / wanted.sum()
    shares = np.maximum(wanted.astype(np.int64), 1)
    order = np.argsort(shares - wanted, kind="stable")
    missing = _BLOCK - int(shares.sum())
    if missing >= 0:
        shares[order[:missing]] += 1
    else:
        # Tasks that were raised to a row are paid for by the largest.
        shares[np.argmax(shares)] += missing
    return shares
