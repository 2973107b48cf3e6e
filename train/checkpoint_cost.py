r"""Measures what checkpoints cost a training.

    python train/checkpoint_cost.py --preset=switch_mini

trains on random tokens and saves now and then. Of each two blocks of steps, the
first begins with a checkpoint, which is copied on the training thread and
written by another while training goes on; the second has none. What the first
takes more is the cost of a checkpoint. Prints a table, and as JSON the same
with the machine and the versions:

    step s           median seconds of a step without a checkpoint
    extra s          median of the seconds a checkpoint adds
    longest stall s  the longest that a step waited for its checkpoint's copy
    cost, %          of the time, at ResumableCheckpoint's default interval
"""

import json
import statistics
import tempfile
import time
from typing import Any

import numpy as np
from absl import flags as absl_flags

from keras_switch_train import flags

_BLOCK = absl_flags.DEFINE_integer(
    "block", 10, "Steps of a block.", lower_bound=2
)
_SAVES = absl_flags.DEFINE_integer(
    "saves", 7, "Checkpoints to measure.", lower_bound=1
)


def main() -> None:
    from keras_switch_train import measure, report

    head = {"what": "checkpoint", **measure.header()}
    print(" | ".join(f"{name} {value}" for name, value in head.items()))
    row = measure_saves(_BLOCK.value, _SAVES.value)
    console = report.console()
    for name, value in row.items():
        console.print(f"{name:>16} {value}", highlight=False)
    print(json.dumps({**head, "rows": [row]}, indent=1))


def run() -> None:
    """The console command."""
    flags.run(
        main,
        uses=(
            "backend",
            "batch_size",
            "dtype",
            "input_length",
            "preset",
            "retain_heap",
            "seed",
        ),
    )


def measure_saves(block: int, saves: int) -> dict[str, Any]:
    """Trains `--preset` on random tokens and saves now and then.

    Args:
        block: Steps of a block, at least 2.
        saves: Checkpoints to measure.

    Returns:
        A row.
    """
    import inspect

    import keras

    from keras_switch import models, optimizers, resume

    keras.utils.set_random_seed(flags.SEED.value)
    backbone = models.SwitchBackbone.from_preset(
        flags.PRESET.value, load_weights=False, dtype=flags.DTYPE.value
    )
    model = models.SwitchSeq2SeqLM(backbone, preprocessor=None)
    model.compile(optimizers.Adafactor(), jit_compile=flags.jit_compile())
    clock = _clock(keras.callbacks.Callback)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = resume.ResumableCheckpoint(
            folder, _Batches(backbone.vocabulary_size), save_every=2 * block
        )
        model.fit(
            checkpoint.dataset(),
            steps_per_epoch=2 * block * (saves + 1),
            callbacks=[clock[0], checkpoint, clock[1]],
            verbose=0,
        )
    begins, copied = (np.array(part.times) for part in clock)
    signature = inspect.signature(resume.ResumableCheckpoint)
    default = signature.parameters["save_every"].default
    return _row(begins, copied, block, saves, default)


def _row(begins, copied, block, saves, interval):
    """Step `2 * block * i` saves, for i from 1."""
    extra, plain, stalls = [], [], []
    for save in range(1, saves + 1):
        first = 2 * block * save
        middle, last = first + block, first + 2 * block - 1
        steps = np.diff(begins[middle : last + 1])
        plain.append(float(np.median(steps)))
        with_save = begins[middle] - begins[first]
        extra.append(float(with_save - block * steps.mean()))
        stalls.append(float(copied[first] - begins[first]))
    step = statistics.median(plain)
    cost = statistics.median(extra)
    return {
        "step s": round(step, 4),
        "extra s": round(cost, 4),
        "longest stall s": round(max(stalls), 4),
        "save_every": interval,
        "cost, %": round(100 * max(cost, 0.0) / (interval * step), 3),
    }


def _clock(callback):
    """Two callbacks that note when a step begins, around a third one."""

    class Clock(callback):
        def __init__(self):
            super().__init__()
            self.times = []

        def get_state(self):
            return None

        def set_state(self, state):
            pass

        def on_train_batch_begin(self, batch, logs=None):
            self.times.append(time.perf_counter())

        def on_train_batch_end(self, batch, logs=None):
            # On JAX a step returns before it has computed; logs wait for it.
            pass

    return Clock(), Clock()


class _Batches:
    """Random tokens, which cost no time to make."""

    def __init__(self, vocabulary_size):
        rng = np.random.default_rng(flags.SEED.value)
        shape = (flags.BATCH_SIZE.value, flags.INPUT_LENGTH.value)
        ids = rng.integers(3, vocabulary_size, shape).astype("int32")
        mask = np.ones(shape, "int32")
        x = {"encoder_token_ids": ids, "encoder_padding_mask": mask}
        x |= {"decoder_token_ids": ids, "decoder_padding_mask": mask}
        self._batch = (x, ids, mask.astype("float32"))

    def dataset(self, start_step=0):
        import grain

        steps = grain.MapDataset.source(range(start_step, 2**20))
        return steps.map(lambda _: self._batch).to_iter_dataset()

    def fingerprint(self):
        return "random tokens"


if __name__ == "__main__":
    run()
