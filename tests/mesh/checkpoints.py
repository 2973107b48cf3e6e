"""A run that moves between meshes: a part of it, in a process of its own.

    python -m tests.mesh.checkpoints '{"name": "a", "mesh": [4, 1], ...}'

goes on from the newest checkpoint in the folder, whichever mesh wrote it, to
the end of an epoch, and writes `arrays-<name>.npz`. With `processes` it is one
of several, each of which must be started.
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
    lm.fit(
        checkpoint.dataset(),
        epochs=epochs,
        steps_per_epoch=STEPS,
        callbacks=[checkpoint],
        verbose=0,
    )
    if preset:
        lm.save_to_preset(preset)
    arrays = training.weights(lm)
    if generates:
        arrays |= training.generate(lm, whole.batch(0)[0])
    if index == 0:
        np.savez(Path(folder) / f"arrays-{name}.npz", **arrays)


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
