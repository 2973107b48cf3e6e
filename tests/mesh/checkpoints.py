"""A run that moves between meshes: a part of it, in a process of its own.

    python -m tests.mesh.checkpoints '{"name": "a", "mesh": [4, 1], ...}'

goes on from the newest checkpoint in the folder, whichever mesh wrote it, to
the end of an epoch, and writes `arrays-<name>.npz`. With `processes` it is one
of several, each of which must be started. `seen-<name>-<index>.json` says how
much of arrays it had on its host.
"""

import json
import sys
from pathlib import Path

import numpy as np

from tests.mesh import training

STEPS = 5  # of an epoch


class Batches:
    """Batches that are a function of the step."""

    batch_size = training.ROWS

    def batch(self, step):
        from tests.models import tiny

        rng = np.random.default_rng(step)
        length = training.LENGTH
        x = tiny.inputs(rng, training.ROWS, length, length)
        y = rng.integers(3, tiny.VOCABULARY, (training.ROWS, length))
        return x, y, x["decoder_padding_mask"].astype("float32")

    def dataset(self, start_step=0):
        import grain

        batches = [self.batch(start_step + i) for i in range(4 * STEPS)]
        return grain.MapDataset.source(batches).to_iter_dataset()

    def fingerprint(self):
        return "batches"


def is_of_experts(shape):
    return len(shape) == 3 and shape[0] == training.SIZES["num_experts"]


def watch(checkpoint):
    """Notes what it gathers, and which part of experts it reads at once."""
    from jax.experimental import multihost_utils

    from keras_switch.resume.pieces import Pieces

    gather, read = multihost_utils.process_allgather, Pieces.__getitem__
    seen = {"gathered": 0, "read": 0.0}

    def watched_gather(array, **options):
        seen["gathered"] = max(seen["gathered"], array.size)
        return gather(array, **options)

    def watched_read(pieces, index):
        found = read(pieces, index)
        if is_of_experts(pieces.shape):
            part = found.size / np.prod(pieces.shape)
            seen["read"] = max(seen["read"], part)
        return found

    def watched(event):
        def call(*arguments, **named):
            # Only here: JAX itself gathers where Keras makes variables.
            multihost_utils.process_allgather = watched_gather
            try:
                event(*arguments, **named)
            finally:
                multihost_utils.process_allgather = gather

        return call

    Pieces.__getitem__ = watched_read
    for name in ("on_train_begin", "on_train_batch_begin", "on_train_end"):
        setattr(checkpoint, name, watched(getattr(checkpoint, name)))
    return seen


def main(
    name, mesh, folder, epochs, processes=None, preset=None, generates=False
):
    import keras

    keras.utils.set_random_seed(0)
    batches, index = Batches(), 0
    if processes:
        index, count = processes["index"], processes["count"]
        where = processes["coordinator"]
        keras.distribution.initialize(where, count, index)
    if mesh:
        training.spread(mesh)
    from keras_switch import data, resume

    whole = batches
    if processes:
        batches = data.Share(batches, index, count)
    lm = training.make()
    checkpoint = resume.ResumableCheckpoint(
        Path(folder) / "checkpoints", data=batches, save_every=STEPS
    )
    seen = watch(checkpoint)
    lm.fit(
        checkpoint.dataset(),
        epochs=epochs,
        steps_per_epoch=STEPS,
        callbacks=[checkpoint],
        verbose=0,
    )
    (Path(folder) / f"seen-{name}-{index}.json").write_text(json.dumps(seen))
    if preset:
        lm.save_to_preset(preset)
    arrays = training.weights(lm)
    if generates:
        arrays |= training.generate(lm, whole.batch(0)[0])
    if index == 0:
        np.savez(Path(folder) / f"arrays-{name}.npz", **arrays)


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
