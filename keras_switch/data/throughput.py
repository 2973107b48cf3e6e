"""How fast a pipeline makes batches."""

import itertools
import time
from typing import NamedTuple

import numpy as np

from keras_switch.data.checks import check_integer
from keras_switch.data.pipeline import Pipeline


class Throughput(NamedTuple):
    """Rates in tokens per second; a token of padding does not count.

    Args:
        direct: of `pipeline.batch`, one after the other.
        prefetched: of `pipeline.dataset()`, read by a consumer that does
            nothing else.
        input_fill: part of the encoder's rows that is not padding; of the
            decoder's where it is alone.
        target_fill: part of the decoder's rows that is not padding.
    """

    direct: float
    prefetched: float
    input_fill: float
    target_fill: float


def measure_throughput(pipeline: Pipeline, steps: int = 50) -> Throughput:
    """Measures how many tokens per second a pipeline makes.

    Args:
        pipeline: the pipeline.
        steps: batches to make, once directly and once read ahead.

    Returns:
        `Throughput`; inputs and targets are counted.

    Raises:
        ValueError: if `steps` is not positive.
    """
    check_integer("steps", steps, 1)
    direct = _rate(pipeline.batch(step) for step in range(steps + 1))
    prefetched = _rate(itertools.islice(pipeline.dataset(), steps + 1))
    fill = [_fill(pipeline.batch(step)) for step in range(steps)]
    return Throughput(direct, prefetched, *np.mean(fill, axis=0).tolist())


def _rate(batches):
    next(batches)  # The first one pays for the shuffle, or starts threads.
    start = time.perf_counter()
    tokens = sum(_count(batch) for batch in batches)
    return tokens / (time.perf_counter() - start)


def _count(batch):
    return sum(int(np.count_nonzero(mask)) for mask in _masks(batch))


def _fill(batch):
    masks = _masks(batch)
    return [np.mean(mask > 0) for mask in (masks[0], masks[-1])]


def _masks(batch):
    """Of the encoder and the decoder, or of a decoder alone."""
    names = ("encoder_padding_mask", "decoder_padding_mask", "padding_mask")
    return [batch[0][name] for name in names if name in batch[0]]
