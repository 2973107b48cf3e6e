"""What makes batches repeatable: seeds and fingerprints."""

import hashlib
import json
from typing import Any

import numpy as np

# What a random generator is for, part of its seed.
# A `Mixture` has the first two, so that rows drawn by one take the last.
SHUFFLE, NOISE, SHIFT, HELD_OUT, MIXED_NOISE = range(5)

# Part of the fingerprint: counts up when the same settings give new batches.
_VERSION = 1


def random_generator(
    seed: int, purpose: int, number: int
) -> np.random.Generator:
    """A generator that is a pure function of its arguments.

    Args:
        seed: the user's seed, a non-negative integer.
        purpose: one of the constants above.
        number: the step, epoch or block it is for.

    Returns:
        A generator of its own; only `random()` is to be drawn from it, whose
        stream numpy keeps from release to release.
    """
    sequence = np.random.SeedSequence([seed, purpose, number])
    return np.random.Generator(np.random.Philox(sequence))


def fingerprint(maker: Any, batch_size: int, seed: int, **more: Any) -> str:
    """A digest of data and settings.

    Args:
        maker: `BatchMaker`.
        batch_size: rows of a batch.
        seed: the seed.
        **more: further settings.

    Returns:
        64 hex digits.
    """
    objective = maker.objective
    settings = {
        "version": _VERSION,
        "corpus": maker.corpus.digest,
        "objective": type(objective).__name__,
        "objective_settings": vars(objective),
        "input_length": maker.input_length,
        "target_length": maker.target_length,
        "packing": maker.packing,
        "batch_size": batch_size,
        "seed": seed,
        **more,
    }
    text = json.dumps(settings, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
